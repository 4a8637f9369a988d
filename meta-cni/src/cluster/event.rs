//! What `kubectl describe pod` shows of what we did or refused: one event, and the object that it is at the API server.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Pod;
use crate::{
    cni::{CniResult, Error},
    network::Attachment,
    pod::PodName,
};

/// Who we are in `source` and `reportingComponent`.
const COMPONENT: &str = "meta-cni";
/// The longest message that the server takes of a newer client, and that people read.
const LONGEST_MESSAGE: usize = 1024;
/// The longest name of an object (a DNS subdomain).
const LONGEST_NAME: usize = 253;
/// Kubelet's hash of a static pod's file, which is the UID that it knows the pod by.
const STATIC_UID_ANNOTATION: &str = "kubernetes.io/config.hash";

/// Why there is an event: its `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// An interface was attached. As Multus says it.
    AddedInterface,
    /// A network that the pod names, or its definition, is not there. As Multus says it.
    NoNetworkFound,
    /// A network beside the primary is refused, or failed.
    AttachmentRefused,
    /// A network is attached, but no plugin of it declares to serve what the pod asks of it.
    CapabilityNotServed,
}

impl Reason {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddedInterface => "AddedInterface",
            Self::NoNetworkFound => "NoNetworkFound",
            Self::AttachmentRefused => "AttachmentRefused",
            Self::CapabilityNotServed => "CapabilityNotServed",
        }
    }

    /// Whether all is well.
    #[must_use]
    pub fn is_normal(self) -> bool {
        self == Self::AddedInterface
    }
}

/// One thing that happened to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Why it is said.
    pub reason: Reason,
    /// What is said: at most 1024 bytes.
    pub message: String,
}

impl Event {
    fn new(reason: Reason, message: &str) -> Self {
        Self { reason, message: cut(message, LONGEST_MESSAGE) }
    }

    /// An interface is there, with its addresses: `Add net1 [10.1.1.11/24] from default/net-a`.
    #[must_use]
    pub fn added(interface: &str, network: &str, result: &CniResult) -> Self {
        let addresses: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
        Self::new(Reason::AddedInterface, &format!("Add {interface} [{}] from {network}", addresses.join(" ")))
    }

    /// What the pod asks of a network and no plugin of it declares to serve, if there is anything.
    #[must_use]
    pub fn unserved(attachment: &Attachment) -> Option<Self> {
        if attachment.unserved.is_empty() {
            return None;
        }
        let requests: Vec<&str> = attachment.unserved.iter().map(|unserved| unserved.request).collect();
        let capabilities: Vec<String> =
            attachment.unserved.iter().map(|unserved| format!("\"{}\": true", unserved.capability)).collect();
        let text = format!(
            "{}: the pod asks for {}, which no plugin of the network ({}) declares to serve, so it may have no effect: \
             declare \"capabilities\": {{{}}} of the plugin that does, or take it out of the pod's annotation",
            attachment.title(),
            requests.join(", "),
            attachment.list.kinds(),
            capabilities.join(", ")
        );
        Some(Self::new(Reason::CapabilityNotServed, &text))
    }

    /// One for each network that an error refuses. Nothing for what the primary, the API server or the node is the cause of:
    /// kubelet's own event says that.
    #[must_use]
    pub fn of_refusals(error: &Error) -> Vec<Self> {
        match error {
            Error::Several(errors) => errors.iter().flat_map(Self::of_refusals).collect(),
            Error::Refused { network, missing, source } => match &**source {
                Error::Several(errors) => errors.iter().map(|error| Self::refusal(network, *missing, error)).collect(),
                error => vec![Self::refusal(network, *missing, error)],
            },
            _ => Vec::new(),
        }
    }

    fn refusal(network: &str, missing: bool, error: &Error) -> Self {
        // As libcni, and so kubelet, writes an error.
        let text = match error.details() {
            details if details.is_empty() => error.to_string(),
            details => format!("{error}; {details}"),
        };
        if missing {
            return Self::new(Reason::NoNetworkFound, &text);
        }
        let named = text.starts_with(network) || text.starts_with(&format!("definition {network}"));
        let text = if named { text } else { format!("{network}: {text}") };
        Self::new(Reason::AttachmentRefused, &text)
    }
}

