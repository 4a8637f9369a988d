//! A directory of the YAML that one would `kubectl apply`, in place of an API server.

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use serde_json::Value;

use super::{Pod, Written};
use crate::{
    cni::{Error, files_in},
    files,
    network::Definition,
    pod::PodName,
};

/// The directory beside the manifests where status is written.
const STATUS_DIRECTORY: &str = "network-status";

/// How much of a document may be repeated by aliases: a few lines of aliases of aliases would fill the memory.
const MOST_REPLAYED: usize = 1000;

/// Pods and definitions from files, read once in a process.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    objects: OnceCell<Vec<Value>>,
}

impl Manifests {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), objects: OnceCell::new() }
    }

    /// A pod that no file describes asks for nothing: a node without a cluster runs such pods.
    pub(super) fn pod(&self, pod: &PodName) -> Result<Pod, Error> {
        let object = self.object("Pod", &pod.namespace, &pod.name)?;
        Ok(object.map(|object| Pod { uid: None, ..Pod::from_object(&object) }).unwrap_or_default())
    }

    pub(super) fn definition(&self, namespace: &str, name: &str) -> Result<Definition, Error> {
        match self.object("NetworkAttachmentDefinition", namespace, name)? {
            Some(object) => Ok(Definition { namespace: namespace.to_owned(), ..Definition::from_object(&object) }),
            None => Err(Error::Config(format!(
                "there is no definition {namespace}/{name} in {}: add its manifest there",
                self.directory.display()
            ))
            .missing(format!("{namespace}/{name}"))),
        }
    }

    pub(super) fn write_status(&self, pod: &PodName, status: &str) -> Result<Written, Error> {
        let path = self.status_path(pod);
        files::create_directory(&self.directory.join(STATUS_DIRECTORY), 0o755)?;
        files::replace(&path, format!("{status}\n").as_bytes(), 0o644, false)?;
        Ok(Written::Done)
    }

    pub(super) fn forget_status(&self, pod: &PodName) {
        let path = self.status_path(pod);
        if let Err(error) = files::remove(&path) {
            tracing::warn!(%error, "the status of a pod that is gone stays");
        }
    }

    fn status_path(&self, pod: &PodName) -> PathBuf {
        self.directory.join(STATUS_DIRECTORY).join(format!("{}.{}.json", pod.namespace, pod.name))
    }

    /// The object of a kind and name. An object without a namespace is in "default", as kubectl would apply it.
    fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>, Error> {
        let objects = match self.objects.get() {
            Some(objects) => objects,
            None => {
                let read = self.read()?;
                self.objects.get_or_init(|| read)
            }
        };
        let wanted = |object: &&Value| {
            let meta = &object["metadata"];
            object["kind"] == kind
                && meta["name"] == name
                && meta["namespace"].as_str().unwrap_or("default") == namespace
        };
        Ok(objects.iter().find(wanted).cloned())
    }

    fn read(&self) -> Result<Vec<Value>, Error> {
        std::fs::read_dir(&self.directory).map_err(|source| Error::io("read", self.directory.display(), source))?;
        let mut objects = Vec::new();
        for path in files_in(&self.directory, &["yaml", "yml", "json"]) {
            let text = std::fs::read_to_string(&path).map_err(|source| Error::io("read", path.display(), source))?;
            objects.extend(documents(&path, &text)?);
        }
        Ok(objects)
    }
}

/// The documents of a YAML file; JSON is YAML.
fn documents(path: &Path, text: &str) -> Result<Vec<Value>, Error> {
    let limits = serde_saphyr::alias_limits! { max_total_replayed_events: MOST_REPLAYED };
    let options = serde_saphyr::options! { alias_limits: limits, with_snippet: false };
    let mut documents = Vec::new();
    for document in text.split("\n---") {
        let document = document.trim_start_matches("---");
        if document.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            continue;
        }
        let value: Value = serde_saphyr::from_str_with_options(document, options.clone())
            .map_err(|problem| Error::decode(path.display().to_string(), problem))?;
        if value["kind"] == "List" {
            documents.extend(Vec::deserialize(&value["items"]).map_err(|problem| Error::decode("a List", problem))?);
        } else {
            documents.push(value);
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = r#"# two objects
---
apiVersion: v1
kind: Pod
metadata:
  name: a
  annotations:
    k8s.v1.cni.cncf.io/networks: net-a
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: net-a, namespace: other}
spec:
  config: |
    {"type": "macvlan", "n": 1.0}
"#;

    #[test]
    fn aliases_of_aliases_are_refused_and_plain_ones_are_not() {
        let read = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("all.yaml"), text).unwrap();
            Manifests::new(dir.path()).definition("default", "net-a")
        };
        let plain =
            "kind: NetworkAttachmentDefinition\nmetadata: {name: &name net-a, label: *name}\nspec: {config: x}\n";
        assert_eq!(read(plain).unwrap().config, "x");
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let aliases = vec![format!("*a{}", level - 1); 9].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        match read(&bomb) {
            Err(Error::Decode { what, problem }) => {
                assert!(what.ends_with("all.yaml") && problem.contains("alias"), "{problem}")
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pods_and_definitions_are_found_and_status_is_written_beside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.yaml"), YAML).unwrap();
        let manifests = Manifests::new(dir.path());
        let name = |name: &str| PodName { namespace: "default".into(), name: name.into(), uid: String::new() };
        assert_eq!(manifests.pod(&name("a")).unwrap().annotations["k8s.v1.cni.cncf.io/networks"], "net-a");
        assert_eq!(manifests.pod(&name("b")).unwrap(), Pod::default());
        assert_eq!(manifests.definition("other", "net-a").unwrap().config.trim(), r#"{"type": "macvlan", "n": 1.0}"#);
        match manifests.definition("default", "net-a").map_err(Error::unmarked) {
            Err(Error::Config(text)) => assert!(text.contains("no definition default/net-a"), "{text}"),
            other => panic!("{other:?}"),
        }
        manifests.write_status(&name("a"), "[]").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("network-status/default.a.json")).unwrap(), "[]\n");
        manifests.forget_status(&name("a"));
        manifests.forget_status(&name("a"));
        assert_eq!(std::fs::read_dir(dir.path().join("network-status")).unwrap().count(), 0);
    }

    #[test]
    fn a_broken_file_and_a_missing_directory_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("broken.yaml"), "a: [").unwrap();
        let manifests = Manifests::new(dir.path());
        assert!(
            matches!(manifests.definition("a", "b"), Err(Error::Decode { what, .. }) if what.contains("broken.yaml"))
        );
        let nowhere = Manifests::new(Path::new("/nowhere/at/all"));
        assert!(matches!(nowhere.definition("a", "b"), Err(Error::Io { path, .. }) if path == "/nowhere/at/all"));
    }
}
