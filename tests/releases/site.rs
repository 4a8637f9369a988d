//! A node with two releases, and pods with networks of all kinds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::harness::{Call, Interface, World, beds, names};

/// The commit that stands for the release before this one.
pub(crate) const PREVIOUS: &str = include_str!("previous");

/// A release that is installed on the node, with a directory of plugins of its own: its `host-local` is the release itself.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) bin: PathBuf,
}

/// The node.
pub(crate) struct Site {
    pub(crate) world: World,
    pub(crate) old: Release,
    pub(crate) new: Release,
    primary: String,
}

/// The previous release's program.
fn previous() -> PathBuf {
    let directory = beds().join("releases").join(PREVIOUS.trim());
    let program = directory.join("meta-cni");
    assert!(program.is_file(), "{} is missing: run make beds", program.display());
    if directory.join("stands-in").exists() {
        println!(
            "THE RELEASE BEFORE THIS ONE ({}) IS NOT TESTED: this clone does not have it; the present source stands in",
            PREVIOUS.trim()
        );
    }
    program
}

fn release(name: &'static str, program: PathBuf) -> Release {
    let bin = Path::new("/run/test").join(name);
    fs::create_dir_all(&bin).unwrap();
    for plugin in ["bridge", "portmap", "macvlan", "ptp", "tuning"] {
        std::os::unix::fs::symlink(beds().join("plugins/reference").join(plugin), bin.join(plugin)).unwrap();
    }
    std::os::unix::fs::symlink(&program, bin.join("host-local")).unwrap();
    Release { name, program, bin }
}

impl Site {
    /// A bridge with port mappings as the primary; macvlan, a bridge, ptp and a chain beside it. Pod "p" asks for all of
    /// them, with an address and a MAC of its own choice; pod "q" for one, out of a small pool.
    pub(crate) fn new() -> Self {
        let world = World::new();
        let old = release("old", previous());
        let new = release("new", PathBuf::from(env!("CARGO_BIN_EXE_meta-cni")));
        let primary = world.primary(&json!({
            "cniVersion": "1.0.0", "name": "podnet",
            "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
                         "ipam": {"type": "host-local", "subnet": "10.88.0.0/24"}},
                        {"type": "portmap", "capabilities": {"portMappings": true}}]
        }));
        // The uplink is made, and the definition replaced.
        world.macvlan("net-a", "10.10.1.0/24");
        let ipam = |subnet: &str| json!({"type": "host-local", "ranges": [[{"subnet": subnet}]]});
        for (name, config) in [
            (
                "net-a",
                json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink",
                             "capabilities": {"ips": true}, "ipam": ipam("10.10.1.0/24")}),
            ),
            (
                "net-b",
                json!({"cniVersion": "0.4.0", "type": "bridge", "bridge": "br-b",
                             "capabilities": {"mac": true}, "ipam": ipam("10.10.2.0/24")}),
            ),
            ("net-c", json!({"cniVersion": "1.0.0", "type": "ptp", "ipam": ipam("fd00:10:3::/64")})),
            (
                "net-d",
                json!({"cniVersion": "1.0.0", "plugins": [
                {"type": "macvlan", "master": "uplink", "ipam": ipam("10.10.4.0/24")}, {"type": "tuning", "mtu": 1400}]}),
            ),
            (
                "net-s",
                json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "uplink",
                             "ipam": ipam("10.10.5.0/28")}),
            ),
        ] {
            world.definition(name, &config);
        }
        let asked = json!([
            {"name": "net-a", "ips": ["10.10.1.50"]}, {"name": "net-b", "mac": "02:00:00:00:0b:01"},
            {"name": "net-c"}, {"name": "net-d", "cni-args": {"who": "p"}}
        ]);
        world.pod("p", &asked.to_string());
        world.pod("q", "net-s");
        Self { world, old, new, primary }
    }

    /// Who goes first, and who has to live with it.
    pub(crate) fn directions(&self) -> [(&Release, &Release); 2] {
        [(&self.old, &self.new), (&self.new, &self.old)]
    }

    /// Our configuration, as a release is given it.
    pub(crate) fn conf(&self, release: &Release) -> Value {
        let mut conf = self.world.conf(&self.primary);
        conf["cniVersion"] = json!("1.1.0");
        conf["binDir"] = json!(release.bin);
        conf
    }

    /// A call about pod "p".
    pub(crate) fn call(&self, release: &Release, verb: &str, container: &str, netns: &str) -> Call {
        let mut conf = self.conf(release);
        conf["runtimeConfig"] = json!({"portMappings": [{"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}]});
        self.with(release, verb, container, netns, &conf).pod("p")
    }

    /// A call with a configuration.
    pub(crate) fn with(&self, release: &Release, verb: &str, container: &str, netns: &str, conf: &Value) -> Call {
        Call::new(&release.program, &release.bin, verb, container, netns, conf)
    }

    /// GC with the containers that live.
    pub(crate) fn gc(&self, release: &Release, living: &[&str]) {
        let mut conf = self.conf(release);
        let listed = living.iter().map(|id| json!({"containerID": id, "ifname": "eth0"}));
        conf["cni.dev/valid-attachments"] = listed.collect();
        self.with(release, "GC", "", "", &conf).ok();
    }

    /// The pod has all its interfaces, as it asked for them.
    pub(crate) fn assert_attached(&self, netns: &str) {
        let find = |name: &str| Interface::find(netns, name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(find("net1").addresses(), ["10.10.1.50/24"]);
        assert_eq!(find("net2").mac(), "02:00:00:00:0b:01");
        assert_eq!(find("net3").addresses().len(), 1);
        assert_eq!(find("net4").mtu(), 1400);
        assert!(find("eth0").addresses()[0].starts_with("10.88.0."));
    }

    /// Nothing of any pod is left: no record, lease, index, lock, interface or port.
    pub(crate) fn assert_clean(&self, netns: &[&str]) {
        self.world.assert_clean();
        for netns in netns {
            for name in ["eth0", "net1", "net2", "net3", "net4"] {
                assert!(Interface::find(netns, name).is_none(), "{name} is left in {netns}");
            }
        }
        let links = names("/sys/class/net");
        assert!(!links.iter().any(|name| name.starts_with("veth")), "{links:?}");
        let rules = crate::harness::run("iptables-save", &["-t", "nat"]);
        assert!(!rules.contains("8081"), "{rules}");
    }
}