/// The pod that events are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The UID that kubelet knows it by; empty if it is not known.
    pub uid: String,
    /// What names this try alone: kubelet's next one has another container and another namespace.
    pub of_this_try: [String; 2],
}

impl Subject {
    /// A pod. For a static pod the UID is kubelet's, not that of the mirror at the API server: kubelet's own events have it,
    /// and `kubectl describe pod` looks for events of a mirror by that one alone.
    #[must_use]
    pub fn new(pod: &PodName, known: &Pod, of_this_try: [&str; 2]) -> Self {
        let of_runtime = || Some(pod.uid.clone()).filter(|uid| !uid.is_empty());
        let uid = if known.is_static() {
            of_runtime().or_else(|| known.annotations.get(STATIC_UID_ANNOTATION).cloned())
        } else {
            known.uid.clone().or_else(of_runtime)
        };
        Self {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: uid.or_else(|| known.uid.clone()).unwrap_or_default(),
            of_this_try: of_this_try.map(str::to_owned),
        }
    }

    /// The name of the object for an event: the same for the same event of the same pod, so that an ADD that is tried again
    /// makes no second one.
    fn object_name(&self, event: &Event) -> String {
        let mut hash = Sha256::new();
        let message = self
            .of_this_try
            .iter()
            .filter(|own| !own.is_empty())
            .fold(event.message.clone(), |text, own| text.replace(own, ""));
        for text in [&self.uid, event.reason.as_str(), &without_moments(&message)] {
            hash.update(text);
            hash.update([0]);
        }
        let suffix: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let longest = LONGEST_NAME - suffix.len() - 1;
        let stem = &self.name[..self.name.floor_char_boundary(longest)];
        format!("{}.{suffix}", stem.trim_end_matches(['.', '-']))
    }

    /// The object of an event (core/v1), which happens now on a node; the name of that may be unknown, and empty.
    #[must_use]
    pub fn object(&self, event: &Event, node: &str) -> Value {
        let now = json!(Time(Timestamp::now()));
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": self.object_name(event), "namespace": self.namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": self.namespace, "name": self.name},
            "type": if event.reason.is_normal() { "Normal" } else { "Warning" },
            "reason": event.reason.as_str(),
            "message": event.message,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        if !self.uid.is_empty() {
            object["involvedObject"]["uid"] = json!(self.uid);
        }
        if !node.is_empty() {
            object["source"]["host"] = json!(node);
            object["reportingInstance"] = json!(node);
        }
        object
    }
}

/// A text without what is another number at each try: how long something took or still takes, and the ID of a process.
fn without_moments(text: &str) -> String {
    const UNITS: [&str; 9] = ["ns", "µs", "ms", "s", "m", "h", "seconds", "minutes", "hours"];
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(at);
        let (digits, after) =
            number.split_at(number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len()));
        let unit =
            after.strip_prefix(' ').unwrap_or(after).split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
        kept.push_str(before);
        if !UNITS.contains(&unit) && !before.ends_with("process ") {
            kept.push_str(digits);
        }
        rest = after;
    }
    kept + rest
}

