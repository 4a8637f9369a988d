//! Every kind of VF: bound to a driver for user space, and as a VM has it, without its PF.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

use crate::{
    face,
    harness::{Interface, ip, ip_in, names, ping},
    node::{Node, Vf, eventually, pool, sriov},
};

const MAC: &str = "02:00:00:00:00:42";
const RESOURCE: &str = "bed.test/vf";

/// A VF that is bound to vfio-pci for as long as this lives.
pub(crate) struct Vfio {
    vf: Vf,
}

impl Vfio {
    pub(crate) fn bind(vf: &Vf) -> Self {
        crate::harness::run("modprobe", &["vfio-pci"]);
        rebind(vf, "vfio-pci");
        assert_eq!(driver(vf), "vfio-pci");
        Self { vf: vf.clone() }
    }

    /// Gives it to its kernel driver: a new interface, which gets its name of before.
    fn unbind(&self) {
        rebind(&self.vf, "");
        let net = device(&self.vf).join("net");
        assert!(eventually(|| !names(&net).is_empty()), "no interface came");
        ip(&format!("link set {} name {}", names(&net)[0], self.vf.name));
    }
}

impl Drop for Vfio {
    fn drop(&mut self) {
        let Vf { pf, number, name, mac, .. } = &self.vf;
        // Or it would be locked to what the PF still knows of it.
        ip(&format!("link set {pf} vf {number} mac 00:00:00:00:00:00"));
        if driver(&self.vf) == "vfio-pci" {
            self.unbind();
        }
        ip(&format!("link set {name} address {mac}"));
        // A reset, at which the driver takes it for the permanent one, as it was.
        ip(&format!("link set {name} mtu 1499"));
        ip(&format!("link set {name} mtu 1500"));
    }
}

fn device(vf: &Vf) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(&vf.pci)
}

fn driver(vf: &Vf) -> String {
    let link = fs::read_link(device(vf).join("driver")).unwrap();
    link.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Binds it to a driver by name; the empty name is whichever knows it.
fn rebind(vf: &Vf, driver: &str) {
    fs::write(device(vf).join("driver_override"), format!("{driver}\n")).unwrap();
    fs::write(device(vf).join("driver/unbind"), &vf.pci).unwrap();
    fs::write("/sys/bus/pci/drivers_probe", &vf.pci).unwrap();
}

/// A directory that lies over another one for as long as this lives.
struct Cover(PathBuf);

impl Cover {
    fn over(path: PathBuf) -> Self {
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self(path)
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        umount(&self.0).unwrap();
    }
}

/// A VF as a VM sees it that was given it: its real interface, and no way to a PF.
fn without_pf(vf: &Vf) -> Cover {
    let real = device(vf).canonicalize().unwrap();
    let read = |path: PathBuf| fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (class, driver) = (read(real.join("class")), fs::read_link(real.join("driver")).unwrap());
    let index = read(real.join("net").join(&vf.name).join("ifindex"));
    let cover = Cover::over(real.clone());
    fs::create_dir_all(real.join("net").join(&vf.name)).unwrap();
    fs::write(real.join("net").join(&vf.name).join("ifindex"), index).unwrap();
    fs::write(real.join("class"), class).unwrap();
    symlink(driver, real.join("driver")).unwrap();
    cover
}

/// The result that is recorded for an interface of a pod.
fn result(pod: &str, interface: &str) -> Value {
    let path = format!("/var/lib/cni/meta-cni/sandboxes/{pod}/meta:eth0:{interface}.json");
    let record: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    record["result"].clone()
}

#[test]
fn a_vfio_vf_is_set_at_its_pf_and_its_addresses_are_reported() {
    let mut node = Node::new();
    let vf = node.a[1].clone();
    let _bound = Vfio::bind(&vf);
    node.look_again();
    let before = vf.row();
    let more = json!({"mac": MAC, "vlan": 100, "vlanQoS": 3, "trust": "on", "spoofchk": "off", "max_tx_rate": 200, "ipam": pool()});
    node.network("fast", RESOURCE, &sriov(&more));
    let netns = node.pod("p", "fast", &[(RESOURCE, &vf)]);
    node.add("p", &netns);
    let row = vf.row();
    assert_eq!(
        (&row["address"], &row["vlan_list"][0]["vlan"], &row["vlan_list"][0]["qos"]),
        (&json!(MAC), &json!(100), &json!(3))
    );
    assert_eq!((&row["trust"], &row["spoofchk"]), (&json!(true), &json!(false)), "{row}");
    assert!(Interface::find(&netns, "net1").is_none(), "there is no interface");
    let expected = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "mac": MAC, "mtu": 1500, "sandbox": netns, "pciID": vf.pci}],
        "ips": [{"interface": 0, "address": "10.11.0.2/24", "gateway": "10.11.0.1"}],
        "routes": [{"dst": "10.12.0.0/16"}],
    });
    assert_eq!(result("p", "net1"), expected);
    let expected = json!({
        "name": "default/fast", "interface": "net1", "ips": ["10.11.0.2"], "mac": MAC, "mtu": 1500, "dns": {},
        "device-info": {"type": "pci", "version": "1.1.0", "pci": {"pci-address": vf.pci}}
    });
    assert_eq!(node.status("p", "net1"), expected);
    node.call("CHECK", "p", &netns).ok();
    let at_pf = |setting: &str| ip(&format!("link set {} vf {} {setting}", vf.pf, vf.number));
    for (change, back, wanted, found) in [
        ("vlan 7", "vlan 100 qos 3", "vlan 100 qos 3", "vlan 7"),
        ("trust off", "trust on", "trust on", "trust off"),
        ("spoofchk on", "spoofchk off", "spoofchk off", "spoofchk on"),
        ("max_tx_rate 50", "max_tx_rate 200", "max_tx_rate 200", "max_tx_rate 50"),
        ("mac 02:00:00:00:00:77", "mac 02:00:00:00:00:42", "mac 02:00:00:00:00:42", "mac 02:00:00:00:00:77"),
    ] {
        at_pf(change);
        node.differs(&netns, "fast", &format!("VF {}: wanted {wanted}, found {found}", vf.pci));
        at_pf(back);
    }
    node.call("CHECK", "p", &netns).ok();
    node.del("p", &netns);
    assert_eq!(vf.row(), before);
    node.assert_as_before();
    // The namespace is gone before DEL: it makes no difference.
    let netns = node.pod("p", "fast", &[(RESOURCE, &vf)]);
    node.add("p", &netns);
    node.world.delete_netns(&netns);
    node.del("p", &netns);
    node.assert_as_before();
}

