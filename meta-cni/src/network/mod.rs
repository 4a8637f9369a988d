//! What the pod asked for: the annotation, the definitions it names, the devices kubelet gave, and from all of it the
//! list of attachments; and what the pod is told afterwards. Reads no cluster and touches no kernel.

pub mod network_status;
pub mod selection;

mod attachments;
mod definition;
mod device;
mod unserved;

pub use attachments::{Additions, Attachment, CallScene, Network, plan};
pub use definition::{Definition, RESOURCE_ANNOTATION};
pub use device::Devices;
pub use selection::Selection;
pub use unserved::Unserved;
