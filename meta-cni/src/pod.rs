//! Which pod a call is for.

use crate::cni::CniArgs;

/// The pod a call is for, as the runtime names it in `CNI_ARGS`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID as kubelet knows it; for a static pod that is not the API server's.
    #[serde(default)]
    pub uid: String,
}

impl PodName {
    /// The pod named in the arguments, if there is one: runtimes without Kubernetes name none.
    #[must_use]
    pub fn of_args(args: &CniArgs) -> Option<Self> {
        let text = |key| args.get(key).to_owned();
        let pod = Self { namespace: text("K8S_POD_NAMESPACE"), name: text("K8S_POD_NAME"), uid: text("K8S_POD_UID") };
        if pod.namespace.is_empty() || pod.name.is_empty() { None } else { Some(pod) }
    }

    /// As people write it: namespace and name.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
