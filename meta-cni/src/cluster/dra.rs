//! Devices by dynamic resource allocation (`resource.k8s.io/v1`): from the claims of a pod to the devices that they were
//! given. The answers of the API server are read here, and in `slices`; who asks for them is `claims`.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::cni::Error;

/// A pod, as far as it tells of its claims.
#[derive(Debug, Deserialize)]
pub(super) struct ClaimingPod {
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    #[serde(deserialize_with = "or_default")]
    resource_claims: Vec<NamedClaim>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    #[serde(deserialize_with = "or_default")]
    resource_claim_statuses: Vec<NamedClaim>,
    extended_resource_claim_status: Option<ExtendedClaim>,
}

/// Of the pod's claims those that it names itself have their name in its spec, and those that were made for it by a
/// template in its status.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedClaim {
    resource_claim_name: Option<String>,
}

/// The claim that the scheduler made for resources that the pod asks for as it asks for those of device plugins.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExtendedClaim {
    resource_claim_name: String,
    #[serde(default, deserialize_with = "or_default")]
    request_mappings: Vec<Mapping>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    resource_name: String,
    request_name: String,
}

impl ClaimingPod {
    /// Reads the pod object.
    pub(super) fn read(object: Value) -> Result<Self, Error> {
        serde_json::from_value(object).map_err(|problem| Error::decode("the pod's resource claims", problem))
    }

    /// Its node.
    pub(super) fn node(&self) -> &str {
        &self.spec.node_name
    }

    /// The names of its claims, each once.
    pub(super) fn claims(&self) -> BTreeSet<&str> {
        let named = self.spec.resource_claims.iter().chain(&self.status.resource_claim_statuses);
        let extended =
            self.status.extended_resource_claim_status.iter().map(|claim| claim.resource_claim_name.as_str());
        named.filter_map(|claim| claim.resource_claim_name.as_deref()).chain(extended).collect()
    }

    /// The resource that a request of a claim stands for, if the pod asked for it by a resource's name.
    fn resource_of(&self, claim: &str, request: &str) -> Option<String> {
        let extended = self.status.extended_resource_claim_status.as_ref();
        let mappings = &extended.filter(|extended| extended.resource_claim_name == claim)?.request_mappings;
        // A request with alternatives is followed by the one that was chosen.
        let request = request.split('/').next().unwrap_or_default();
        mappings.iter().find(|mapping| mapping.request_name == request).map(|mapping| mapping.resource_name.clone())
    }

    /// The devices that a claim of this pod was given, but for those that it may only look at (admin access).
    ///
    /// # Errors
    /// [`Error::TryLater`] when nothing was allocated yet, or not for this pod.
    pub(super) fn devices_of(&self, title: &str, object: Value, pod_uid: &str) -> Result<Vec<Allocated>, Error> {
        let claim: Claim = serde_json::from_value(object).map_err(|problem| Error::decode(title, problem))?;
        let Some(allocation) = claim.status.allocation else {
            return Err(Error::TryLater(format!("{title} of the pod has no devices allocated yet")));
        };
        if !claim.status.reserved_for.iter().any(|consumer| consumer.resource == "pods" && consumer.uid == pod_uid) {
            return Err(Error::TryLater(format!(
                "{title} is not reserved for the pod (UID {pod_uid}): its devices are others'"
            )));
        }
        let own = allocation.devices.results.into_iter().filter(|result| result.admin_access != Some(true));
        Ok(own
            .map(|result| Allocated {
                resource: self.resource_of(&claim.metadata.name, &result.request),
                title: format!("device {}/{}/{} of {title}", result.driver, result.pool, result.device),
                driver: result.driver,
                pool: result.pool,
                device: result.device,
            })
            .collect())
    }
}

#[derive(Deserialize)]
struct Claim {
    metadata: ClaimName,
    #[serde(default)]
    status: ClaimStatus,
}