#[test]
fn a_vfio_vf_that_a_kernel_driver_took_back_is_given_back_all_the_same() {
    let mut node = Node::new();
    let (vf, peer) = (node.a[0].clone(), node.b[1].clone());
    let bound = Vfio::bind(&vf);
    ip(&format!("link set {} vf {} mac 00:00:00:00:00:00", vf.pf, vf.number));
    node.look_again();
    node.network("fast", RESOURCE, &sriov(&json!({"mac": MAC, "vlan": 100, "ipam": pool()})));
    let netns = node.pod("p", "fast", &[(RESOURCE, &vf)]);
    node.add("p", &netns);
    bound.unbind();
    let own = || {
        let links: Value = serde_json::from_str(&ip(&format!("-j -d link show {}", vf.name))).unwrap();
        (links[0]["address"].clone(), links[0]["permaddr"].clone())
    };
    assert_eq!(own().0, MAC, "the driver reads it from the PF");
    let text = node.call("CHECK", "p", &netns).fails(101);
    assert!(text.contains(&format!("VF {}: wanted driver vfio-pci, found driver igbvf", vf.pci)), "{text}");
    node.del("p", &netns);
    let (mac, permanent) = own();
    assert_ne!(mac, MAC);
    assert_eq!(permanent, Value::Null, "iproute2 shows one that differs");
    let row = vf.row();
    assert_eq!((&row["address"], &row["vlan_list"][0]["vlan"]), (&mac, &Value::Null), "{row}");
    node.world.assert_clean();
    // It works, and it is not locked: it takes an address of its own in the next pod.
    node.network("plain", RESOURCE, &sriov(&json!({"ipam": pool()})));
    let one = node.pod("one", "plain", &[(RESOURCE, &vf)]);
    let two = node.pod("two", "plain", &[(RESOURCE, &peer)]);
    node.add("one", &one);
    node.add("two", &two);
    assert!(ping(&one, &node.address("two", "net1")));
    ip_in(&one, "link set net1 address 02:00:00:00:00:43");
    node.del("one", &one);
    node.del("two", &two);
    assert_eq!(own().0, mac);
    node.world.assert_clean();
}

