//! What we, and the programs whose place we take, keep on disk.

use std::{fs, net::IpAddr, os::unix::fs::symlink, path::Path, time::Duration};

use ipam::{Error, Known, Lease, Node, Owner, Pool, Prior, RawIpam, Request, Store};
use meta_cni::{
    Face,
    attach::record::{Call, Entry, Record, Records},
    cni::{CniArgs, Object},
    node::{Layout, multus::MultusFiles},
    settings::Settings,
};
use serde_json::{Value, json};
use sriov::{Leases, PciAddress, SriovCni};

use super::{
    asked::{is_interface, survives_its_text},
    parts, scratch, write,
};

const WAIT: Duration = Duration::from_secs(10);

fn records_in(directory: &Path) -> (Records, Layout) {
    let conf =
        json!({"clusterNetwork": "/etc/cni/primary.conflist", "cniDir": directory, "runDir": directory.join("run")});
    let conf = Object::parse("a constant", conf.to_string().as_bytes()).expect("a constant");
    let layout = Layout::of(&Settings::read(&conf).expect("a constant"), Face::Meta);
    (Records::of(&layout), layout)
}

fn only_record(records: &Records) -> Option<Box<Record>> {
    let mut entries = records.of_container("c0ffee").expect("the journal can be read");
    assert_eq!(entries.len(), 1, "one file, one entry");
    let entry = entries.remove(0);
    let call = Call { conf: "cbr0".into(), container: "c0ffee".into(), if_name: "eth0".into() };
    assert_eq!((entry.call(), entry.interface()), (&call, "net1"), "an entry is what its file is named after");
    match entry {
        Entry::Good(record) => Some(record),
        Entry::Torn { .. } => None,
    }
}

pub(crate) fn record(data: &[u8]) {
    let directory = scratch();
    let (records, layout) = records_in(&directory);
    write(&layout.sandboxes().join("c0ffee/cbr0:eth0:net1.json"), data);
    let Some(record) = only_record(&records) else { return };
    let value = serde_json::to_value(&record).expect("a record is JSON");
    records.write(&record, false).expect("the journal can be written");
    let again = only_record(&records).expect("what we wrote");
    assert_eq!(serde_json::to_value(&again).expect("a record is JSON"), value);
    let _ = (record.runtime_object(), record.title());
    assert!(records.conf(&record).is_err(), "no configuration is kept");
}

pub(crate) fn vf_lease(data: &[u8]) {
    let directory = scratch();
    let pci = PciAddress::try_from("0000:01:10.2").expect("a constant");
    write(&directory.join("vfs/0000:01:10.2.json"), data);
    let leases = Leases { state: directory.clone(), locks: directory.join("lock"), boot_id: "boot".into() };
    assert_eq!(leases.list().expect("the leases can be listed"), [pci]);
    let owner = leases.owner(pci).expect("the lease can be read");
    let torn = leases.is_torn(pci).expect("the lease can be read");
    assert!(!torn || owner.is_none(), "a torn lease has no owner");
    let Some(owner) = owner else { return };
    let _ = Call::of_attachment(&owner.call);
    write(&directory.join("vfs/0000:01:10.2.json"), &serde_json::to_vec(&owner).expect("a lease is JSON"));
    assert_eq!(leases.owner(pci).expect("the lease can be read").as_ref(), Some(&owner));
}

