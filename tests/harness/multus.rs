//! The files that Multus 4.3 leaves of a sandbox: its own list of delegates (`DelegateNetConf`), and libcni's cache of
//! results (`cniCacheV1`).

use std::{fs, path::Path};

use k8s_openapi::ByteString;
use serde_json::{Value, json};

/// Where they are.
pub const MULTUS_DIRECTORY: &str = "/var/lib/cni/multus";

/// An attachment: its interface, its configuration, its result.
pub type MultusAttachment = (&'static str, Value, Value);

/// Bytes as Go's JSON has them.
pub fn go_bytes(value: &Value) -> Value {
    serde_json::to_value(ByteString(value.to_string().into_bytes())).expect("base64")
}

/// Writes both kinds of files for a sandbox, whose first attachment is the primary.
pub fn multus_files(container: &str, netns: &str, attachments: &[MultusAttachment]) {
    let results = Path::new(MULTUS_DIRECTORY).join("results");
    fs::create_dir_all(&results).expect("Multus' directory");
    let mut delegates = Vec::new();
    for (position, (interface, config, result)) in attachments.iter().enumerate() {
        let name = config["name"].as_str().expect("a name");
        let cached = json!({
            "kind": "cniCacheV1", "containerId": container, "config": go_bytes(config), "ifName": interface,
            "networkName": name, "netns": netns, "cniArgs": [["IgnoreUnknown", "true"], ["K8S_POD_NAME", container]],
            "result": result
        });
        let file = results.join(format!("{name}-{container}-{interface}"));
        fs::write(file, cached.to_string()).expect("a result");
        let list = config.get("plugins").is_some();
        let mut delegate = json!({
            "Conf": if list { json!({"name": ""}) } else { config.clone() },
            "ConfList": if list { config.clone() } else { json!({}) },
            "Name": name, "IsFilterV4Gateway": false, "IsFilterV6Gateway": false, "Bytes": go_bytes(config)
        });
        // Multus counts by itself where the pod did not choose.
        if position > 0 && *interface != format!("net{position}") {
            delegate["ifnameRequest"] = json!(interface);
        }
        delegates.push(delegate);
    }
    let file = Path::new(MULTUS_DIRECTORY).join(container);
    fs::write(file, Value::Array(delegates).to_string()).expect("the list of delegates");
}
