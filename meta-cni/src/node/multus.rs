//! What Multus left of a sandbox that it attached: its own file of delegates, and libcni's files of results beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cni::{CniArgs, Error, Object, PluginList, check_container_id, check_interface_name},
    files,
};

/// Multus' own default of `cniDir`.
const DIRECTORY: &str = "/var/lib/cni/multus";
/// Where libcni keeps results, below it.
const RESULTS: &str = "results";

/// What is in no key and no value of `CNI_ARGS`.
const NO_PART: [char; 3] = [';', '=', '\0'];

/// Multus' directories.
#[derive(Debug, Clone)]
pub struct MultusFiles {
    directories: Vec<PathBuf>,
}

/// One attachment of Multus'.
#[derive(Debug)]
pub struct Delegate {
    /// The interface in the sandbox.
    pub interface: String,
    /// Its configuration; nothing if no file tells it any more.
    pub list: Option<PluginList>,
    /// Multus' own copy is all that is left of it, which may lack what only the plugins know (multus#1449).
    pub may_be_lossy: bool,
    /// The result of its ADD.
    pub previous: Option<Value>,
    /// `CNI_ARGS` of its ADD.
    pub args: Option<CniArgs>,
    /// What its plugins were given by capability.
    pub runtime_config: Object,
}

/// What is left of one sandbox.
#[derive(Debug)]
pub struct Left {
    /// Its attachments, in the order in which they were made.
    pub delegates: Vec<Delegate>,
    /// The file of delegates tells nothing, or is not there: there may have been more of them.
    pub torn: bool,
    /// The paths of its namespace, by the results.
    pub netns: BTreeSet<String>,
}

/// An entry of the file of delegates (Multus 4.3, `DelegateNetConf`); what we do not need is passed over.
#[derive(Deserialize)]
struct RawDelegate {
    #[serde(default, rename = "ifnameRequest")]
    interface: String,
    #[serde(default, rename = "Bytes")]
    bytes: Option<ByteString>,
}

/// A file of libcni's (`cniCacheV1`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawResult {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    container_id: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    network_name: String,
    #[serde(default)]
    netns: String,
    #[serde(default)]
    config: Option<ByteString>,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(default)]
    capability_args: Option<Object>,
    #[serde(default)]
    result: Option<Value>,
}

impl RawResult {
    /// Whether it tells which attachment it is of, in words that can be ones.
    fn is_usable(&self) -> bool {
        self.kind == "cniCacheV1"
            && check_container_id(&self.container_id).is_ok()
            && check_interface_name(&self.if_name).is_ok()
    }

    fn into_delegate(self) -> Delegate {
        let config = self.config.and_then(|bytes| plugins(&bytes.0, Some(&self.network_name)));
        let pairs = self.cni_args.unwrap_or_default();
        // What cannot be a pair of CNI_ARGS never was one.
        let is_pair = |(key, value): &&(String, String)| !key.contains(NO_PART) && !value.contains(NO_PART);
        let args = pairs.iter().filter(is_pair).fold(CniArgs::default(), |args, (key, value)| args.with(key, value));
        Delegate {
            interface: self.if_name,
            list: config,
            may_be_lossy: false,
            previous: self.result.filter(Value::is_object),
            args: Some(args),
            runtime_config: self.capability_args.unwrap_or_default(),
        }
    }
}

impl MultusFiles {
    /// Those of this node: where Multus keeps them by default, and where its conf, which may be ours now, says.
    #[must_use]
    pub fn of_node(cni_dir: &Path) -> Self {
        let mut files = Self::at(Path::new(DIRECTORY));
        if !files.directories.iter().any(|known| known == cni_dir) {
            files.directories.push(cni_dir.to_owned());
        }
        files
    }