#[test]
fn a_dummy_interface_carries_what_the_application_wants_to_read() {
    let mut node = Node::new();
    let vf = node.a[2].clone();
    let _bound = Vfio::bind(&vf);
    node.look_again();
    node.network("fast", RESOURCE, &sriov(&json!({"mac": MAC, "vlan": 100, "dummyInterface": true, "ipam": pool()})));
    let netns = node.pod("p", "fast", &[(RESOURCE, &vf)]);
    node.add("p", &netns);
    let net1 = Interface::find(&netns, "net1").unwrap();
    assert_eq!((&net1.link["linkinfo"]["info_kind"], &net1.link["ifalias"]), (&json!("dummy"), &json!(vf.pci)));
    assert_eq!((net1.mac(), net1.mtu(), net1.addresses()), (MAC, 1500, vec!["10.11.0.2/24".to_owned()]));
    assert!(net1.routes.iter().any(|route| route["dst"] == "10.12.0.0/16"), "{:?}", net1.routes);
    assert_eq!(node.status("p", "net1")["ips"], json!(["10.11.0.2"]));
    node.call("CHECK", "p", &netns).ok();
    ip_in(&netns, "link set net1 mtu 1400");
    node.differs(&netns, "fast", "net1 has MTU 1400, the result says 1500");
    ip_in(&netns, "link set net1 mtu 1500");
    ip_in(&netns, "addr del 10.11.0.2/24 dev net1");
    node.differs(&netns, "fast", "net1 does not have 10.11.0.2/24 any more");
    node.del("p", &netns);
    assert!(Interface::find(&netns, "net1").is_none(), "it is removed");
    node.assert_as_before();
    // A link of the pod's own has the name: it stays, and nothing else does.
    let netns = node.pod("p", "fast", &[(RESOURCE, &vf)]);
    ip_in(&netns, "link add net1 type dummy");
    let text = node.call("ADD", "p", &netns).fails(101);
    assert!(text.contains("cannot be named net1: the pod already has an interface of that name"), "{text}");
    assert_eq!(names("/var/lib/cni/networks/fast").iter().filter(|name| name.starts_with("10.")).count(), 0);
    assert!(Interface::find(&netns, "net1").is_some(), "it was the pod's");
    node.assert_as_before();
}

#[test]
fn the_drop_in_does_the_same_for_a_vfio_vf() {
    let mut node = face::node();
    let vf = node.a[6].clone();
    let _bound = Vfio::bind(&vf);
    node.look_again();
    let netns = node.world.netns();
    let conf = face::with(face::conf(&vf), json!({"mac": MAC, "vlan": 100, "ipam": pool()}));
    let result = face::call(&node, "ADD", "p", &netns, &conf).ok();
    let interface = json!({"name": "net1", "mac": MAC, "mtu": 1500, "sandbox": netns, "pciID": vf.pci});
    assert_eq!((&result["interfaces"], &result["ips"][0]["address"]), (&json!([interface]), &json!("10.11.0.2/24")));
    assert!(Interface::find(&netns, "net1").is_none());
    assert_eq!(vf.row()["vlan_list"][0]["vlan"], 100);
    let mut conf_of_check = conf.clone();
    conf_of_check["prevResult"] = result;
    face::call(&node, "CHECK", "p", &netns, &conf_of_check).ok();
    face::call(&node, "DEL", "p", &netns, &conf).ok();
    node.assert_as_before();
}

