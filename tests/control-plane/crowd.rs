//! Fifty pods at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, NETWORKS, STATUS, definition},
    harness::{bare, bare_add, ip, ip_in},
};

const PODS: usize = 50;
/// Name and interface of each network of a pod, as its status has them.
const EXPECTED: [(&str, &str); 3] =
    [("cbr0", "eth0"), ("default/crowd-bridge", "net1"), ("default/crowd-macvlan", "data0")];

/// Does something for each of many at once; gives the answers, and how long each took, sorted.
fn at_once<T: Send>(work: impl Fn(usize) -> T + Sync) -> (Vec<T>, Vec<Duration>) {
    let work = &work;
    let timed = move |number| {
        let began = Instant::now();
        (work(number), began.elapsed())
    };
    let all: Vec<(T, Duration)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..PODS).map(|number| scope.spawn(move || timed(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (answers, mut times): (Vec<T>, Vec<Duration>) = all.into_iter().unzip();
    times.sort();
    (answers, times)
}

/// The middle and the last but one in a hundred.
fn percentiles(times: &[Duration]) -> String {
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
    format!("p50 {:.2?}, p99 {:.2?}", at(50), at(99))
}

/// What the kernel has in a sandbox: by interface its MAC and addresses.
fn interfaces(netns: &str) -> BTreeMap<String, (Value, Vec<Value>)> {
    let links: Vec<Value> = serde_json::from_str(&ip_in(netns, "-j addr show")).unwrap();
    let global = |link: &Value| {
        let all = link["addr_info"].as_array().unwrap().iter();
        all.filter(|info| info["scope"] == "global").map(|info| info["local"].clone()).collect()
    };
    let named = links.iter().filter(|link| link["ifname"] != "lo");
    named.map(|link| (link["ifname"].as_str().unwrap().to_owned(), (link["address"].clone(), global(link)))).collect()
}

/// The chain of the primary network alone, without us: how long its ADDs and DELs take.
fn bare_chain(bed: &Bed, list: &Value, namespaces: &[String]) -> (Vec<Duration>, Vec<Duration>) {
    let container = |number: usize| format!("bare-{number}");
    let (results, added) = at_once(|number| bare_add(&bed.world, list, &container(number), &namespaces[number]));
    let (_, deleted) =
        at_once(|number| bare(&bed.world, "DEL", list, &container(number), &namespaces[number], &results[number]));
    (added, deleted)
}

/// Panics unless result, status and kernel of a pod agree; gives its addresses.
fn assert_true(result: &Value, pod: &Value, netns: &str) -> Vec<String> {
    let status = pod["metadata"]["annotations"][STATUS].as_str().expect("network-status");
    let status: Vec<Value> = serde_json::from_str(status).unwrap();
    let named: Vec<(&str, &str)> =
        status.iter().map(|entry| (entry["name"].as_str().unwrap(), entry["interface"].as_str().unwrap())).collect();
    assert_eq!(named, EXPECTED);
    let kernel = interfaces(netns);
    assert_eq!(kernel.len(), EXPECTED.len(), "{kernel:?}");
    for entry in &status {
        let (mac, addresses) = &kernel[entry["interface"].as_str().unwrap()];
        assert_eq!((&entry["mac"], &entry["ips"]), (mac, &json!(addresses)), "{status:#?}");
        assert_eq!(addresses.len(), 1, "{status:#?}");
    }
    let first = kernel["eth0"].1[0].as_str().unwrap();
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(1), "{result:#}");
    assert_eq!(result["ips"][0]["address"], format!("{first}/24"), "{result:#}");
    let routes: Vec<Value> = serde_json::from_str(&ip_in(netns, "-j route show default")).unwrap();
    let defaults: Vec<(&Value, &Value)> = routes.iter().map(|route| (&route["dev"], &route["gateway"])).collect();
    assert_eq!(defaults, [(&json!("eth0"), &json!("10.244.7.1"))]);
    kernel.into_values().flat_map(|(_, addresses)| addresses).map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Makes the definitions and the pods.
fn prepare(bed: &Bed) -> Vec<ApiPod> {
    bed.macvlans(&[("crowd-macvlan", 40)]);
    let bridge = json!({"cniVersion": "1.0.0", "type": "bridge", "bridge": "crowd0",
                        "ipam": {"type": "host-local", "subnet": "10.41.0.0/24"}});
    let mut objects = vec![definition("crowd-bridge", &bridge)];
    objects.extend((0..PODS).map(|number| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("crowd-{number}"), "namespace": "default", "labels": {"of": "the-crowd"},
                         "annotations": {NETWORKS: "crowd-bridge,crowd-macvlan@data0"}},
            "spec": {"nodeName": "node-1", "automountServiceAccountToken": false,
                     "containers": [{"name": "c", "image": "localhost/test/pause:1"}]}
        })
    }));
    let made = Bed::create(&objects);
    let text = |pod: &Value, key: &str| pod["metadata"][key].as_str().unwrap().to_owned();
    made[1..].iter().map(|pod| ApiPod { name: text(pod, "name"), uid: text(pod, "uid") }).collect()
}

