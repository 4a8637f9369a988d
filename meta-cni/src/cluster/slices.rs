//! What drivers publish of their devices (resource.k8s.io/v1 ResourceSlices): which resource and ID one has.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::dra::{Allocated, or_default};
use crate::cni::Error;

/// The attribute of a device that holds its ID for the network's plugin.
const DEVICE_ATTRIBUTE: &str = "k8s.cni.cncf.io/deviceID";
/// The attribute that names the resource, as definitions do.
const RESOURCE_ATTRIBUTE: &str = "k8s.cni.cncf.io/resourceName";

/// What the driver of a node publishes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Slices {
    #[serde(deserialize_with = "or_default")]
    items: Vec<Slice>,
}

#[derive(Debug, Deserialize)]
struct Slice {
    spec: SliceSpec,
}

#[derive(Debug, Deserialize)]
struct SliceSpec {
    pool: Pool,
    #[serde(default, deserialize_with = "or_default")]
    devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pool {
    name: String,
    generation: i64,
    resource_slice_count: i64,
}

#[derive(Debug, Deserialize)]
struct Device {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    attributes: BTreeMap<String, Value>,
}

/// Why a device of a claim cannot be had.
#[derive(Debug, PartialEq)]
pub(super) enum Lack {
    /// Its driver has not published all that it has, or publishes it anew: that passes.
    ForNow(String),
    /// What is published says so.
    AsPublished(String),
}

impl Slices {
    /// Reads the list.
    pub(super) fn read(object: Value) -> Result<Self, Error> {
        serde_json::from_value(object).map_err(|problem| Error::decode("the list of ResourceSlices", problem))
    }

    /// Resource and ID of a device; or why it has none. Of a pool the newest generation counts: what is left of former
    /// ones is about to be removed.
    pub(super) fn find(&self, wanted: &Allocated, node: &str) -> Result<(String, String), Lack> {
        let title = &wanted.title;
        let specs = || self.items.iter().map(|slice| &slice.spec).filter(|spec| spec.pool.name == wanted.pool);
        let Some(newest) = specs().map(|spec| spec.pool.generation).max() else {
            return Err(Lack::ForNow(format!("{title} is in no ResourceSlice of node {node}")));
        };
        let current: Vec<&SliceSpec> = specs().filter(|spec| spec.pool.generation == newest).collect();
        let Some(device) = current.iter().flat_map(|spec| &spec.devices).find(|device| device.name == wanted.device)
        else {
            let all = current.iter().map(|spec| spec.pool.resource_slice_count).max().unwrap_or_default();
            let there = current.len();
            let text = format!(
                "{title} is not among what its driver publishes ({there} of {all} ResourceSlices of generation {newest} are there)"
            );
            let is_whole = usize::try_from(all).is_ok_and(|all| there >= all);
            return Err(if is_whole { Lack::AsPublished(text) } else { Lack::ForNow(text) });
        };
        let attribute = |name: &str| match device.attributes.get(name).map(|value| &value["string"]) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
            Some(_) => Err(Lack::AsPublished(format!("{title}: its attribute {name} is no string"))),
            None => Err(Lack::AsPublished(format!("{title} has no attribute {name}"))),
        };
        let resource = wanted.resource.clone().map_or_else(|| attribute(RESOURCE_ATTRIBUTE), Ok)?;
        Ok((resource, attribute(DEVICE_ATTRIBUTE)?))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn allocated(device: &str, resource: Option<&str>) -> Allocated {
        Allocated {
            driver: "d".to_owned(),
            pool: "p".to_owned(),
            device: device.to_owned(),
            resource: resource.map(str::to_owned),
            title: format!("device d/p/{device}"),
        }
    }

    fn slice(generation: i64, count: i64, devices: Value) -> Value {
        let pool = json!({"name": "p", "generation": generation, "resourceSliceCount": count});
        json!({"metadata": {"name": "s"}, "spec": {"driver": "d", "pool": pool, "nodeName": "n", "devices": devices}})
    }

    fn find(slices: &[Value], wanted: &Allocated) -> Result<(String, String), Lack> {
        Slices::read(json!({"items": slices})).unwrap().find(wanted, "n")
    }

    #[test]
    fn the_newest_generation_of_a_pool_counts() {
        let device = |name: &str, id: &str| {
            json!({"name": name, "attributes": {
                DEVICE_ATTRIBUTE: {"string": id}, RESOURCE_ATTRIBUTE: {"string": "r/a"}, "index": {"int": 1}}})
        };
        let found = |id: &str| Ok(("r/a".to_owned(), id.to_owned()));
        let slices = [
            slice(4, 1, json!([device("a", "old"), device("gone", "old")])),
            slice(5, 2, json!([device("b", "b-id")])),
            slice(5, 2, json!([device("a", "new")])),
            slice(5, 2, Value::Null),
        ];
        assert_eq!(find(&slices, &allocated("a", None)), found("new"));
        assert_eq!(find(&slices, &allocated("b", None)), found("b-id"));
        let lacking =
            "device d/p/gone is not among what its driver publishes (1 of 2 ResourceSlices of generation 5 are there)";
        assert_eq!(find(&slices[..2], &allocated("gone", None)), Err(Lack::ForNow(lacking.to_owned())));
        let lacking = lacking.replace("1 of 2", "3 of 2");
        assert_eq!(find(&slices, &allocated("gone", None)), Err(Lack::AsPublished(lacking)));
        let nowhere = "device d/p/a is in no ResourceSlice of node n";
        assert_eq!(find(&[], &allocated("a", None)), Err(Lack::ForNow(nowhere.to_owned())));
    }

    #[test]
    fn what_a_device_lacks_is_said() {
        let slices = [slice(
            1,
            1,
            json!([
                {"name": "bare"}, {"name": "null", "attributes": null},
                {"name": "unnamed", "attributes": {DEVICE_ATTRIBUTE: {"string": "id"}}},
                {"name": "number", "attributes": {DEVICE_ATTRIBUTE: {"int": 4}, RESOURCE_ATTRIBUTE: {"string": "r/a"}}},
                {"name": "empty", "attributes": {DEVICE_ATTRIBUTE: {"string": ""}, RESOURCE_ATTRIBUTE: {"string": "r/a"}}}
            ]),
        )];
        let says = |device: &str, resource| match find(&slices, &allocated(device, resource)) {
            Err(Lack::AsPublished(text)) => text,
            other => panic!("{other:?}"),
        };
        for device in ["bare", "null", "unnamed"] {
            assert_eq!(says(device, None), format!("device d/p/{device} has no attribute {RESOURCE_ATTRIBUTE}"));
        }
        assert_eq!(says("bare", Some("r/b")), format!("device d/p/bare has no attribute {DEVICE_ATTRIBUTE}"));
        assert_eq!(find(&slices, &allocated("unnamed", Some("r/b"))), Ok(("r/b".to_owned(), "id".to_owned())));
        for device in ["number", "empty"] {
            assert_eq!(
                says(device, None),
                format!("device d/p/{device}: its attribute {DEVICE_ATTRIBUTE} is no string")
            );
        }
    }
}