#[derive(Deserialize)]
struct ClaimName {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimStatus {
    allocation: Option<Allocation>,
    #[serde(deserialize_with = "or_default")]
    reserved_for: Vec<Consumer>,
}

#[derive(Deserialize)]
struct Consumer {
    resource: String,
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Allocation {
    devices: AllocatedDevices,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AllocatedDevices {
    #[serde(deserialize_with = "or_default")]
    results: Vec<AllocationResult>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AllocationResult {
    request: String,
    driver: String,
    pool: String,
    device: String,
    admin_access: Option<bool>,
}

/// A device that a claim was given.
#[derive(Debug, PartialEq)]
pub(super) struct Allocated {
    /// The driver that has it.
    pub(super) driver: String,
    /// The pool there...
    pub(super) pool: String,
    /// ...and its name in it.
    pub(super) device: String,
    /// The resource that the pod asked for to get it, if it did.
    pub(super) resource: Option<String>,
    /// For messages.
    pub(super) title: String,
}

/// Lists that Go writes as null when they are empty.
pub(super) fn or_default<'a, D: Deserializer<'a>, T: Deserialize<'a> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(object: Value) -> ClaimingPod {
        ClaimingPod::read(object).unwrap()
    }

    #[test]
    fn the_claims_of_a_pod_are_in_its_spec_and_its_status() {
        assert!(pod(json!({"metadata": {}})).claims().is_empty());
        let claims = json!({
            "spec": {"nodeName": "n", "resourceClaims": [
                {"name": "own", "resourceClaimName": "shared"}, {"name": "made", "resourceClaimTemplateName": "t"},
                {"name": "none", "resourceClaimTemplateName": "t"}]},
            "status": {
                "resourceClaimStatuses": [{"name": "made", "resourceClaimName": "made-x7"}, {"name": "none"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "extended-2b", "requestMappings": null}}
        });
        assert_eq!(Vec::from_iter(pod(claims).claims()), ["extended-2b", "made-x7", "shared"]);
    }

    #[test]
    fn a_resource_that_the_pod_asked_for_by_name_is_the_devices() {
        let pod = pod(json!({"status": {"extendedResourceClaimStatus": {
            "resourceClaimName": "e", "requestMappings": [
                {"containerName": "c", "resourceName": "r/b", "requestName": "container-0-request-1"},
                {"containerName": "c", "resourceName": "r/a", "requestName": "container-0-request-0"}]}}}));
        let result =
            |request: &str, device: &str| json!({"request": request, "driver": "d", "pool": "p", "device": device});
        let claim = |name: &str| {
            json!({"metadata": {"name": name}, "status": {
                "reservedFor": [{"resource": "pods", "name": "q", "uid": "u0"}, {"resource": "pods", "name": "p", "uid": "u1"}],
                "allocation": {"devices": {"results": [
                    result("container-0-request-0", "a"), result("container-0-request-1/large", "b"), result("other", "c")]}}}})
        };
        let resources = |name: &str| -> Vec<Option<String>> {
            let found = pod.devices_of("claim", claim(name), "u1").unwrap();
            found.into_iter().map(|device| device.resource).collect()
        };
        assert_eq!(resources("e"), [Some("r/a".to_owned()), Some("r/b".to_owned()), None]);
        assert_eq!(resources("f"), [None, None, None]);
    }

    #[test]
    fn a_claim_is_allocated_and_reserved_and_not_only_for_looking() {
        let pod = pod(json!({}));
        let mut claim = json!({"metadata": {"name": "c"}, "status": {"reservedFor": null}});
        let refused = |claim: &Value| match pod.devices_of("resource claim ns/c", claim.clone(), "u1") {
            Err(Error::TryLater(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&claim), "resource claim ns/c of the pod has no devices allocated yet");
        let result = |device: &str, admin: Value| json!({"request": "r", "driver": "d", "pool": "p", "device": device, "adminAccess": admin});
        let results = [result("a", Value::Null), result("b", json!(true)), result("c", json!(false))];
        claim["status"]["allocation"] = json!({"devices": {"results": results}});
        assert!(refused(&claim).starts_with("resource claim ns/c is not reserved for the pod (UID u1)"));
        claim["status"]["reservedFor"] = json!([{"resource": "pods", "name": "p", "uid": "u1"}]);
        let found = pod.devices_of("resource claim ns/c", claim.clone(), "u1").unwrap();
        let names: Vec<&str> = found.iter().map(|device| device.device.as_str()).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(found[0].title, "device d/p/a of resource claim ns/c");
        claim["status"]["allocation"] = json!({});
        assert_eq!(pod.devices_of("resource claim ns/c", claim, "u1").unwrap(), []);
    }
}
