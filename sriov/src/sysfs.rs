//! What sysfs tells about a VF and its PF (Documentation/ABI/testing/sysfs-bus-pci: physfn, virtfnN, sriov_numvfs).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, PciAddress};

/// Drivers that hand a device to a program in user space; it has no interface then.
const USERSPACE: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// PCI_BASE_CLASS_NETWORK.
const NETWORK_CLASS: &str = "0x02";

/// A tree of sysfs; `/sys` on a node.
#[derive(Debug, Clone)]
pub struct Sysfs {
    /// Where it is mounted.
    pub root: PathBuf,
}

/// A network interface as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netdev {
    /// Its name.
    pub name: String,
    /// Its index in the namespace of the sysfs mount.
    pub index: u32,
}

/// A VF as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfDevice {
    /// Its address.
    pub pci: PciAddress,
    /// Its driver.
    pub driver: Option<String>,
    /// Its interface, while it is in the host.
    pub netdev: Option<Netdev>,
    /// Its PF; none if that is not in this machine: a VM that was given VFs.
    pub pf: Option<PfDevice>,
}

/// The PF of a VF as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PfDevice {
    /// Its address.
    pub pci: PciAddress,
    /// N of its `virtfnN` that is the VF: the number that netlink uses.
    pub number: u32,
    /// How many VFs it has (sriov_numvfs).
    pub numvfs: u32,
    /// Its driver.
    pub driver: Option<String>,
    /// Its interfaces: none if they are in another namespace; in switchdev mode representors are left out.
    pub netdevs: Vec<Netdev>,
}

impl VfDevice {
    /// The driver's name if it is one for user space.
    pub fn userspace_driver(&self) -> Option<&str> {
        self.driver.as_deref().filter(|driver| USERSPACE.contains(driver))
    }
}

impl PfDevice {
    /// Its one interface; `vf` is for the message.
    pub fn netdev(&self, vf: PciAddress) -> Result<&Netdev, Error> {
        let why = match self.netdevs.as_slice() {
            [one] => return Ok(one),
            [] => match &self.driver {
                None => " (it has no driver)".to_owned(),
                Some(driver) => format!(" (driver {driver}): is it in another namespace?"),
            },
            several => {
                let names: Vec<&str> = several.iter().map(|netdev| netdev.name.as_str()).collect();
                format!(", or rather several: {}", names.join(", "))
            }
        };
        Err(Error::NoPf { pci: vf, pf: self.pci, why })
    }
}

impl Sysfs {
    pub(crate) fn device(&self, pci: PciAddress) -> PathBuf {
        self.root.join("bus/pci/devices").join(pci.to_string())
    }

    /// True while the device is plugged in.
    pub fn is_present(&self, pci: PciAddress) -> bool {
        // Any other error than "not there" must not be taken for an unplugged device.
        !matches!(fs::symlink_metadata(self.device(pci)), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// All about the VF at `pci`.
    pub fn vf(&self, pci: PciAddress) -> Result<VfDevice, Error> {
        let device = self.device(pci);
        if !self.is_present(pci) {
            return Err(Error::NotPresent { pci, path: device });
        }
        let pf = match link_target(&device.join("physfn"))? {
            Some(pf) => Some(self.pf(pci, PciAddress::try_from(pf.as_str())?)?),
            None => {
                self.refuse_what_is_no_vf(pci)?;
                None
            }
        };
        let driver = link_target(&device.join("driver"))?;
        Ok(VfDevice { pci, driver, netdev: netdevs(&device.join("net"))?.into_iter().next(), pf })
    }

    fn pf(&self, vf: PciAddress, pci: PciAddress) -> Result<PfDevice, Error> {
        let device = self.device(pci);
        Ok(PfDevice {
            pci,
            number: self.number(vf, pci)?,
            numvfs: read_number(&device.join("sriov_numvfs"))?,
            driver: link_target(&device.join("driver"))?,
            netdevs: pf_netdevs(&device.join("net"))?,
        })
    }

    /// The VFs of all PFs of this machine. In a virtual machine that was given VFs none of them looks like one.
    pub fn vfs(&self) -> Result<Vec<PciAddress>, Error> {
        let names = names_in(&self.root.join("bus/pci/devices"))?;
        let devices = names.iter().filter_map(|name| PciAddress::try_from(name.as_str()).ok());
        Ok(devices.filter(|device| self.device(*device).join("physfn").is_symlink()).collect())
    }

    /// A network function without a PF is a VF that was given to this machine, or a whole NIC, which looks the same;
    /// one that can have VFs is no VF.
    fn refuse_what_is_no_vf(&self, pci: PciAddress) -> Result<(), Error> {
        let not_a_vf = |why: String| Err(Error::NotAVf { pci, why });
        if fs::exists(self.device(pci).join("sriov_totalvfs")).unwrap_or(true) {
            return not_a_vf("it can have VFs of its own (sriov_totalvfs), so it is a PF".to_owned());
        }
        let class = self.class(pci)?;
        if !class.starts_with(NETWORK_CLASS) {
            return not_a_vf(format!("it is no network device (class {class})"));
        }
        Ok(())
    }

    /// The class of a device in hexadecimal: base class, sub-class and interface (pci_ids.h).
    pub(crate) fn class(&self, pci: PciAddress) -> Result<String, Error> {
        let path = self.device(pci).join("class");
        let text = fs::read_to_string(&path).map_err(|source| Error::Sysfs { step: "read", path, source })?;
        Ok(text.trim().to_owned())
    }

    /// The N for which the PF's virtfnN is this VF.
    fn number(&self, pci: PciAddress, pf: PciAddress) -> Result<u32, Error> {
        let wanted = pci.to_string();
        let directory = self.device(pf);
        for name in names_in(&directory)? {
            if let Some(number) = name.strip_prefix("virtfn").and_then(|n| n.parse().ok())
                && link_target(&directory.join(&name))?.as_deref() == Some(&wanted)
            {
                return Ok(number);
            }
        }
        Err(Error::NoVfNumber { pci, pf })
    }
}

/// Last component of a symbolic link's target; none if there is no link.
pub(crate) fn link_target(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Sysfs { step: "follow", path: path.to_owned(), source }),
    }
}

