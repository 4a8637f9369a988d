//! Virtual functions of SR-IOV NICs: find one by its PCI address, put it into a pod as asked for, give it back as it
//! was found, and know who holds it. Stands on `sandbox` alone and knows neither CNI nor Kubernetes. The order of
//! calls: [`Leases::lock`], [`Leases::acquire`], [`find`], (the caller writes its record), [`attach`]; and to undo, at
//! any time and from any state, [`restore`] with what [`find`] returned, then [`Leases::release`].

mod attach;
mod error;
mod find;
mod lease;
mod legacy;
mod locate;
mod mac;
mod original;
mod pci;
mod plan;
mod restore;
mod sysfs;
mod wanted;

pub use attach::{Attached, attach};
pub use error::Error;
pub use find::find;
pub use lease::{Leases, Owner, Standing, VfLock};
pub use legacy::{Cached, SriovCni, release_cached};
pub use original::Original;
pub use pci::PciAddress;
pub use restore::restore;
pub use sysfs::{Sysfs, VfDevice};
pub use wanted::{Rate, RawVf, Wanted};
