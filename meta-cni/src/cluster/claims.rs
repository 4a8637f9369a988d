//! The requests for devices by dynamic resource allocation: GET the pod, GET each of its claims, LIST what each driver
//! publishes on the node. Only for a pod whose networks want more devices than kubelet told of.

use std::collections::BTreeMap;

use http::Method;
use serde_json::Value;

use super::{
    Pod,
    api_server::{ApiServer, Failure},
    dra::{Allocated, ClaimingPod},
    slices::{Lack, Slices},
};
use crate::{cni::Error, network::Devices, pod::PodName};

const API: &str = "/apis/resource.k8s.io/v1";

impl ApiServer {
    /// The devices of a pod's resource claims; nothing for a pod without claims.
    pub(super) async fn claimed_devices(&self, pod: &PodName) -> Result<Devices, Error> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
        let what = format!("pod {}/{}", pod.namespace, pod.name);
        let object = self.get(&path).await.map_err(|failure| failure.into_error("get", &what))?;
        let known = Pod::from_object(&object);
        let uid = known.uid.clone().unwrap_or_default();
        if !known.is_static() && !pod.uid.is_empty() && uid != pod.uid {
            return Err(Error::TryLater(format!(
                "{what} is gone: the runtime asks for the one with UID {}, the API server has {uid}",
                pod.uid
            )));
        }
        let claiming = ClaimingPod::read(object)?;
        let mut by_driver: BTreeMap<String, Vec<Allocated>> = BTreeMap::new();
        let mut devices = Devices::default();
        for name in claiming.claims() {
            let title = format!("resource claim {}/{name}", pod.namespace);
            let claim = self.claim(&pod.namespace, name, &title).await?;
            for allocated in claiming.devices_of(&title, claim, &uid)? {
                by_driver.entry(allocated.driver.clone()).or_default().push(allocated);
            }
            devices.note_claim(name);
        }
        for (driver, allocated) in by_driver {
            let slices = self.slices(&driver, claiming.node()).await?;
            for device in allocated {
                match slices.find(&device, claiming.node()) {
                    Ok((resource, id)) => devices.add(&resource, [id]),
                    Err(Lack::AsPublished(reason)) => devices.pass_over(reason),
                    Err(Lack::ForNow(reason)) => devices.pass_over_for_now(reason),
                }
            }
        }
        Ok(devices)
    }

    async fn claim(&self, namespace: &str, name: &str, title: &str) -> Result<Value, Error> {
        let answer = self.get(&format!("{API}/namespaces/{namespace}/resourceclaims/{name}")).await;
        answer.map_err(|failure| match failure {
            Failure::Status(404, message) => Error::TryLater(lacking(title, name, &message)),
            failure => denied(failure, "get", title),
        })
    }

    /// What a driver publishes on a node.
    async fn slices(&self, driver: &str, node: &str) -> Result<Slices, Error> {
        let selected = format!("spec.nodeName%3D{node}%2Cspec.driver%3D{driver}");
        let answer = self.get(&format!("{API}/resourceslices?fieldSelector={selected}")).await;
        let what = format!("ResourceSlices of driver {driver} on node {node}");
        Slices::read(answer.map_err(|failure| denied(failure, "list", &what))?)
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send(Method::GET, path, "application/json", None).await
    }
}

/// Why a claim is not found: there is none of that name, or the server does not know of claims at all.
fn lacking(title: &str, name: &str, message: &str) -> String {
    if message.contains(&format!("\"{name}\"")) {
        return format!("{title} of the pod does not exist (any more)");
    }
    format!(
        "cannot get {title} of the pod: the API server does not serve resource.k8s.io/v1 (Kubernetes 1.34): {message}"
    )
}

fn denied(failure: Failure, verb: &str, what: &str) -> Error {
    match failure {
        Failure::Status(403, message) => Error::TryLater(format!(
            "cannot {verb} {what}: {message}: grant it to the user of the kubeconfig (deploy/overlays/dra/rbac.yaml)"
        )),
        failure => failure.into_error(verb, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_claim_is_not_a_missing_api() {
        let missing = lacking("resource claim ns/c", "c", r#"resourceclaims.resource.k8s.io "c" not found"#);
        assert_eq!(missing, "resource claim ns/c of the pod does not exist (any more)");
        for message in ["404 page not found", "the server could not find the requested resource"] {
            let unserved = lacking("resource claim ns/c", "c", message);
            assert!(
                unserved.contains("does not serve resource.k8s.io/v1") && unserved.ends_with(message),
                "{unserved}"
            );
        }
    }
}
