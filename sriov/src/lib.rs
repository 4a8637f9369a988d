//! Virtual functions of SR-IOV NICs: find one by its PCI address, put it into a pod as asked for, give it back as it
//! was found, and know who holds it. Stands on `sandbox` alone and knows neither CNI nor Kubernetes. The order of
//! calls: [`Leases::lock`], [`Leases::acquire`], [`find`], (the caller writes its record), [`attach()`], or
//! [`attach_userspace`] for a VF without an interface; [`check()`] whenever asked; and to undo, at any time and from any
//! state, [`restore`] with what [`find`] returned, then [`Leases::release`].

mod alias;
mod attach;
mod check;
mod error;
mod find;
mod iommu;
mod lease;
mod legacy;
mod locate;
mod mac;
mod original;
mod pci;
mod plan;
mod restore;
mod sysfs;
mod userspace;
mod wanted;

pub use alias::{is_owner_alias, original_by_alias, owner_alias};
pub use attach::{Attached, attach};
pub use check::{Difference, check};
pub use error::Error;
pub use find::{find, look};
pub use lease::{Leases, Owner, Standing, VfLock};
pub use legacy::{Cached, SriovCni, release_cached};
pub use original::{Original, OriginalNetdev, OriginalPf};
pub use pci::PciAddress;
pub use restore::{restore, restore_from_anywhere};
pub use sysfs::{PfDevice, Sysfs, VfDevice};
pub use userspace::{AttachedUserspace, attach_userspace};
pub use wanted::{Rate, RawVf, RestorePolicy, Wanted};