pub(crate) fn pool(data: &[u8]) {
    let [lease, last, entry, complete, withheld] = parts(data);
    let directory = scratch();
    let (pool, beside) = (directory.join("net-a"), directory.join(".meta-cni/net-a"));
    let address = IpAddr::from([10, 0, 0, 2]);
    write(&pool.join("10.0.0.2"), lease);
    write(&pool.join("last_reserved_ip.0"), last);
    for (link, content) in [("owners/c0ffee:eth0", entry), ("complete", complete), ("withheld/10.0.0.3", withheld)] {
        let link = beside.join(link);
        fs::create_dir_all(link.parent().expect("a directory")).expect("the directory beside the pool");
        // What cannot be the text of a link is none.
        let _ = super::text(content).map(|text| symlink(text, link));
    }
    let store = Store::new(&pool, WAIT);
    let leases = store.leases().expect("the pool can be read");
    assert_eq!(leases.len(), 1, "one file, one lease");
    assert!(store.withheld().is_ok() && store.strays().is_ok());
    let holder = holder(&leases[0]);
    let another = Owner::new("other", "eth0").expect("a constant");
    let held = leases[0].container.is_some();
    let raw: RawIpam = serde_json::from_str(r#"{"subnet":"10.0.0.0/29"}"#).expect("a constant");
    let mut config = Pool::new("net-a", &raw, &[], &Node::default()).expect("a constant");
    config.directory.clone_from(&pool);
    let request = Request { owner: &another, requested: &[], prior: Prior::Indexed, lock_wait: WAIT };
    let own = holder.as_ref().is_some_and(|holder| holder.container() == another.container());
    let given = match config.reserve(&request) {
        Ok(reserved) => reserved[0].address.addr(),
        // In the old format a lease is of every interface of its container.
        Err(Error::Duplicate { .. }) if own => return,
        Err(error) => panic!("there is room in the pool: {error}"),
    };
    assert!(!held || given != address, "an address twice");
    let Some(holder) = holder else { return };
    assert!(store.holds(&holder, &[address]).expect("the pool can be read"));
    assert_eq!(store.release(&holder, Known::Indexed).expect("the pool can be written"), [address]);
    assert!(!store.holds(&holder, &[address]).expect("the pool can be read"));
}

/// Who can give the lease back.
fn holder(lease: &Lease) -> Option<Owner> {
    if lease.is_foreign() {
        return None;
    }
    let interface = lease.interface.as_deref().unwrap_or("eth0");
    Some(Owner::new(lease.container.as_deref()?, interface).expect("an owner that can be found again"))
}

pub(crate) fn multus_cache(data: &[u8]) {
    let [delegates, result] = parts(data);
    let directory = scratch();
    write(&directory.join("c0ffee"), delegates);
    write(&directory.join("results/net-a-c0ffee-net1"), result);
    let files = MultusFiles::at(&directory);
    for container in files.containers().expect("the files can be read") {
        let is_id = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        assert!(
            container.starts_with(|c: char| c.is_ascii_alphanumeric()) && container.chars().all(is_id),
            "{container:?}"
        );
    }
    let left = files.left("c0ffee", "eth0").expect("the files can be read").expect("there is a file");
    for delegate in &left.delegates {
        assert!(is_interface(&delegate.interface), "{:?}", delegate.interface);
        delegate.list.as_ref().map(survives_its_text);
        assert!(delegate.previous.as_ref().is_none_or(Value::is_object));
        if let Some(args) = &delegate.args {
            CniArgs::parse(&args.to_text()).expect("what plugins are given in CNI_ARGS");
        }
    }
    files.forget_result("c0ffee", "net1").expect("the files can be written");
    files.forget("c0ffee").expect("the files can be written");
}

pub(crate) fn sriov_cache(data: &[u8]) {
    let [cache, allocation] = parts(data);
    let directory = scratch();
    write(&directory.join("c0ffee-net1"), cache);
    write(&directory.join("pci/0000:01:10.2"), allocation);
    let files = SriovCni { root: directory };
    let cached = files.cached("c0ffee", "net1").expect("the files can be read");
    let all = files.all_cached().expect("the files can be read");
    assert_eq!(all.into_iter().map(|(_, cached)| cached).next(), cached);
    if let Some(cached) = &cached {
        let pci = PciAddress::try_from(cached.device_id.as_str()).map(|pci| pci.to_string());
        assert!(pci.is_err() || pci.is_ok_and(|pci| pci.eq_ignore_ascii_case(&cached.device_id)));
        assert!(!files.has_another(&cached.device_id, "c0ffee", "net1").expect("the files can be read"));
    }
    let pci = PciAddress::try_from("0000:01:10.2").expect("a constant");
    let holder = files.holder(pci).expect("the files can be read");
    assert_eq!(holder.is_none(), allocation.is_empty());
}
