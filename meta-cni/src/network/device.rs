//! Which device serves which network, when a definition names a resource.

use std::collections::{BTreeMap, BTreeSet};

use crate::cni::Error;

/// The devices that kubelet gave to a pod, by resource. IDs are opaque.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Devices(BTreeMap<String, BTreeSet<String>>);

impl Devices {
    /// Adds what one container of the pod was given.
    pub fn add(&mut self, resource: &str, ids: impl IntoIterator<Item = String>) {
        self.0.entry(resource.to_owned()).or_default().extend(ids);
    }

    /// Gives each network of a resource one device: sorted IDs in the order of the networks, none twice. The networks
    /// are pairs of a name for messages and the resource, if any.
    ///
    /// # Errors
    /// [`Error::Config`] naming networks and devices when there are fewer devices than networks.
    pub fn assign(&self, networks: &[(String, Option<String>)]) -> Result<Vec<Option<String>>, Error> {
        let none = BTreeSet::new();
        let mut errors = Vec::new();
        for resource in networks.iter().filter_map(|(_, resource)| resource.as_deref()).collect::<BTreeSet<_>>() {
            let wanting: Vec<&str> = networks
                .iter()
                .filter(|(_, wanted)| wanted.as_deref() == Some(resource))
                .map(|(name, _)| name.as_str())
                .collect();
            let given = self.0.get(resource).unwrap_or(&none);
            if given.len() < wanting.len() {
                errors.push(Error::Config(shortage(resource, &wanting, given)).refusing(wanting.join(", ")));
            }
        }
        if let Some(error) = Error::join(errors) {
            return Err(error);
        }
        let mut left: BTreeMap<&str, _> =
            self.0.iter().map(|(resource, ids)| (resource.as_str(), ids.iter())).collect();
        let next = |resource: &str| left.get_mut(resource).and_then(Iterator::next).cloned();
        let mut next = next;
        Ok(networks.iter().map(|(_, resource)| resource.as_deref().and_then(&mut next)).collect())
    }
}

fn shortage(resource: &str, wanting: &[&str], given: &BTreeSet<String>) -> String {
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let found = if given.is_empty() { "none".to_owned() } else { given.join(", ") };
    format!(
        "resource {resource}: {} device(s) wanted for {}, kubelet gave the pod {found}: request as many {resource} in the \
         pod's resources as it has networks of it",
        wanting.len(),
        wanting.join(", "),
    )
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
}
