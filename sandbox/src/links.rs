//! The one seam of the kernel side.

use std::future::Future;
use std::time::Duration;

use crate::{Address, Error, IfName, Link, LinkChange, NewAddress, PfReport, Route, Sysctl, VfSetting};

/// The links, addresses and routes of one network namespace. Each method is one netlink message unless it says so.
/// An interface that is not there is `None` when asked for, and an error with ENODEV when changed.
pub trait Links {
    /// All links (a dump).
    fn list(&self) -> impl Future<Output = Result<Vec<Link>, Error>>;

    /// The link with this index.
    fn by_index(&self, index: u32) -> impl Future<Output = Result<Option<Link>, Error>>;

    /// The link with this name or, where the kernel knows them (5.5), alternative name.
    fn by_name(&self, name: &str) -> impl Future<Output = Result<Option<Link>, Error>>;

    /// The links of this parent device, for a VF its PCI address (a dump). Empty also on kernels before 5.14, which do
    /// not report the parent.
    fn by_parent(&self, device: &str) -> impl Future<Output = Result<Vec<Link>, Error>>;

    /// A PF with what its driver says about each VF, without statistics.
    fn pf_report(&self, pf: u32) -> impl Future<Output = Result<PfReport, Error>>;

    /// Applies all settings to VF number `vf` of PF `pf`. The kernel takes them in [`VfSetting::kernel_order`] and
    /// stops at the first that fails, with the earlier ones applied; its answer does not say which it was.
    fn set_vf(&self, pf: u32, vf: u32, settings: &[VfSetting]) -> impl Future<Output = Result<(), Error>>;

    /// Moves the link into the namespace of `target`, renames it on the way and makes the other changes there, all in one
    /// message. Not atomic: after an error the link may be on either side, under either name, with some of the changes.
    fn move_with(
        &self,
        index: u32,
        target: &Self,
        name: &IfName,
        changes: &[LinkChange],
    ) -> impl Future<Output = Result<(), Error>>
    where
        Self: Sized;

    /// Moves and renames, and changes nothing else.
    fn move_to(&self, index: u32, target: &Self, name: &IfName) -> impl Future<Output = Result<(), Error>>
    where
        Self: Sized,
    {
        self.move_with(index, target, name, &[])
    }

    /// Sets properties of a link.
    fn change(&self, index: u32, changes: &[LinkChange]) -> impl Future<Output = Result<(), Error>>;

    /// Sets properties of the link with this name: for one that has just arrived, whose index is not known.
    fn change_named(&self, name: &IfName, changes: &[LinkChange]) -> impl Future<Output = Result<(), Error>>;

    /// Gives the link another alternative name.
    fn add_altname(&self, index: u32, name: &str) -> impl Future<Output = Result<(), Error>>;

    /// Takes an alternative name away.
    fn del_altname(&self, index: u32, name: &str) -> impl Future<Output = Result<(), Error>>;

    /// Makes a link of kind `dummy`, down; EEXIST if the name is taken.
    fn add_dummy(&self, name: &str) -> impl Future<Output = Result<(), Error>>;

    /// Deletes a link that was made by a message; the kernel refuses it for a device (EOPNOTSUPP).
    fn del_link(&self, index: u32) -> impl Future<Output = Result<(), Error>>;

    /// The addresses of a link, both families (a dump).
    fn addresses(&self, index: u32) -> impl Future<Output = Result<Vec<Address>, Error>>;

    /// The addresses of all links, both families, each with the index of its link (a dump).
    fn all_addresses(&self) -> impl Future<Output = Result<Vec<(u32, Address)>, Error>>;

    /// Adds an address.
    fn add_address(&self, index: u32, address: &NewAddress) -> impl Future<Output = Result<(), Error>>;

    /// Deletes an address.
    fn del_address(&self, index: u32, address: &Address) -> impl Future<Output = Result<(), Error>>;

    /// The unicast routes of all tables but `local`, both families (a dump).
    fn routes(&self) -> impl Future<Output = Result<Vec<Route>, Error>>;

    /// Adds a route; EEXIST if the kernel has one like it.
    fn add_route(&self, route: &Route) -> impl Future<Output = Result<(), Error>>;

    /// Adds a route beside those with the same destination, table and priority: the kernel prefers it to them in IPv4, and
    /// uses both in IPv6. EEXIST if the very same one is there.
    fn add_route_beside(&self, route: &Route) -> impl Future<Output = Result<(), Error>>;

    /// Deletes exactly this route.
    fn del_route(&self, route: &Route) -> impl Future<Output = Result<(), Error>>;

    /// Writes sysctls below net/ in this namespace (no netlink).
    fn write_sysctls(&self, sysctls: &[Sysctl]) -> impl Future<Output = Result<(), Error>>;

    /// Starts to collect link events. To be called before the state is looked at, so that no change between the look
    /// and the wait is missed. Calling it again costs nothing.
    fn subscribe(&self) -> impl Future<Output = Result<(), Error>>;

    /// Waits until any link of the namespace changed since the last call (true) or `within` has passed (false).
    fn link_event(&self, within: Duration) -> impl Future<Output = Result<bool, Error>>;
}
