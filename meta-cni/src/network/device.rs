//! Which device serves which network, when a definition names a resource.

use std::collections::{BTreeMap, BTreeSet};

use crate::cni::Error;

/// The devices of a pod, by resource: from kubelet, and from the pod's resource claims. IDs are opaque.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Devices {
    given: BTreeMap<String, BTreeSet<String>>,
    claims: Vec<String>,
    passed_over: Vec<String>,
    /// One of those may be there at the next try.
    incomplete: bool,
}

impl Devices {
    /// Adds what one container or claim of the pod was given.
    pub fn add(&mut self, resource: &str, ids: impl IntoIterator<Item = String>) {
        self.given.entry(resource.to_owned()).or_default().extend(ids);
    }

    /// Notes that the devices of a resource claim are among them.
    pub fn note_claim(&mut self, name: &str) {
        self.claims.push(name.to_owned());
    }

    /// Notes why a device of the pod is not among them: to be told if one is wanting.
    pub fn pass_over(&mut self, reason: String) {
        self.passed_over.push(reason);
    }

    /// The same of one that is to come: if it is wanting, the pod is to be tried again.
    pub fn pass_over_for_now(&mut self, reason: String) {
        self.incomplete = true;
        self.pass_over(reason);
    }

    /// Adds others; a device that both have is one.
    pub fn merge(&mut self, other: Self) {
        for (resource, ids) in other.given {
            self.add(&resource, ids);
        }
        self.claims.extend(other.claims);
        self.passed_over.extend(other.passed_over);
        self.incomplete |= other.incomplete;
    }

    /// Whether there are as many devices of each resource as networks of it. The networks are pairs of a name for
    /// messages and the resource, if any.
    #[must_use]
    pub fn suffice(&self, networks: &[(String, Option<String>)]) -> bool {
        self.shortages(networks).is_empty()
    }

    /// Gives each network of a resource one device: sorted IDs in the order of the networks, none twice.
    ///
    /// # Errors
    /// [`Error::Config`] naming networks and devices when there are fewer devices than networks; [`Error::TryLater`] if that
    /// may pass.
    pub fn assign(&self, networks: &[(String, Option<String>)]) -> Result<Vec<Option<String>>, Error> {
        if let Some(error) = Error::join(self.shortages(networks)) {
            return Err(error);
        }
        let mut left: BTreeMap<&str, _> =
            self.given.iter().map(|(resource, ids)| (resource.as_str(), ids.iter())).collect();
        let next = |resource: &str| left.get_mut(resource).and_then(Iterator::next).cloned();
        let mut next = next;
        Ok(networks.iter().map(|(_, resource)| resource.as_deref().and_then(&mut next)).collect())
    }

    /// What is wanting, an error for each resource.
    fn shortages(&self, networks: &[(String, Option<String>)]) -> Vec<Error> {
        let none = BTreeSet::new();
        let mut errors = Vec::new();
        for resource in networks.iter().filter_map(|(_, resource)| resource.as_deref()).collect::<BTreeSet<_>>() {
            let wanting: Vec<&str> = networks
                .iter()
                .filter(|(_, wanted)| wanted.as_deref() == Some(resource))
                .map(|(name, _)| name.as_str())
                .collect();
            let given = self.given.get(resource).unwrap_or(&none);
            if given.len() < wanting.len() {
                let text = self.shortage(resource, &wanting, given);
                let shortage = if self.incomplete { Error::TryLater(text) } else { Error::Config(text) };
                errors.push(shortage.refusing(wanting.join(", ")));
            }
        }
        errors
    }

    fn shortage(&self, resource: &str, wanting: &[&str], given: &BTreeSet<String>) -> String {
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let found = if given.is_empty() { "none".to_owned() } else { given.join(", ") };
        let (number, wanting) = (wanting.len(), wanting.join(", "));
        let wanted = format!("resource {resource}: {number} device(s) wanted for {wanting}");
        if self.claims.is_empty() {
            return format!(
                "{wanted}, kubelet gave the pod {found}: request as many {resource} in the pod's resources as it has \
                 networks of it"
            );
        }
        let passed_over: String = self.passed_over.iter().map(|reason| format!("; {reason}")).collect();
        let advice = if self.incomplete {
            format!(
                "their driver has not published all its devices on this node (yet); else ask for as many {resource} as the \
                 pod has networks of it"
            )
        } else {
            format!("ask for as many {resource} as the pod has networks of it")
        };
        format!(
            "{wanted}, kubelet and the pod's resource claims ({}) gave {found}: {advice}{passed_over}",
            self.claims.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, resource: Option<&str>) -> (String, Option<String>) {
        (name.to_owned(), resource.map(str::to_owned))
    }

    #[test]
    fn sorted_ids_in_the_order_of_the_networks() {
        let mut devices = Devices::default();
        devices.add("r/a", ["b".to_owned(), "c".to_owned()]);
        devices.add("r/a", ["a".to_owned()]);
        devices.add("r/b", ["z".to_owned()]);
        let networks =
            [network("n1", Some("r/a")), network("n2", None), network("n3", Some("r/b")), network("n1", Some("r/a"))];
        let given = devices.assign(&networks).unwrap();
        assert_eq!(given, [Some("a"), None, Some("z"), Some("b")].map(|id| id.map(str::to_owned)));
    }

    #[test]
    fn too_few_devices_are_refused_with_both_lists() {
        let mut devices = Devices::default();
        devices.add("r/a", ["x".to_owned()]);
        let networks = [network("n1", Some("r/a")), network("n2", Some("r/a")), network("n3", Some("r/b"))];
        match devices.assign(&networks) {
            Err(Error::Several(errors)) => {
                assert!(errors[0].to_string().contains("2 device(s) wanted for n1, n2, kubelet gave the pod x"));
                assert!(errors[1].to_string().contains("r/b") && errors[1].to_string().contains("none"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_two_sources_have_is_sorted_together_and_counted_once() {
        let mut devices = Devices::default();
        devices.add("r/a", ["b".to_owned(), "d".to_owned()]);
        let networks: Vec<_> = ["n1", "n2", "n3"].map(|name| network(name, Some("r/a"))).into();
        assert!(devices.suffice(&networks[..2]) && !devices.suffice(&networks));
        let mut claimed = Devices::default();
        claimed.add("r/a", ["b".to_owned(), "a".to_owned()]);
        claimed.note_claim("c1");
        claimed.pass_over("device x has no attribute y".to_owned());
        devices.merge(claimed);
        let given = devices.assign(&networks).unwrap();
        assert_eq!(given, ["a", "b", "d"].map(|id| Some(id.to_owned())));
        let four: Vec<_> = networks.iter().cloned().chain([network("n4", Some("r/a"))]).collect();
        let said = devices.assign(&four).unwrap_err().to_string();
        assert!(said.contains(
            "4 device(s) wanted for n1, n2, n3, n4, kubelet and the pod's resource claims (c1) gave a, b, d"
        ));
        assert!(
            said.ends_with("ask for as many r/a as the pod has networks of it; device x has no attribute y"),
            "{said}"
        );
        let mut coming = Devices::default();
        coming.pass_over_for_now("device z is to come".to_owned());
        devices.merge(coming);
        match devices.assign(&four) {
            Err(Error::Refused { source, .. }) => {
                let Error::TryLater(said) = *source else { panic!("{source:?}") };
                assert!(said.contains("gave a, b, d: their driver has not published all"), "{said}");
                assert!(said.ends_with("; device x has no attribute y; device z is to come"), "{said}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(devices.assign(&networks).unwrap().len(), 3, "what is not wanting does not matter");
    }
}