    /// Those in a directory.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directories: vec![directory.to_owned()] }
    }

    /// The containers of which anything is left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn containers(&self) -> Result<Vec<String>, Error> {
        let mut containers: Vec<String> = Vec::new();
        for (path, name) in self.all_files(|directory| directory.clone())? {
            if check_container_id(&name).is_ok() {
                containers.push(name);
            } else {
                tracing::warn!(file = %path.display(), "a file in Multus' directory that is no container's");
            }
        }
        containers.extend(self.results()?.into_values().map(|result| result.container_id));
        containers.sort();
        containers.dedup();
        Ok(containers)
    }

    /// What is left of a container whose primary interface is `primary`; nothing if Multus did not attach it, or another
    /// DEL was here before.
    ///
    /// The configuration of a result's file is preferred: Multus 4.2.1 to 4.3.0 wrote lossy ones of lists into the other
    /// file (multus#1449).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn left(&self, container: &str, primary: &str) -> Result<Option<Left>, Error> {
        let mut results: Vec<RawResult> =
            self.results()?.into_values().filter(|result| result.container_id == container).collect();
        let paths = self.directories.iter().map(|directory| directory.join(container));
        let path = paths.clone().find(|path| path.exists()).or_else(|| paths.clone().next()).unwrap_or_default();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && results.is_empty() => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(Error::io("read", path.display(), source)),
        };
        let cached = serde_json::from_slice::<Vec<RawDelegate>>(&text);
        if let Err(problem) = &cached {
            tracing::warn!(file = %path.display(), %problem, "Multus' file does not tell what it attached");
        }
        let mut torn = cached.is_err();
        let netns = results.iter().map(|result| result.netns.clone()).collect();
        let mut delegates = Vec::new();
        for (position, raw) in cached.unwrap_or_default().into_iter().enumerate() {
            let interface = match (raw.interface.is_empty(), position) {
                (false, _) => raw.interface,
                (true, 0) => primary.to_owned(),
                (true, _) => format!("net{position}"),
            };
            if let Err(problem) = check_interface_name(&interface) {
                tracing::warn!(file = %path.display(), problem, "Multus' file does not tell which interface it attached");
                torn = true;
                continue;
            }
            let at = results.iter().position(|result| result.if_name == interface);
            let mut delegate = at.map_or_else(|| bare(&interface), |at| results.remove(at).into_delegate());
            if delegate.list.is_none() {
                delegate.list = raw.bytes.and_then(|bytes| plugins(&bytes.0, None));
                delegate.may_be_lossy = true;
            }
            delegates.push(delegate);
        }
        // Of what only a result is left: the primary first, as it was made first.
        results.sort_by_key(|result| (result.if_name != primary, result.if_name.clone()));
        delegates.extend(results.into_iter().map(RawResult::into_delegate));
        Ok(Some(Left { delegates, torn, netns }))
    }

    /// Forgets the result of one attachment.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget_result(&self, container: &str, interface: &str) -> Result<(), Error> {
        for (path, result) in self.results()? {
            if result.container_id == container && result.if_name == interface {
                files::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Forgets the sandbox, once all of it is undone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget(&self, container: &str) -> Result<(), Error> {
        self.directories.iter().try_for_each(|directory| files::remove(&directory.join(container)))
    }

    /// The plain files of all directories, or of one below each.
    fn all_files(&self, of: impl Fn(&PathBuf) -> PathBuf) -> Result<Vec<(PathBuf, String)>, Error> {
        let each: Result<Vec<_>, Error> =
            self.directories.iter().map(|directory| plain_files(&of(directory))).collect();
        Ok(each?.into_iter().flatten().collect())
    }

    /// The results that can be read.
    fn results(&self) -> Result<BTreeMap<PathBuf, RawResult>, Error> {
        let mut results = BTreeMap::new();
        for (path, _) in self.all_files(|directory| directory.join(RESULTS))? {
            let text = fs::read(&path).map_err(|source| Error::io("read", path.display(), source))?;
            match serde_json::from_slice::<RawResult>(&text) {
                Ok(result) if result.is_usable() => drop(results.insert(path, result)),
                _ => tracing::warn!(file = %path.display(), "a result of Multus' that cannot be read is passed over"),
            }
        }
        Ok(results)
    }
}

fn bare(interface: &str) -> Delegate {
    Delegate {
        interface: interface.to_owned(),
        list: None,
        may_be_lossy: false,
        previous: None,
        args: None,
        runtime_config: Object::default(),
    }
}

fn plugins(text: &[u8], name: Option<&str>) -> Option<PluginList> {
    let object = Object::parse("Multus' copy of a configuration", text).ok()?;
    PluginList::from_object(object, name).ok()
}

/// The plain files of a directory, with their names. A missing directory has none.
fn plain_files(directory: &Path) -> Result<Vec<(PathBuf, String)>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::io("read", directory.display(), source)),
    };
    let plain = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    Ok(plain.filter_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?))).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true}},{"type":"portmap"}]}"#;

    fn encoded(text: &str) -> Value {
        serde_json::to_value(ByteString(text.as_bytes().to_vec())).unwrap()
    }

    fn write(directory: &Path, name: &str, value: &Value) {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    }

    fn result(interface: &str, name: &str, config: &str) -> Value {
        json!({"kind": "cniCacheV1", "containerId": "c1", "config": encoded(config), "ifName": interface, "networkName": name,
            "netns": "/run/netns/a", "cniArgs": [["IgnoreUnknown", "true"], ["K8S_POD_NAME", "p"]],
            "capabilityArgs": {"portMappings": [{"hostPort": 80}]}, "result": {"cniVersion": "0.3.1"}})
    }

    fn shape(left: &Left) -> Vec<(String, Option<String>)> {
        let kinds = |delegate: &Delegate| delegate.list.as_ref().map(PluginList::kinds);
        left.delegates.iter().map(|delegate| (delegate.interface.clone(), kinds(delegate))).collect()
    }

    fn named(shape: [(&str, Option<&str>); 3]) -> Vec<(String, Option<String>)> {
        shape.map(|(interface, kinds)| (interface.to_owned(), kinds.map(str::to_owned))).into()
    }

    #[test]
    fn both_kinds_of_files_make_up_a_sandbox() {
        let directory = tempfile::tempdir().unwrap();
        let files = MultusFiles::at(directory.path());
        assert!(files.left("c1", "eth0").unwrap().is_none());
        let macvlan = r#"{"cniVersion":"0.3.1","name":"net-a","type":"macvlan"}"#;
        // The list as Multus 4.3.0 wrote it: without what the plugins are configured with.
        let lossy = r#"{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;
        let delegates = json!([
            {"Conf": {}, "ConfList": {"name": "cbr0"}, "Name": "cbr0", "Bytes": encoded(lossy)},
            {"Conf": {"name": "net-a"}, "ConfList": {}, "Name": "default/net-a", "Bytes": encoded(macvlan)},
            {"Conf": {"name": "net-a"}, "ConfList": {}, "Name": "default/net-a", "ifnameRequest": "data0", "Bytes": null},
        ]);
        write(directory.path(), "c1", &delegates);
        write(directory.path(), "results/cbr0-c1-eth0", &result("eth0", "cbr0", FLANNEL));
        fs::write(directory.path().join("results/net-a-c1-net1"), "{\"kind\":\"cniCa").unwrap();
        let left = files.left("c1", "eth0").unwrap().unwrap();
        assert!(!left.torn);
        let expected = [("eth0", Some("flannel, portmap")), ("net1", Some("macvlan")), ("data0", None)];
        assert_eq!(shape(&left), named(expected));
        let primary = &left.delegates[0];
        let flannel = &primary.list.as_ref().unwrap().plugins[0].object;
        assert!(flannel.raw("delegate").is_some(), "the lossy copy was taken");
        assert_eq!(primary.args.as_ref().unwrap().get("K8S_POD_NAME"), "p");
        assert_eq!(primary.runtime_config.to_text(), r#"{"portMappings":[{"hostPort":80}]}"#);
        assert!(primary.previous.is_some());
        assert_eq!(files.containers().unwrap(), ["c1"]);
        files.forget_result("c1", "eth0").unwrap();
        files.forget("c1").unwrap();
        files.forget("c1").unwrap();
        assert!(files.left("c1", "eth0").unwrap().is_none());
    }

    #[test]
    fn a_torn_file_leaves_the_results_primary_first() {
        let directory = tempfile::tempdir().unwrap();
        let files = MultusFiles::at(directory.path());
        let macvlan = r#"{"cniVersion":"0.3.1","type":"macvlan"}"#;
        for interface in ["net2", "eth0", "net1"] {
            let config = if interface == "eth0" { FLANNEL } else { macvlan };
            write(directory.path(), &format!("results/n-c1-{interface}"), &result(interface, "n", config));
        }
        write(
            directory.path(),
            "results/n-c2-eth0",
            &json!({"kind": "cniCacheV1", "containerId": "c2", "ifName": "eth0"}),
        );
        let expected = [("eth0", Some("flannel, portmap")), ("net1", Some("macvlan")), ("net2", Some("macvlan"))];
        for text in ["", "[{\"Conf\":", "\0\0\0"] {
            fs::write(directory.path().join("c1"), text).unwrap();
            let left = files.left("c1", "eth0").unwrap().unwrap();
            assert_eq!((left.torn, shape(&left)), (true, named(expected)), "{text:?}");
        }
        fs::remove_file(directory.path().join("c1")).unwrap();
        assert_eq!(shape(&files.left("c1", "eth0").unwrap().unwrap()), named(expected));
        assert_eq!(files.containers().unwrap(), ["c1", "c2"]);
        let of_c2 = files.left("c2", "eth0").unwrap().unwrap();
        assert!(of_c2.delegates[0].list.is_none() && of_c2.delegates[0].previous.is_none());
    }
}