/// The names in a directory, sorted; none if there is no directory.
pub(crate) fn names_in(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Sysfs { step: "list", path: path.to_owned(), source };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn read_number(path: &Path) -> Result<u32, Error> {
    let failed = |source| Error::Sysfs { step: "read", path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    text.trim().parse().map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// The interfaces below a device's `net`. One that vanishes between listing and reading is left out.
fn netdevs(net: &Path) -> Result<Vec<Netdev>, Error> {
    let mut found = Vec::new();
    for name in names_in(net)? {
        match read_number(&net.join(&name).join("ifindex")) {
            Ok(index) => found.push(Netdev { name, index }),
            Err(Error::Sysfs { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The interfaces of a PF without the representors, which share its directory in switchdev mode.
fn pf_netdevs(net: &Path) -> Result<Vec<Netdev>, Error> {
    let mut found = netdevs(net)?;
    if found.len() > 1 {
        found.retain(|netdev| {
            // Reading it fails with EOPNOTSUPP on drivers without port names: then it is no representor either.
            let port = fs::read_to_string(net.join(&netdev.name).join("phys_port_name")).unwrap_or_default();
            !is_representor(port.trim())
        });
    }
    Ok(found)
}

/// `pf0vf3`, `pf1sf88`, `c1pf0vf2`: the kernel's names for representor ports (devlink_port_attrs_set); an uplink is `p0`.
fn is_representor(port: &str) -> bool {
    port.contains("pf")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// PF 0000:01:00.0 with three VFs at 10.0, 10.2, 10.4 (numbers 0, 1, 2).
    fn tree() -> (tempfile::TempDir, Sysfs) {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = Sysfs { root: dir.path().to_owned() };
        let pf = sysfs.device(pci("0000:01:00.0"));
        fs::create_dir_all(pf.join("net/eth0")).unwrap();
        fs::write(pf.join("net/eth0/ifindex"), "4\n").unwrap();
        fs::write(pf.join("sriov_numvfs"), "3\n").unwrap();
        fs::write(pf.join("sriov_totalvfs"), "7\n").unwrap();
        symlink("../../../bus/pci/drivers/igb", pf.join("driver")).unwrap();
        for (number, function) in [0, 2, 4].into_iter().enumerate() {
            let vf = sysfs.device(pci(&format!("0000:01:10.{function}")));
            fs::create_dir_all(vf.join(format!("net/eth{}", number + 1))).unwrap();
            fs::write(vf.join(format!("net/eth{}/ifindex", number + 1)), format!("{}\n", number + 5)).unwrap();
            symlink("../0000:01:00.0", vf.join("physfn")).unwrap();
            symlink("../../../bus/pci/drivers/igbvf", vf.join("driver")).unwrap();
            symlink(format!("../0000:01:10.{function}"), pf.join(format!("virtfn{number}"))).unwrap();
        }
        (dir, sysfs)
    }

    fn pci(text: &str) -> PciAddress {
        PciAddress::try_from(text).unwrap()
    }

    #[test]
    fn a_vf_is_found_with_its_pf_number_drivers_and_names() {
        let (_dir, sysfs) = tree();
        let vf = sysfs.vf(pci("0000:01:10.4")).unwrap();
        let pf = vf.pf.as_ref().unwrap();
        assert_eq!((pf.pci, pf.number, pf.numvfs), (pci("0000:01:00.0"), 2, 3));
        assert_eq!((vf.driver.as_deref(), pf.driver.as_deref()), (Some("igbvf"), Some("igb")));
        assert_eq!(vf.netdev, Some(Netdev { name: "eth3".into(), index: 7 }));
        assert_eq!(pf.netdev(vf.pci).unwrap(), &Netdev { name: "eth0".into(), index: 4 });
        assert_eq!(vf.userspace_driver(), None);
        let all: Vec<String> = sysfs.vfs().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(all, ["0000:01:10.0", "0000:01:10.2", "0000:01:10.4"]);
    }

    #[test]
    fn what_is_no_vf_says_so() {
        let (_dir, sysfs) = tree();
        let missing = pci("0000:09:00.0");
        assert!(matches!(sysfs.vf(missing), Err(Error::NotPresent { pci, .. }) if pci == missing));
        let pf = pci("0000:01:00.0");
        let refused = |pci| match sysfs.vf(pci) {
            Err(error @ Error::NotAVf { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        };
        let text = "device 0000:01:00.0 is no virtual function: no physfn, and it can have VFs of its own (sriov_totalvfs), \
                    so it is a PF; give the PCI address of a VF";
        assert_eq!(refused(pf), text);
        let disk = pci("0000:02:00.0");
        fs::create_dir(sysfs.device(disk)).unwrap();
        assert!(matches!(sysfs.vf(disk), Err(Error::Sysfs { path, .. }) if path.ends_with("0000:02:00.0/class")));
        fs::write(sysfs.device(disk).join("class"), "0x010802\n").unwrap();
        assert!(refused(disk).contains("no physfn, and it is no network device (class 0x010802)"));
        fs::remove_file(sysfs.device(pf).join("virtfn1")).unwrap();
        let lost = pci("0000:01:10.2");
        assert!(matches!(sysfs.vf(lost), Err(Error::NoVfNumber { pci, pf: of }) if (pci, of) == (lost, pf)));
    }

    #[test]
    fn the_pf_is_the_uplink_among_representors_and_never_just_the_first() {
        let (_dir, sysfs) = tree();
        let net = sysfs.device(pci("0000:01:00.0")).join("net");
        for (name, index, port) in [("eth10", "30", "pf0vf0"), ("a-rep", "31", "c1pf0vf1"), ("eth0", "4", "p0")] {
            fs::create_dir_all(net.join(name)).unwrap();
            fs::write(net.join(name).join("ifindex"), index).unwrap();
            fs::write(net.join(name).join("phys_port_name"), port).unwrap();
        }
        let vf = sysfs.vf(pci("0000:01:10.0")).unwrap();
        assert_eq!(vf.pf.unwrap().netdev(vf.pci).unwrap().name, "eth0");
        fs::create_dir_all(net.join("eth9")).unwrap();
        fs::write(net.join("eth9/ifindex"), "40").unwrap();
        let vf = sysfs.vf(pci("0000:01:10.0")).unwrap();
        assert!(matches!(vf.pf.unwrap().netdev(vf.pci), Err(Error::NoPf { why, .. }) if why.contains("eth0, eth9")));
        fs::remove_dir_all(&net).unwrap();
        fs::create_dir(&net).unwrap();
        let vf = sysfs.vf(pci("0000:01:10.0")).unwrap();
        assert!(
            matches!(vf.pf.unwrap().netdev(vf.pci), Err(Error::NoPf { why, .. }) if why.contains("another namespace"))
        );
    }

    #[test]
    fn a_network_device_without_physfn_is_a_vf_whose_pf_is_elsewhere() {
        let (_dir, sysfs) = tree();
        let vf = sysfs.device(pci("0000:01:10.0"));
        fs::remove_file(vf.join("physfn")).unwrap();
        fs::write(vf.join("class"), "0x020000\n").unwrap();
        let found = sysfs.vf(pci("0000:01:10.0")).unwrap();
        assert_eq!((found.pf, found.driver.as_deref()), (None, Some("igbvf")));
        assert_eq!(found.netdev.unwrap().name, "eth1");
    }

    #[test]
    fn a_userspace_driver_is_recognized() {
        let (_dir, sysfs) = tree();
        let driver = sysfs.device(pci("0000:01:10.0")).join("driver");
        fs::remove_file(&driver).unwrap();
        symlink("../../../bus/pci/drivers/vfio-pci", &driver).unwrap();
        assert_eq!(sysfs.vf(pci("0000:01:10.0")).unwrap().userspace_driver(), Some("vfio-pci"));
    }
}
