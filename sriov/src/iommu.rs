//! Whether a program that drives a VF by itself could reach what is not its own: a device behind an IOMMU is confined
//! to the memory of its group's owner, and the devices of one group are not confined against each other
//! (Documentation/driver-api/vfio.rst).

use std::collections::BTreeSet;
use std::fs;

use crate::sysfs::{link_target, names_in};
use crate::{Error, PciAddress, Sysfs, VfDevice};

/// PCI_BASE_CLASS_BRIDGE: a bridge of the group does no transfers of its own.
const BRIDGE_CLASS: &str = "0x06";

impl Sysfs {
    /// Refuses a VF for user space that shares its IOMMU group with a stranger, or that vfio-pci has without an IOMMU.
    /// `own` are the devices of the same pod, this one included or not. A VF with a kernel driver passes: the kernel is
    /// its driver.
    pub fn check_iommu(&self, device: &VfDevice, own: &BTreeSet<PciAddress>) -> Result<(), Error> {
        let Some(driver) = device.userspace_driver() else { return Ok(()) };
        let pci = device.pci;
        let group = self.device(pci).join("iommu_group");
        let Some(number) = link_target(&group)? else {
            // uio has no use for an IOMMU: whoever binds a device to it has accepted that already.
            return if driver == "vfio-pci" && !self.is_unsafe_allowed() {
                Err(Error::NoIommu { pci })
            } else {
                Ok(())
            };
        };
        let mut strangers = Vec::new();
        for name in names_in(&group.join("devices"))? {
            let is_ours = PciAddress::try_from(name.as_str()).is_ok_and(|member| {
                member == pci
                    || own.contains(&member)
                    || self.class(member).is_ok_and(|class| class.starts_with(BRIDGE_CLASS))
            });
            if !is_ours {
                strangers.push(name);
            }
        }
        if strangers.is_empty() { Ok(()) } else { Err(Error::SharedGroup { pci, group: number, strangers }) }
    }

    /// The administrator lets vfio-pci work without an IOMMU.
    fn is_unsafe_allowed(&self) -> bool {
        let switch = self.root.join("module/vfio/parameters/enable_unsafe_noiommu_mode");
        fs::read_to_string(switch).is_ok_and(|text| text.trim() == "Y")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn pci(text: &str) -> PciAddress {
        PciAddress::try_from(text).unwrap()
    }

    /// A VF at 0000:01:10.0 with that driver, in a VM.
    fn tree(driver: &str) -> (tempfile::TempDir, Sysfs, PciAddress) {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = Sysfs { root: dir.path().to_owned() };
        let vf = pci("0000:01:10.0");
        member(&sysfs, vf, "0x020000");
        symlink(format!("../../../bus/pci/drivers/{driver}"), sysfs.device(vf).join("driver")).unwrap();
        (dir, sysfs, vf)
    }

    /// A device, in group 9 if that exists.
    fn member(sysfs: &Sysfs, pci: PciAddress, class: &str) {
        fs::create_dir_all(sysfs.device(pci)).unwrap();
        fs::write(sysfs.device(pci).join("class"), class).unwrap();
        let devices = sysfs.root.join("kernel/iommu_groups/9/devices");
        if devices.exists() {
            fs::create_dir(devices.join(pci.to_string())).unwrap();
        }
    }

    fn group(sysfs: &Sysfs, vf: PciAddress) {
        fs::create_dir_all(sysfs.root.join("kernel/iommu_groups/9/devices").join(vf.to_string())).unwrap();
        symlink("../../../../kernel/iommu_groups/9", sysfs.device(vf).join("iommu_group")).unwrap();
    }

    fn check(sysfs: &Sysfs, vf: PciAddress, own: &[PciAddress]) -> Result<(), Error> {
        sysfs.check_iommu(&sysfs.vf(vf).unwrap(), &own.iter().copied().collect())
    }

    #[test]
    fn a_group_shared_with_a_stranger_is_refused_with_its_members() {
        let (_dir, sysfs, vf) = tree("vfio-pci");
        group(&sysfs, vf);
        check(&sysfs, vf, &[]).unwrap();
        member(&sysfs, pci("0000:00:01.0"), "0x060400");
        check(&sysfs, vf, &[]).unwrap();
        let (one, two) = (pci("0000:01:10.2"), pci("0000:01:10.4"));
        member(&sysfs, one, "0x020000");
        member(&sysfs, two, "0x020000");
        match check(&sysfs, vf, &[one]) {
            Err(Error::SharedGroup { group, strangers, .. }) => {
                assert_eq!((group.as_str(), strangers.as_slice()), ("9", &[two.to_string()][..]));
            }
            other => panic!("{other:?}"),
        }
        check(&sysfs, vf, &[two, one, vf]).unwrap();
    }

    #[test]
    fn without_an_iommu_vfio_needs_the_administrators_word_and_uio_does_not() {
        let (_dir, sysfs, vf) = tree("vfio-pci");
        assert!(matches!(check(&sysfs, vf, &[]), Err(Error::NoIommu { pci }) if pci == vf));
        let parameters = sysfs.root.join("module/vfio/parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::write(parameters.join("enable_unsafe_noiommu_mode"), "N\n").unwrap();
        assert!(matches!(check(&sysfs, vf, &[]), Err(Error::NoIommu { .. })));
        fs::write(parameters.join("enable_unsafe_noiommu_mode"), "Y\n").unwrap();
        check(&sysfs, vf, &[]).unwrap();
        for driver in ["uio_pci_generic", "igb_uio", "igbvf"] {
            let (_dir, sysfs, vf) = tree(driver);
            check(&sysfs, vf, &[]).unwrap();
        }
    }
}
