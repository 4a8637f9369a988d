//! ADD of a VF that is bound to a driver for user space: its addresses are reported, for the program to use.

use sandbox::{IfName, Rtnl, read_back};
use sriov::attach_userspace;

use super::{
    BuiltinVf,
    add::set_addresses,
    addresses::{Addresses, BuiltinIpam},
    check::compare,
};
use crate::{
    attach::{Engine, record::Record},
    cni::{CniResult, Error, Interface, PluginList},
};

impl Engine {
    /// Makes the VF of the record ready for a program in the pod, and reports its addresses; a dummy interface, if one is
    /// wanted, has them too. `links` are the host's and the pod's.
    pub(super) async fn add_userspace(
        &self,
        record: &mut Record,
        list: &PluginList,
        vf: &BuiltinVf,
        (ipam, known): (&BuiltinIpam, Addresses),
        (host, pod, name): (&Rtnl, &Rtnl, &IfName),
    ) -> Result<CniResult, Error> {
        let Some(original) = record.vf.clone() else { return Err(Error::Config("no VF is recorded".to_owned())) };
        let attached = attach_userspace(host, pod, &original, &vf.wanted, name).await?;
        if ipam.probes() {
            let why = "the VF is bound to a driver for user space";
            tracing::warn!(why, "nobody was asked whether the addresses are in use");
        }
        let addresses = match ipam {
            BuiltinIpam::Executed(kind) => self.execute_ipam(kind, record, list).await?,
            BuiltinIpam::None | BuiltinIpam::Pool { .. } | BuiltinIpam::Static(_) => known,
        };
        let mut result = addresses.into_result();
        result.interfaces = vec![Interface {
            name: record.interface.clone(),
            mac: attached.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: attached.mtu,
            sandbox: record.netns.clone(),
            pci_id: vf.pci.to_string(),
            ..Interface::default()
        }];
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
        if let Some(dummy) = &attached.dummy {
            set_addresses(pod, dummy, &result).await?;
            compare(&read_back(pod, name).await?, &result)?;
        }
        Ok(result)
    }
}
