//! The face `sriov`: one VF for whoever calls us with sriov-cni's configuration. The verbs are those of the meta plugin,
//! over a journal of its own; here is what differs. One attachment, without cluster, primary network and status.

use serde_json::{Map, Value};

use super::{
    Engine,
    add::{Begun, Made},
    builtin::Announcements,
    record::{Record, Stage},
    request::devices_of,
};
use crate::{
    cni::{CniResult, Error, Object, Plugin, PluginList, SpecVersion},
    network::{Additions, Attachment},
    pod::PodName,
};

/// What a runtime adds to a configuration for one call, and keys that have a meaning in a list alone. The result so far is
/// among them: sriov-cni, too, starts a chain and does not look at it.
const NOT_OF_THE_NETWORK: [&str; 7] = [
    "prevResult",
    "runtimeConfig",
    "cniVersions",
    "strict",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
    "plugins",
];

impl Engine {
    /// The one attachment of this call.
    pub(super) fn alone(&self) -> Result<Attachment, Error> {
        let conf = &self.invocation.conf;
        let mut object = conf.clone();
        for key in NOT_OF_THE_NETWORK {
            object.remove(key);
        }
        // What is of one pod is kept in the record, so that the configuration is kept once.
        let device = Some(object.text("deviceID")?).filter(|device| !device.is_empty());
        object.remove("deviceID");
        let cni_args = take_cni_args(&mut object)?;
        object.set("type", "sriov");
        let name = conf.text("name")?;
        Ok(Attachment {
            network: name.clone(),
            interface: self.invocation.if_name.clone(),
            primary: true,
            list: PluginList {
                name,
                version: SpecVersion::of_conf(Some(&conf.text("cniVersion")?))?,
                plugins: vec![Plugin { kind: "sriov".to_owned(), object }],
                disable_check: false,
                disable_gc: false,
            },
            additions: Additions { device, cni_args },
            runtime_config: conf.get("runtimeConfig")?.unwrap_or_default(),
            args: self.invocation.args.clone(),
            default_route: Vec::new(),
            resource: None,
            unserved: Vec::new(),
        })
    }

    /// ADD under the lock.
    pub(super) async fn add_alone(&self, netns: &sandbox::Netns) -> Result<Value, Error> {
        self.settle_earlier_attempts().await?;
        let attachment = self.alone()?;
        self.judge(&attachment, &devices_of(&attachment)).map_err(as_sriov_cni_says)?;
        let pod = PodName::of_args(&self.invocation.args);
        let (call, place) = (self.call()?, (pod.as_ref(), netns));
        let mut begun = Begun::new();
        let reserved = self.reserve_addresses(&call, std::slice::from_ref(&attachment), place, &mut begun).await;
        let mut made = match begun.remove(&0) {
            Some(begun) => begun,
            None => Made::new(self.begin(&call, 0, &attachment, pod.as_ref(), netns)?),
        };
        let mut announcements = Announcements::default();
        let outcome = async {
            // There is no other network that it might be taken for.
            reserved.map_err(Error::without_network)?;
            self.attach(&attachment, netns, &mut made, &mut announcements).await?;
            announcements.finish().await;
            made.record.stage = Stage::Done;
            self.records.write(&made.record, false)
        };
        let outcome = outcome.await;
        match outcome {
            Ok(()) => Ok(made.record.result),
            Err(error) => {
                announcements.stop().await;
                let left = self.roll_back(vec![made]).await;
                Err(if left.is_empty() { error } else { Error::Several(std::iter::once(error).chain(left).collect()) })
            }
        }
    }

    /// A plugin that follows in the chain (tuning) may have changed MAC and MTU. The runtime hands over what the chain made
    /// of the MAC; tuning does not say what it made of the MTU, so that is not compared.
    pub(super) fn expect_what_followed(&self, record: &mut Record) -> Result<(), Error> {
        let Some(previous) = self.invocation.conf.get::<Value>("prevResult")? else { return Ok(()) };
        let version = SpecVersion::of_conf(Some(&self.invocation.conf.text("cniVersion")?))?;
        let chain = CniResult::parse("prevResult", &previous, version)?;
        let mut own = CniResult::parse("the recorded result", &record.result, version)?;
        let of_chain = chain.interfaces.iter().find(|of_chain| {
            own.interfaces.first().is_some_and(|own| (&of_chain.name, &of_chain.sandbox) == (&own.name, &own.sandbox))
        });
        if let (Some(of_chain), Some(own)) = (of_chain, own.interfaces.first_mut()) {
            own.mac.clone_from(&of_chain.mac);
            own.mtu = None;
        }
        record.result = own.to_json(version)?;
        Ok(())
    }
}

/// `args.cni`, taken out of a configuration.
fn take_cni_args(object: &mut Object) -> Result<Map<String, Value>, Error> {
    let Some(mut args) = object.get::<Object>("args")? else { return Ok(Map::new()) };
    let cni_args = args.get::<Map<String, Value>>("cni")?.unwrap_or_default();
    args.remove("cni");
    if args.is_empty() {
        object.remove("args")
    } else {
        object.set("args", &args)
    }
    Ok(cni_args)
}

/// What people search for: sriov-cni's words before those that are said of the configuration.
fn as_sriov_cni_says(error: Error) -> Error {
    use sriov::Error as E;
    let of_device = matches!(&error, Error::Vf(error) if matches!(**error,
        E::NotPresent { .. } | E::NotAVf { .. } | E::NoPf { .. } | E::NoVfNumber { .. } | E::Sysfs { .. }));
    let load = "SRIOV-CNI failed to load netconf: LoadConf()";
    error.of_network(if of_device { format!("{load}: failed to get VF information") } else { load.to_owned() })
}