/// A text of at most so many bytes; one that was longer ends in an ellipsis.
fn cut(text: &str, longest: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= longest {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(longest - ELLIPSIS.len());
    format!("{}{ELLIPSIS}", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn subject(name: &str) -> Subject {
        Subject {
            namespace: "default".into(),
            name: name.into(),
            uid: "u-1".into(),
            of_this_try: ["0af3".into(), String::new()],
        }
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let long = "ä".repeat(600);
        let message = Event::new(Reason::AttachmentRefused, &long).message;
        assert!(message.len() <= LONGEST_MESSAGE && message.len() > LONGEST_MESSAGE - 4, "{}", message.len());
        assert!(message.ends_with("ä…"));
        let fits = "x".repeat(LONGEST_MESSAGE);
        assert_eq!(Event::new(Reason::AttachmentRefused, &fits).message, fits);
    }

    #[test]
    fn the_name_tells_pod_reason_and_message_and_is_one() {
        let event = |text: &str| Event::new(Reason::AttachmentRefused, text);
        let name = subject("app").object_name(&event("a"));
        assert!(name.starts_with("app.") && name.len() == 20, "{name}");
        assert_eq!(name, subject("app").object_name(&event("a")));
        let other_pod = Subject { uid: "u-2".into(), ..subject("app") };
        let other_reason = Event { reason: Reason::NoNetworkFound, ..event("a") };
        let others = [
            other_pod.object_name(&event("a")),
            subject("app").object_name(&event("b")),
            subject("app").object_name(&other_reason),
        ];
        assert!(!others.contains(&name), "{others:?}");
        let long = format!("{}-.{}", "a".repeat(234), "b".repeat(17));
        let name = subject(&long).object_name(&event("a"));
        assert!(name.len() <= LONGEST_NAME && name.starts_with(&format!("{}.", "a".repeat(234))), "{name}");
        assert!(!name.contains("-.") && !name.contains(".."), "{name}");
    }

    #[test]
    fn the_same_event_of_another_moment_and_of_another_try_has_the_same_name() {
        let name = |container: &str, text: &str| {
            let of_this_try = [container.to_owned(), format!("/var/run/netns/cni-{container}")];
            Subject { of_this_try, ..subject("app") }.object_name(&Event::new(Reason::AttachmentRefused, text))
        };
        for (one, other) in [
            (
                "2 addresses are withheld, the next until 3599 s from now",
                "2 addresses are withheld, the next until 3 s from now",
            ),
            (
                "waited 1.000012s for the lock, held by process 17 (x)",
                "waited 1.2s for the lock, held by process 4711 (x)",
            ),
            (
                "timed out after 1m30.5s: c-1 at /var/run/netns/cni-c-1",
                "timed out after 89s: c-2 at /var/run/netns/cni-c-2",
            ),
        ] {
            let same = name("c-1", one) == name("c-2", &other.replace("89s", "2m0s"));
            assert!(same, "{} and {}", without_moments(one), without_moments(other));
        }
        for (one, other) in
            [("VF 0000:01:10.2", "VF 0000:01:10.3"), ("10.0.0.1/24 is taken", "10.0.0.2/24 is taken"), ("net1", "net2")]
        {
            assert_ne!(name("c-1", one), name("c-1", other));
        }
    }

    #[test]
    fn a_static_pod_is_known_by_kubelets_uid() {
        let annotations = |uid: &str| {
            let pairs = [("kubernetes.io/config.source", "file"), (STATIC_UID_ANNOTATION, uid)];
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect::<BTreeMap<_, _>>()
        };
        let pod = |uid: &str| PodName { namespace: "default".into(), name: "p".into(), uid: uid.into() };
        let known = Pod { uid: Some("mirror".into()), annotations: annotations("hash") };
        let uid = |pod: &PodName, known: &Pod| Subject::new(pod, known, ["", ""]).uid;
        assert_eq!(uid(&pod("of-kubelet"), &known), "of-kubelet");
        assert_eq!(uid(&pod(""), &known), "hash");
        let plain = Pod { uid: Some("of-server".into()), annotations: BTreeMap::new() };
        assert_eq!(uid(&pod(""), &plain), "of-server");
        assert_eq!(uid(&pod("of-runtime"), &Pod::default()), "of-runtime");
    }

    #[test]
    fn each_network_that_is_refused_has_an_event_and_nothing_else_has() {
        let config = |text: &str| Error::Config(text.to_owned());
        let error = Error::Several(vec![
            config("there is no definition default/x").missing("default/x"),
            config("busy").of_network("default/a as net1").refusing("default/a"),
            config("spec.config does not parse").refusing("default/b"),
            Error::Several(vec![config("element 1"), config("element 2")]).refusing(""),
            config("the primary").of_network("cbr0 as eth0"),
            Error::TryLater("the API server".to_owned()),
        ]);
        let events = Event::of_refusals(&error);
        let found: Vec<(Reason, &str)> = events.iter().map(|event| (event.reason, event.message.as_str())).collect();
        assert_eq!(
            found,
            [
                (Reason::NoNetworkFound, "there is no definition default/x"),
                (Reason::AttachmentRefused, "default/a as net1: busy"),
                (Reason::AttachmentRefused, "default/b: spec.config does not parse"),
                (Reason::AttachmentRefused, "element 1"),
                (Reason::AttachmentRefused, "element 2"),
            ]
        );
    }
}