#[test]
fn fifty_pods_at_once_are_all_attached_and_all_detached() {
    let bed = Bed::enter();
    let pods = prepare(&bed);
    let conf = bed.conf(&Bed::service_account());
    let list = fs::read_to_string(conf["clusterNetwork"].as_str().unwrap()).unwrap();
    let namespaces: Vec<String> = pods.iter().map(|_| bed.world.netns()).collect();
    let (bare_add, bare_del) = bare_chain(&bed, &serde_json::from_str(&list).unwrap(), &namespaces);
    bed.world.assert_clean();

    let mut added = (Vec::new(), Vec::new());
    let mut asked = Bed::requests(|| {
        added = at_once(|number| bed.call("ADD", &namespaces[number], &conf, &pods[number]).ok());
    });
    let (results, add) = added;
    // Events are counted apart.
    asked.retain(|request| !request.contains(" events"));
    asked.sort();
    let definition = |name| std::iter::repeat_n(format!("get network-attachment-definitions/{name}"), PODS);
    let mut expected: Vec<String> = definition("crowd-bridge").chain(definition("crowd-macvlan")).collect();
    for ApiPod { name, .. } in &pods {
        expected.extend([format!("get pods/{name}"), format!("patch pods/{name}/status")]);
    }
    expected.sort();
    assert_eq!(asked, expected, "requests");

    let objects = Bed::kubectl(&["get", "pods", "--selector", "of=the-crowd", "-o", "json"], "");
    let objects: Value = serde_json::from_str(&objects).unwrap();
    let objects = objects["items"].as_array().unwrap();
    let object = |pod: &ApiPod| objects.iter().find(|object| object["metadata"]["uid"] == *pod.uid).expect("the pod");
    let mut given = BTreeSet::new();
    for (number, pod) in pods.iter().enumerate() {
        for address in assert_true(&results[number], object(pod), &namespaces[number]) {
            assert!(given.insert(address.clone()), "{address} was given twice");
        }
    }
    assert_eq!(given.len(), EXPECTED.len() * PODS);

    let mut del = Vec::new();
    let asked = Bed::requests(|| {
        del = at_once(|number| bed.call("DEL", &namespaces[number], &conf, &pods[number]).ok()).1;
    });
    assert_eq!(asked, Vec::<String>::new(), "DEL asks for nothing");
    namespaces.iter().for_each(|netns| bed.assert_undone(netns));
    let masters: Vec<Value> = serde_json::from_str(&ip("-j link show type veth")).unwrap();
    let left: Vec<&Value> = masters.iter().filter(|link| link.get("master").is_some()).collect();
    assert_eq!(left, Vec::<&Value>::new(), "ports of bridges");
    ip("link delete crowd0");

    let text = format!(
        "{PODS} pods at once: ADD of 3 networks {}, of the bare primary {}; DEL {}, of the bare primary {}\n",
        percentiles(&add),
        percentiles(&bare_add),
        percentiles(&del),
        percentiles(&bare_del)
    );
    // Not for the assertion, but for whoever reads the log: it is not kept back.
    std::io::stdout().write_all(text.as_bytes()).unwrap();
}
