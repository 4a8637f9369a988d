//! The alias of a VF while it is in a pod: it names the owner to whoever looks, and carries what a repair needs that
//! finds neither record nor lease.

use sandbox::{IfName, Links, MacAddr};

use crate::{Error, Original, PciAddress, Sysfs, Wanted, find};

/// What every such alias begins with.
const MARK: &str = "meta-cni: ";
/// What stands before the original state.
const WAS: &str = "; was ";
/// IFALIASZ of linux/if.h, less the final zero.
const LIMIT: usize = 255;

/// The alias for a VF that is about to go to a pod: `meta-cni: POD PLACE; was NAME MAC mtu MTU`, with ` up` if it was,
/// and ` pf MAC` if its PF showed another address for it. A name of a pod that does not fit is cut, nothing else is.
pub fn owner_alias(pod: &str, place: &str, original: &Original) -> String {
    let mut rest = place.to_owned();
    if let Some(netdev) = &original.netdev {
        rest.push_str(&format!("{WAS}{} {} mtu {}", netdev.name, netdev.mac, netdev.mtu));
        if netdev.up {
            rest.push_str(" up");
        }
        if let Some(at_pf) = original.report().and_then(|report| report.mac).filter(|mac| *mac != netdev.mac) {
            rest.push_str(&format!(" pf {at_pf}"));
        }
    }
    if pod.is_empty() {
        return format!("{MARK}{rest}");
    }
    let room = LIMIT.saturating_sub(MARK.len() + 1 + rest.len());
    format!("{MARK}{} {rest}", &pod[..pod.floor_char_boundary(room)])
}

/// Whether an alias is one of ours. In the host it means that the VF was lost by its pod and never given back.
pub fn is_owner_alias(alias: Option<&str>) -> bool {
    alias.is_some_and(|alias| alias.starts_with(MARK))
}

/// The state to give a VF in the host back in that only its alias tells of, for [`crate::restore`]: name, address, MTU
/// and up as the alias says, everything else clean (no VLAN, no limits, spoof check on, trust off, no administrative
/// address). What its driver does not report stays untouched. None if the VF has no alias of ours.
pub async fn original_by_alias<L: Links>(sysfs: &Sysfs, host: &L, pci: PciAddress) -> Result<Option<Original>, Error> {
    let mut found = find(sysfs, host, pci, &Wanted::default()).await?;
    let alias = found.netdev.as_mut().and_then(|netdev| netdev.alias.take());
    let Some(alias) = alias.filter(|alias| is_owner_alias(Some(alias))) else { return Ok(None) };
    found.make_clean();
    if let Some(was) = Was::parse(&alias) {
        put(was, &mut found);
    }
    Ok(Some(found))
}

/// Writes the state of an alias into the one that was found.
fn put(was: Was, found: &mut Original) {
    let Some(netdev) = &mut found.netdev else { return };
    // A permanent address that follows the one in use (igbvf) has to follow it back.
    if netdev.perm_mac == Some(netdev.mac) {
        netdev.perm_mac = Some(was.mac);
    }
    // Whoever set the address did it through the PF, too.
    found.sets_mac = Some(netdev.mac);
    (netdev.name, netdev.mac, netdev.mtu, netdev.up) = (was.name, was.mac, was.mtu, was.up);
    let report = found.pf.as_mut().and_then(|pf| pf.report.as_mut());
    if let Some(at_pf) = report.and_then(|report| report.mac.as_mut()) {
        *at_pf = was.at_pf.unwrap_or(was.mac);
    }
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
        // A pod may have rewritten its VF's alias: only what an interface can have is believed.
        let name = IfName::try_from(words.next()?.to_owned()).ok()?.to_string();
        let mac = words.next()?.parse().ok().filter(|mac: &MacAddr| !mac.is_multicast() && *mac != MacAddr::ZERO)?;
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
            ("; was ../eth0v1 52:54:00:00:00:01 mtu 1500", None),
            ("; was eth0v1 01:54:00:00:00:01 mtu 1500", None),
        ];
        for (alias, wanted) in cases {
            assert_eq!(Was::parse(alias), wanted, "{alias}");
        }
    }
}
