//! Device-info files (device-info-spec 1.1): what a device plugin says of a device, handed to the network's plugins and
//! told to the pod in its network-status.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{cni::Error, files};

/// The capability by which a plugin gets the path of its file.
pub const CAPABILITY: &str = "CNIDeviceInfoFile";
/// Where the files are.
const DIRECTORY: &str = "/var/run/k8s.cni.cncf.io/devinfo";
/// What is longer is no device-info: they have a few hundred bytes.
const LONGEST: u64 = 64 << 10;

/// The directory of device-info files.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    directory: PathBuf,
}

impl DeviceInfo {
    /// That of this node.
    #[must_use]
    pub fn of_node() -> Self {
        Self { directory: DIRECTORY.into() }
    }

    /// The file of an attachment: `cni/NAMESPACE-NAME-CONTAINER_INTERFACE`.
    #[must_use]
    pub fn path(&self, network: &str, container: &str, interface: &str) -> PathBuf {
        self.directory.join("cni").join(format!("{}-{container}_{interface}", flat(network)))
    }

    /// Makes the attachment's file from what the device plugin wrote of the device, if it wrote anything that can be used.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn offer(&self, resource: &str, device: &str, path: &Path) -> Result<(), Error> {
        let source = self.directory.join("dp").join(format!("{}-{}-device.json", flat(resource), flat(device)));
        let Some(text) = read_object(&source) else { return Ok(()) };
        files::create_directory(&self.directory.join("cni"), 0o755)?;
        files::replace(path, text.to_string().as_bytes(), 0o444, false)
    }

    /// What an attachment's file says, after its plugins were at it.
    #[must_use]
    pub fn read(&self, path: &Path) -> Option<Value> {
        read_object(path)
    }

    /// Removes the file of an attachment, whatever its network was called.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget(&self, container: &str, interface: &str) -> Result<(), Error> {
        let directory = self.directory.join("cni");
        let end = format!("-{container}_{interface}");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::io("read", directory.display(), source)),
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().ends_with(&end) {
                files::remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// A name that is one part of a path (the specification's form for resources).
fn flat(name: &str) -> String {
    name.replace('/', "-")
}

/// The JSON object in a file; a file that has none is passed over with a warning.
fn read_object(path: &Path) -> Option<Value> {
    fs::metadata(path).ok().filter(|found| found.is_file() && found.len() <= LONGEST)?;
    let text = fs::read(path).ok()?;
    match serde_json::from_slice::<Value>(&text) {
        Ok(value) if value.is_object() => Some(value),
        Ok(_) => None,
        Err(problem) => {
            tracing::warn!(file = %path.display(), %problem, "device-info that does not parse is passed over");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_is_copied_read_and_forgotten_by_container_and_interface() {
        let directory = tempfile::tempdir().unwrap();
        let infos = DeviceInfo { directory: directory.path().to_owned() };
        let path = infos.path("default/net-a", "c1", "net1");
        assert_eq!(path, directory.path().join("cni/default-net-a-c1_net1"));
        infos.offer("intel.com/vf", "0000:01:10.2", &path).unwrap();
        assert_eq!(infos.read(&path), None, "the device plugin wrote nothing");
        infos.forget("c1", "net1").unwrap();

        fs::create_dir(directory.path().join("dp")).unwrap();
        let source = directory.path().join("dp/intel.com-vf-0000:01:10.2-device.json");
        for (text, expected) in
            [("{\"type\":", None), ("[]", None), (r#"{"type":"pci"}"#, Some(json!({"type": "pci"})))]
        {
            fs::write(&source, text).unwrap();
            infos.offer("intel.com/vf", "0000:01:10.2", &path).unwrap();
            assert_eq!(infos.read(&path), expected, "{text}");
        }
        // The same again: a retry after a crash.
        infos.offer("intel.com/vf", "0000:01:10.2", &path).unwrap();
        let other = infos.path("default/net-a", "c1", "net11");
        infos.offer("intel.com/vf", "0000:01:10.2", &other).unwrap();
        infos.forget("c1", "net1").unwrap();
        assert!(infos.read(&path).is_none() && infos.read(&other).is_some());
    }
}
