//! Pure decisions: what has to be changed to get from what is to what was.

use sandbox::{Link, LinkChange, VfReport, VfSetting};

use crate::original::OriginalNetdev;

/// The settings through the PF (the address apart) that differ from the original. What was not reported then is left
/// alone, for nobody knows what it was.
pub(crate) fn pf_settings_back(original: &VfReport, now: &VfReport) -> Vec<VfSetting> {
    fn differing<T: PartialEq + Copy>(was: Option<T>, is: Option<T>) -> Option<T> {
        was.filter(|_| is != was)
    }
    let mut settings = Vec::new();
    settings.extend(differing(original.vlan, now.vlan).map(VfSetting::Vlan));
    if (original.min_tx_rate, original.max_tx_rate) != (now.min_tx_rate, now.max_tx_rate)
        && let Some(max) = original.max_tx_rate
    {
        settings.push(VfSetting::Rate { min: original.min_tx_rate.unwrap_or(0), max });
    }
    settings.extend(differing(original.spoofchk, now.spoofchk).map(VfSetting::SpoofChk));
    settings.extend(differing(original.link_state, now.link_state).map(VfSetting::LinkState));
    settings.extend(differing(original.trust, now.trust).map(VfSetting::Trust));
    settings
}

/// The properties of the interface (name, alternative names, address and up/down apart) that differ.
pub(crate) fn link_changes_back(original: &OriginalNetdev, now: &Link) -> Vec<LinkChange> {
    let mut changes = Vec::new();
    if now.mtu != original.mtu {
        changes.push(LinkChange::Mtu(original.mtu));
    }
    if now.txqlen != original.txqlen {
        changes.push(LinkChange::TxQueueLen(original.txqlen));
    }
    if now.alias != original.alias {
        changes.push(LinkChange::Alias(original.alias.clone().unwrap_or_default()));
    }
    if now.promisc != original.promisc {
        changes.push(LinkChange::Promisc(original.promisc));
    }
    if now.allmulti != original.allmulti {
        changes.push(LinkChange::AllMulti(original.allmulti));
    }
    changes
}

/// Alternative names to delete and to add.
pub(crate) fn altnames_back<'a>(original: &'a OriginalNetdev, now: &'a Link) -> (Vec<&'a str>, Vec<&'a str>) {
    let only_in = |these: &'a [String], those: &'a [String]| -> Vec<&'a str> {
        these.iter().filter(|name| !those.contains(name)).map(String::as_str).collect()
    };
    (only_in(&now.altnames, &original.altnames), only_in(&original.altnames, &now.altnames))
}

#[cfg(test)]
mod tests {
    use sandbox::{LinkState, VfVlan};

    use super::*;

    #[test]
    fn what_was_not_reported_is_never_set() {
        let silent = VfReport::default();
        let now = VfReport {
            vlan: Some(VfVlan { id: 5, ..VfVlan::default() }),
            spoofchk: Some(false),
            trust: Some(true),
            link_state: Some(LinkState::Enable),
            max_tx_rate: Some(9),
            ..VfReport::default()
        };
        assert_eq!(pf_settings_back(&silent, &now), []);
        assert_eq!(pf_settings_back(&now, &now), []);
        let before = VfReport { trust: Some(false), min_tx_rate: Some(0), max_tx_rate: Some(0), ..now.clone() };
        let back = [VfSetting::Rate { min: 0, max: 0 }, VfSetting::Trust(false)];
        assert_eq!(pf_settings_back(&before, &now), back);
    }
}