#[test]
fn what_a_vfio_vf_cannot_have_is_refused_beforehand() {
    let mut node = Node::new();
    let (vf, other) = (node.a[3].clone(), node.a[4].clone());
    let _bound = Vfio::bind(&vf);
    node.look_again();
    node.network("mtu", RESOURCE, &sriov(&json!({"mtu": 9000})));
    node.network("plain", RESOURCE, &sriov(&json!({"ipam": pool()})));
    node.network("kernel", "bed.test/kernel", &sriov(&json!({})));
    node.network("dummy", "bed.test/kernel", &sriov(&json!({"dummyInterface": true})));
    node.network("policy", RESOURCE, &sriov(&json!({"restorePolicy": "tidy"})));
    let refused = |networks: &str, devices: &[(&str, &Vf)], code: u64, expected: &str| {
        let netns = node.pod("p", networks, devices);
        let text = node.call("ADD", "p", &netns).fails(code);
        assert!(text.contains(expected), "{text}\nwanted: {expected}");
        assert!(Interface::find(&netns, "eth0").is_none());
        node.assert_as_before();
    };
    let mine = [(RESOURCE, &vf)];
    refused("mtu", &mine, 7, &format!("mtu of VF {}: it is bound to vfio-pci, a driver for user space", vf.pci));
    let way_out = json!([{"name": "plain", "default-route": ["10.11.0.1"]}]).to_string();
    refused(&way_out, &mine, 7, &format!("default-route: VF {} is bound to vfio-pci", vf.pci));
    refused(
        "dummy",
        &[("bed.test/kernel", &other)],
        7,
        &format!("dummyInterface of VF {}: it is bound to igbvf", other.pci),
    );
    refused("policy", &mine, 7, "restorePolicy \"tidy\" invalid: value must be \"original\" or \"clean\"");
    // Every function of this machine has an IOMMU group of its own; a list that has a second member is put in its place.
    let group = fs::canonicalize(device(&vf).join("iommu_group")).unwrap();
    let number = group.file_name().unwrap().to_str().unwrap();
    let cover = Cover::over(group.join("devices"));
    for member in [&vf.pci, &other.pci, "0000:00:00.0"] {
        symlink(device(&vf).with_file_name(member), group.join("devices").join(member)).unwrap();
    }
    refused(
        "plain",
        &mine,
        100,
        &format!("VF {} shares IOMMU group {number} with {}: whoever has the VF", vf.pci, other.pci),
    );
    let netns = node.pod("p", "plain,kernel", &[(RESOURCE, &vf), ("bed.test/kernel", &other)]);
    node.add("p", &netns);
    node.del("p", &netns);
    drop(cover);
    node.assert_as_before();
}

#[test]
fn a_vf_of_a_vm_is_attached_without_its_pf() {
    let node = Node::new();
    let (vf, peer) = (&node.a[5], &node.b[5]);
    node.network("plain", RESOURCE, &sriov(&json!({"ipam": pool()})));
    node.network("mine", RESOURCE, &sriov(&json!({"mac": MAC, "mtu": 1400, "ipam": pool()})));
    node.network("vlan", RESOURCE, &sriov(&json!({"vlan": 5, "trust": "on"})));
    let cover = without_pf(vf);
    let refused = |networks: &str, device: &str, code: u64, expected: &str| {
        let netns = node.pod_with("p", networks, &[(RESOURCE, device)]);
        let text = node.call("ADD", "p", &netns).fails(code);
        assert!(text.contains(expected), "{text}\nwanted: {expected}");
        node.world.assert_clean();
    };
    let elsewhere = format!(
        "vlan 5, trust on of VF {0}: the PF of VF {0} is not visible in this machine: set it where the PF is",
        vf.pci
    );
    refused("vlan", &vf.pci, 7, &elsewhere);
    let text = "device 0000:02:00.0 is no virtual function: no physfn, and it can have VFs of its own";
    refused("plain", "0000:02:00.0", 100, text);
    refused("plain", "0000:00:00.0", 100, "no physfn, and it is no network device (class 0x060000)");
    ip(&format!("addr add 192.0.2.7/24 dev {}", vf.name));
    ip(&format!("link set {} up", vf.name));
    refused("plain", &vf.pci, 100, &format!("its interface {} is up and has the address 192.0.2.7/24", vf.name));
    ip(&format!("link set {} down", vf.name));
    ip(&format!("addr flush dev {}", vf.name));
    node.assert_as_before();

    let one = node.pod("p", "mine", &[(RESOURCE, vf)]);
    let two = node.pod("two", "plain", &[(RESOURCE, peer)]);
    node.add("p", &one);
    node.add("two", &two);
    let net1 = Interface::find(&one, "net1").unwrap();
    assert_eq!((net1.mac(), net1.mtu(), net1.addresses()), (MAC, 1400, vec!["10.11.0.2/24".to_owned()]));
    assert!(ping(&one, &node.address("two", "net1")));
    node.call("CHECK", "p", &one).ok();
    node.del("p", &one);
    node.del("two", &two);
    node.assert_as_before();
    // Out of a namespace that died.
    let one = node.pod("p", "mine", &[(RESOURCE, vf)]);
    node.add("p", &one);
    node.world.delete_netns(&one);
    node.del("p", &one);
    drop(cover);
    node.assert_as_before();
}
