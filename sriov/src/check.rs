//! Whether an attached VF still is what was asked for.

use std::fmt;

use sandbox::{Link, Links, MacAddr, VfReport, VfSetting};

use crate::restore::{pf_index, reports};
use crate::{Error, Original, Rate, Sysfs, Wanted};

/// Something that is not as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What was asked for.
    pub wanted: String,
    /// What is.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wanted {}, found {}", self.wanted, self.found)
    }
}

/// Compares the VF with what is recorded and wanted: plugged in, bound to the driver that it had, every setting at its
/// PF, and `link` (the interface that has its name in the pod, if it is one for the kernel) really its interface. Reads
/// only. `ignores_mac`: somebody after us may have given it another address.
pub async fn check<L: Links>(
    sysfs: &Sysfs,
    host: &L,
    original: &Original,
    wanted: &Wanted,
    link: Option<&Link>,
    ignores_mac: bool,
) -> Result<Vec<Difference>, Error> {
    let device = match sysfs.vf(original.pci) {
        Ok(device) => device,
        Err(Error::NotPresent { pci, .. }) => {
            return Ok(vec![Difference { wanted: format!("VF {pci}"), found: "no such device".to_owned() }]);
        }
        Err(error) => return Err(error),
    };
    let mut differences = Vec::new();
    if device.driver != original.driver {
        let driver = |driver: Option<String>| format!("driver {}", driver.as_deref().unwrap_or("none"));
        let (wanted, found) = (driver(original.driver.clone()), driver(device.driver));
        differences.push(Difference { wanted, found });
    }
    if let Some(link) = link.filter(|link| original.netdev.is_some() && !original.is(link)) {
        let of = link.parent_dev.as_ref().map_or("no device".to_owned(), |device| format!("device {device}"));
        let wanted = format!("{} to be VF {}", link.name, original.pci);
        differences.push(Difference { wanted, found: format!("that of {of}") });
    }
    match reports(host, original, pf_index(sysfs, original)).await {
        Ok(Some((now, _))) => differences.extend(settings_that_differ(wanted, &now, ignores_mac)),
        Ok(None) => {}
        Err(error @ Error::NotReported { .. }) => {
            let wanted = "the VF in its PF's report".to_owned();
            differences.push(Difference { wanted, found: error.to_string() });
        }
        Err(error) => return Err(error),
    }
    Ok(differences)
}

/// The settings at the PF that are not as wanted. What the driver does not report cannot be compared.
fn settings_that_differ(wanted: &Wanted, now: &VfReport, ignores_mac: bool) -> Vec<Difference> {
    let settings = wanted.pf_settings().into_iter().filter(|setting| !(ignores_mac && is_mac(setting)));
    settings
        .filter_map(|wanted| Some((wanted, as_reported(&wanted, now)?)))
        .filter(|(wanted, found)| wanted != found)
        .map(|(wanted, found)| Difference { wanted: wanted.to_string(), found: found.to_string() })
        .collect()
}

fn is_mac(setting: &VfSetting) -> bool {
    matches!(setting, VfSetting::Mac(_))
}

/// The setting of the same kind that the report shows; none if it does not show it.
fn as_reported(setting: &VfSetting, now: &VfReport) -> Option<VfSetting> {
    Some(match *setting {
        VfSetting::Mac(_) => VfSetting::Mac(now.mac.unwrap_or(MacAddr::ZERO)),
        VfSetting::Vlan(_) => VfSetting::Vlan(now.vlan?),
        VfSetting::Rate { min, max } => {
            let found = Rate { min: now.min_tx_rate.unwrap_or(min), max: now.max_tx_rate.unwrap_or(max) };
            VfSetting::Rate { min: found.min, max: found.max }
        }
        VfSetting::SpoofChk(_) => VfSetting::SpoofChk(now.spoofchk?),
        VfSetting::LinkState(_) => VfSetting::LinkState(now.link_state?),
        VfSetting::Trust(_) => VfSetting::Trust(now.trust?),
    })
}

#[cfg(test)]
mod tests {
    use sandbox::{LinkState, VfVlan};

    use super::*;

    #[test]
    fn each_setting_that_differs_is_named_with_both_values_and_silence_is_no_difference() {
        let wanted = Wanted {
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            vlan: Some(VfVlan { id: 100, qos: 3, ..VfVlan::default() }),
            spoofchk: Some(false),
            trust: Some(true),
            rate: Some(Rate { min: 0, max: 200 }),
            link_state: Some(LinkState::Enable),
            ..Wanted::default()
        };
        let mut now = VfReport {
            mac: wanted.mac,
            vlan: wanted.vlan,
            spoofchk: Some(false),
            trust: Some(true),
            link_state: Some(LinkState::Enable),
            min_tx_rate: Some(0),
            max_tx_rate: Some(200),
            ..VfReport::default()
        };
        assert_eq!(settings_that_differ(&wanted, &now, false), []);
        now = VfReport {
            mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
            vlan: Some(VfVlan::default()),
            spoofchk: Some(true),
            trust: Some(false),
            link_state: Some(LinkState::Auto),
            max_tx_rate: Some(0),
            ..now
        };
        let texts = |ignores_mac| -> Vec<String> {
            settings_that_differ(&wanted, &now, ignores_mac).iter().map(ToString::to_string).collect()
        };
        let all = [
            "wanted mac 02:00:00:00:00:01, found mac 02:00:00:00:00:09",
            "wanted vlan 100 qos 3, found vlan 0",
            "wanted max_tx_rate 200, found max_tx_rate 0",
            "wanted spoofchk off, found spoofchk on",
            "wanted link_state enable, found link_state auto",
            "wanted trust on, found trust off",
        ];
        assert_eq!(texts(false), all);
        assert_eq!(texts(true), all[1..]);
        let silent = VfReport { mac: wanted.mac, ..VfReport::default() };
        assert_eq!(settings_that_differ(&wanted, &silent, false), []);
    }
}
