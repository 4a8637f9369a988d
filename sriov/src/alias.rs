//! The alias of a VF while it is in a pod: it names the owner to whoever looks, and carries what a repair needs that
//! finds neither record nor lease.

use sandbox::{LinkState, Links, MacAddr, VfReport, VfVlan};

use crate::{Error, Original, PciAddress, Sysfs, Wanted, find};

/// What every such alias begins with.
const MARK: &str = "meta-cni: ";
/// What stands before the original state.
const WAS: &str = "; was ";
/// IFALIASZ of linux/if.h, less the final zero.
const LIMIT: usize = 255;

/// The alias for a VF that `owner` is about to get: `meta-cni: OWNER; was NAME MAC mtu MTU`, with ` up` if it was, and
/// ` pf MAC` if its PF showed another address for it. An owner that does not fit is cut, the state never.
pub fn owner_alias(owner: &str, original: &Original) -> String {
    let mut state = format!("{WAS}{} {} mtu {}", original.name, original.mac, original.mtu);
    if original.up {
        state.push_str(" up");
    }
    if let Some(at_pf) = original.report.as_ref().and_then(|report| report.mac).filter(|mac| *mac != original.mac) {
        state.push_str(&format!(" pf {at_pf}"));
    }
    let room = LIMIT.saturating_sub(MARK.len() + state.len());
    format!("{MARK}{}{state}", &owner[..owner.floor_char_boundary(room)])
}

/// Whether an alias is one of ours. In the host it means that the VF was lost by its pod and never given back.
pub fn is_owner_alias(alias: Option<&str>) -> bool {
    alias.is_some_and(|alias| alias.starts_with(MARK))
}

/// The state to give a VF in the host back in that only its alias tells of, for [`crate::restore`]: name, address, MTU
/// and up as the alias says, everything else clean (no VLAN, no limits, spoof check on, trust off, no administrative
/// address). What its driver does not report stays untouched. None if the VF has no alias of ours.
pub async fn original_by_alias<L: Links>(sysfs: &Sysfs, host: &L, pci: PciAddress) -> Result<Option<Original>, Error> {
    let now = find(sysfs, host, pci, &Wanted::default()).await?;
    Ok(is_owner_alias(now.alias.as_deref()).then(|| clean(now)))
}

fn clean(now: Original) -> Original {
    let mut original = Original { alias: None, promisc: false, allmulti: false, ..now };
    if let Some(report) = &mut original.report {
        *report = VfReport {
            number: report.number,
            mac: report.mac,
            vlan: report.vlan.map(|_| VfVlan::default()),
            spoofchk: report.spoofchk.map(|_| true),
            trust: report.trust.map(|_| false),
            link_state: report.link_state.map(|_| LinkState::Auto),
            min_tx_rate: report.min_tx_rate.map(|_| 0),
            max_tx_rate: report.max_tx_rate.map(|_| 0),
        };
    }
    let Some(was) = now.alias.as_deref().and_then(Was::parse) else { return original };
    // A permanent address that follows the one in use (igbvf) has to follow it back.
    if original.perm_mac == Some(now.mac) {
        original.perm_mac = Some(was.mac);
    }
    if let Some(at_pf) = original.report.as_mut().and_then(|report| report.mac.as_mut()) {
        *at_pf = was.at_pf.unwrap_or(was.mac);
        // Whoever set the address did it through the PF, too.
        original.sets_mac = Some(now.mac);
    }
    Original { name: was.name, mac: was.mac, mtu: was.mtu, up: was.up, ..original }
}

/// The state in an alias.
#[derive(Debug, PartialEq, Eq)]
struct Was {
    name: String,
    mac: MacAddr,
    mtu: u32,
    up: bool,
    /// Another address that the PF showed.
    at_pf: Option<MacAddr>,
}

impl Was {
    fn parse(alias: &str) -> Option<Self> {
        let (_, state) = alias.rsplit_once(WAS)?;
        let mut words = state.split(' ');
        let (name, mac) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let mtu = (words.next()? == "mtu").then(|| words.next()?.parse().ok()).flatten()?;
        let mut rest = words.peekable();
        let up = rest.next_if_eq(&"up").is_some();
        let at_pf = match rest.next() {
            Some("pf") => Some(rest.next()?.parse().ok()?),
            Some(_) => return None,
            None => None,
        };
        Some(Self { name, mac, mtu, up, at_pf })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_in_an_alias_is_understood_or_not_believed() {
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
        let was = |up, at_pf| Some(Was { name: "eth0v1".to_owned(), mac, mtu: 1500, up, at_pf });
        let cases = [
            ("meta-cni: default/p net1; was eth0v1 52:54:00:00:00:01 mtu 1500", was(false, None)),
            ("meta-cni: x; was y; was eth0v1 52:54:00:00:00:01 mtu 1500 up", was(true, None)),
            ("; was eth0v1 52:54:00:00:00:01 mtu 1500 pf 00:00:00:00:00:00", was(false, Some(MacAddr::ZERO))),
            ("; was eth0v1 52:54:00:00:00:01 mtu 1500 up pf 52:54:00:00:00:01", was(true, Some(mac))),
            ("; was eth0v1 52:54:00:00:00:01", None),
            ("; was eth0v1 52:54:00:00:00:01 mtu much", None),
            ("; was eth0v1 52:54:00:00:00:01 mtu 1500 pf", None),
            ("; was eth0v1 52:54:00:00:00:01 mtu 1500 and more", None),
            ("meta-cni: default/p net1", None),
        ];
        for (alias, wanted) in cases {
            assert_eq!(Was::parse(alias), wanted, "{alias}");
        }
    }
}
