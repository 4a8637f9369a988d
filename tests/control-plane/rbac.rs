//! deploy/base/rbac.yaml is enough, and each of its rules is needed.

use serde_json::{Value, json};

use crate::bed::{Bed, USER, wait_for};

/// Whether our user may do something.
fn may(verb: &str, resource: &str) -> bool {
    let user = format!("--as={USER}");
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let subresource = format!("--subresource={subresource}");
    let (_, answer, _) = Bed::kubectl_raw(&["auth", "can-i", verb, resource, &subresource, &user, "-n", "default"], "");
    answer == "yes"
}

/// Replaces the rules of the role and waits until the server goes by them.
pub(crate) fn set_rules(role: &Value, rules: &[Value], gone: Option<(&str, &str)>) {
    let mut role = role.clone();
    role["rules"] = json!(rules);
    role["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    Bed::kubectl(&["replace", "-f", "-"], &role.to_string());
    for (verb, resource) in ACTIONS {
        wait_for("the server knows the new rules", 10, || may(verb, resource) == (gone != Some((verb, resource))));
    }
}

/// What the role allows, in the order of deploy/base/rbac.yaml.
const ACTIONS: [(&str, &str); 4] =
    [("get", "pods"), ("patch", "pods/status"), EVENTS, ("get", "network-attachment-definitions.k8s.cni.cncf.io")];
/// What a pod can do without: `events.rs` shows that.
pub(crate) const EVENTS: (&str, &str) = ("create", "events");

/// The role, and its rules but for the one of an action.
pub(crate) fn role_without(action: (&str, &str)) -> (Value, Vec<Value>) {
    let role: Value =
        serde_json::from_str(&Bed::kubectl(&["get", "clusterrole", "meta-cni", "-o", "json"], "")).unwrap();
    let at = ACTIONS.iter().position(|known| *known == action).unwrap();
    let mut rules = role["rules"].as_array().unwrap().clone();
    rules.remove(at);
    (role, rules)
}

#[test]
fn each_rule_of_the_role_is_needed_and_its_lack_is_named() {
    let bed = Bed::enter();
    bed.macvlans(&[("rights", 14)]);
    let conf = bed.conf(&Bed::service_account());
    let pod = Bed::pod_with("rights", "rights");
    let netns = bed.world.netns();
    let role: Value =
        serde_json::from_str(&Bed::kubectl(&["get", "clusterrole", "meta-cni", "-o", "json"], "")).unwrap();
    let rules = role["rules"].as_array().unwrap().clone();
    assert_eq!(rules.len(), ACTIONS.len());
    for rule in &rules {
        assert_eq!(rule["verbs"].as_array().unwrap().len(), 1, "one verb a rule: {rule}");
        assert_eq!(rule["resources"].as_array().unwrap().len(), 1, "one resource a rule: {rule}");
    }
    for gone in ACTIONS.into_iter().filter(|action| *action != EVENTS) {
        set_rules(&role, &role_without(gone).1, Some(gone));
        let text = bed.call("ADD", &netns, &conf, &pod).fails(11);
        let (verb, resource) = gone;
        let plain = resource.split('.').next().unwrap();
        assert!(text.contains(&format!("cannot {verb} resource \"{plain}\"")), "{text}");
        assert!(text.contains(USER) && text.contains("deploy/base/rbac.yaml"), "{text}");
        bed.assert_undone(&netns);
        // The next one is made from the whole role.
        set_rules(&role, &rules, None);
    }
    bed.call("ADD", &netns, &conf, &pod).ok();
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);
}
