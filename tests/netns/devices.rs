//! Where devices come from: kubelet's pod-resources API in all the ways that it answers, and its checkpoint; and what
//! becomes of IDs that are no PCI addresses.

use std::{fs, path::Path, time::Instant};

use serde_json::{Value, json};

use crate::{
    harness::{
        Answer, CdiDevice, ClaimResource, ContainerMemory, DynamicResource, KUBELET_SOCKET, Kubelet, PodResources,
    },
    requests::Node,
};

const RESOURCE: &str = "example.org/port";
const DISABLED: Answer = Answer::Status(2, "PodResources API Get method disabled");
const LIMITED: Answer = Answer::Status(8, "rejected by rate limit");

/// A node with a definition "x" of a resource; the pod asks for it twice.
fn node() -> Node {
    let node = Node::new();
    node.world.definition_with_resource("x", RESOURCE, &json!({"cniVersion": "1.0.0", "type": "net-x"}));
    node.world.pod("p", "x,x@data0");
    node
}

/// The device IDs that the pod's networks got.
fn devices_of(node: &Node) -> Vec<Value> {
    let told = node.attaches(&node.conf, &["ADD first eth0", "ADD net-x net1", "ADD net-x data0"]);
    told[1..].iter().map(|call| call["conf"]["deviceID"].clone()).collect()
}

/// The pod with two devices, as kubelet tells it.
fn entry() -> PodResources {
    PodResources::new("p", &[&[(RESOURCE, &["b", "a"])]])
}

/// A pod with everything that a message can have: a sidecar and two containers that share a device, other resources, CPUs,
/// memory, and resource claims with CDI devices.
fn rich_entry() -> PodResources {
    let mut entry = PodResources::new(
        "p",
        &[
            &[(RESOURCE, &["b"]), ("example.org/gpu", &["0", "1"])],
            &[(RESOURCE, &["a", "b"])],
            &[(RESOURCE, &["b"])],
            &[],
        ],
    );
    let container = &mut entry.containers[1];
    container.cpu_ids = vec![0, 3, 4000];
    container.memory = vec![ContainerMemory { kind: "hugepages-1Gi".to_owned(), size: 1 << 30, topology: None }];
    container.dynamic_resources = vec![DynamicResource {
        claim_name: "claim".to_owned(),
        claim_namespace: "default".to_owned(),
        resources: vec![ClaimResource {
            cdi_devices: vec![CdiDevice { name: "example.org/net=claim-vf".to_owned() }],
            driver: "net.example.org".to_owned(),
            pool: "node-1".to_owned(),
            device: "vf".to_owned(),
        }],
    }];
    entry
}

#[test]
fn kubelet_is_asked_for_the_one_pod_and_only_for_a_network_with_a_resource() {
    let node = node();
    let kubelet = Kubelet::serve([Answer::pod(rich_entry())]);
    assert_eq!(devices_of(&node), ["a", "b"]);
    assert_eq!(kubelet.asked(), ["Get default/p"]);
    node.world.pod("p", "y");
    node.attaches(&node.conf, &["ADD first eth0", "ADD net-y net1"]);
    assert_eq!(kubelet.asked(), Vec::<String>::new());
}

#[test]
fn a_kubelet_without_get_is_asked_for_all_pods_however_many() {
    let node = node();
    // Some 7 MiB: gRPC's own limit is 4.
    let ids: Vec<String> = (0..200).map(|id| format!("device-with-a-name-of-some-length-{id:030}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut pods: Vec<PodResources> =
        (0..500).map(|pod| PodResources::new(&format!("p{pod}"), &[&[(RESOURCE, &ids)]])).collect();
    pods.insert(250, entry());
    pods.push(PodResources { namespace: "other".to_owned(), ..PodResources::new("p", &[&[(RESOURCE, &["0"])]]) });
    let unknown = Answer::Status(12, "unknown method Get for service v1.PodResourcesLister");
    for refusal in [DISABLED, unknown] {
        let kubelet = Kubelet::serve([refusal, Answer::pods(pods.clone())]);
        assert_eq!(devices_of(&node), ["a", "b"]);
        assert_eq!(kubelet.asked(), ["Get default/p", "List"]);
    }
    // One that does not know the pod, by either.
    let _kubelet =
        Kubelet::serve([Answer::Status(2, "pod p in namespace default not found"), Answer::pods(Vec::new())]);
    let lack = "2 device(s) wanted for default/x, default/x, kubelet gave the pod none";
    node.refuses(&node.conf, 7, &["resource example.org/port", lack]);
}

#[test]
fn a_kubelet_that_is_asked_too_often_is_asked_again_until_the_deadline() {
    let node = node();
    let kubelet = Kubelet::serve([LIMITED, LIMITED, DISABLED, LIMITED, Answer::pods(vec![entry()])]);
    assert_eq!(devices_of(&node), ["a", "b"]);
    assert_eq!(kubelet.asked(), ["Get default/p", "Get default/p", "Get default/p", "List", "List"]);
    drop(kubelet);

    let kubelet = Kubelet::serve([LIMITED]);
    let conf = node.with("addTimeoutSeconds", json!(1));
    node.refuses(&conf, 11, &["the devices of pod default/p", KUBELET_SOCKET, "rejected by rate limit"]);
    let asked = kubelet.asked().len();
    // 50, 100, 200, 400 ms, of each half at least.
    assert!((4..=7).contains(&asked), "{asked} times");
}

#[test]
fn a_kubelet_that_does_not_answer_or_answers_nonsense_is_an_error_that_passes() {
    let node = node();
    let conf = node.with("addTimeoutSeconds", json!(1));
    // A message that claims more than it has, one that is none, and one that holds no pod's devices.
    let garbage = |bytes: &[u8]| Answer::Message(bytes.to_vec());
    for (answer, says) in [
        (Answer::Nothing, "no answer in time"),
        (garbage(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]), "failed to decode"),
        (garbage(b"HTTP/1.1 400 Bad Request"), "failed to decode"),
        (Answer::Status(14, "kubelet is starting"), "kubelet is starting"),
        (Answer::Status(13, "allocation state is torn"), "allocation state is torn"),
        (Answer::HangsUp, KUBELET_SOCKET),
    ] {
        let kubelet = Kubelet::serve([answer]);
        let begun = Instant::now();
        node.refuses(&conf, 11, &["the devices of pod default/p cannot be looked up", KUBELET_SOCKET, says]);
        assert!(begun.elapsed().as_secs() < 5, "{says}: {:?}", begun.elapsed());
        assert!(!kubelet.asked().is_empty());
    }
    // The checkpoint is not believed while kubelet is there.
    node.world.devices_given(&[("uid-p", RESOURCE, json!(["a", "b"]))]);
    let _kubelet = Kubelet::serve([Answer::Status(14, "kubelet is starting")]);
    node.refuses(&conf, 11, &["kubelet is starting"]);
}

#[test]
fn a_kubelet_that_hangs_does_not_take_the_whole_time_of_add() {
    let node = node();
    let _kubelet = Kubelet::serve([Answer::Nothing]);
    let begun = Instant::now();
    node.refuses(&node.conf, 11, &[KUBELET_SOCKET, "no answer in time"]);
    assert!(begun.elapsed().as_secs() < 50, "{:?}", begun.elapsed());
}

#[test]
fn without_a_kubelet_at_the_socket_its_checkpoint_says() {
    let node = node();
    drop(Kubelet::serve([LIMITED]));
    assert!(fs::exists(KUBELET_SOCKET).unwrap(), "the socket of a kubelet that died");
    let lack = [KUBELET_SOCKET, "kubelet_internal_checkpoint does not exist", "is kubelet running?"];
    node.refuses(&node.conf, 11, &lack);
    for ids in [json!(["b", "a"]), json!({"0": ["b"], "1": ["a"]})] {
        node.world.devices_given(&[("uid-p", RESOURCE, ids), ("uid-other", RESOURCE, json!(["0"]))]);
        assert_eq!(devices_of(&node), ["a", "b"]);
    }
    fs::remove_file(KUBELET_SOCKET).unwrap();
    assert_eq!(devices_of(&node), ["a", "b"]);
    node.world.devices_given(&[("uid-p", RESOURCE, json!("a"))]);
    let unknown =
        ["kubelet_internal_checkpoint does not parse", "two forms known here", KUBELET_SOCKET, "no such socket"];
    node.refuses(&node.conf, 6, &unknown);
}

#[test]
fn two_pods_of_one_name_are_told_apart_by_the_checkpoint() {
    let node = node();
    let former = PodResources::new("p", &[&[(RESOURCE, &["0", "1"])]]);
    let kubelet = Kubelet::serve([DISABLED, Answer::pods(vec![former.clone(), entry()])]);
    node.refuses(&node.conf, 11, &["several pods of that name", "kubelet_internal_checkpoint does not exist"]);
    assert_eq!(kubelet.asked(), ["Get default/p", "List"]);
    node.world.devices_given(&[("uid-p", RESOURCE, json!(["b", "a"])), ("uid-former", RESOURCE, json!(["0", "1"]))]);
    let _kubelet = Kubelet::serve([DISABLED, Answer::pods(vec![former, entry()])]);
    assert_eq!(devices_of(&node), ["a", "b"]);
}

#[test]
fn a_device_is_given_once_to_primary_default_and_asked_for_networks() {
    let node = Node::new();
    for name in ["primary", "default", "x"] {
        let config = json!({"cniVersion": "1.0.0", "type": "net-x"});
        node.world.definition_with_resource(name, RESOURCE, &config);
    }
    let mut conf = node.with("clusterNetwork", json!("default/primary"));
    conf["defaultNetworks"] = json!(["default/default"]);
    node.world.pod("p", "x,x");
    let _kubelet = Kubelet::serve([Answer::pod(PodResources::new(
        "p",
        &[&[(RESOURCE, &["4", "2"])], &[(RESOURCE, &["3", "1"])]],
    ))]);
    let told = node.attaches(&conf, &["ADD net-x eth0", "ADD net-x net1", "ADD net-x net2", "ADD net-x net3"]);
    let given: Vec<&Value> = told.iter().map(|call| &call["conf"]["deviceID"]).collect();
    assert_eq!(given, ["1", "2", "3", "4"]);
    let _kubelet =
        Kubelet::serve([Answer::pod(PodResources::new("p", &[&[(RESOURCE, &["4", "2"])], &[(RESOURCE, &["3"])]]))]);
    let lack =
        "4 device(s) wanted for default/primary, default/default, default/x, default/x, kubelet gave the pod 2, 3, 4";
    node.refuses(&conf, 7, &[lack]);
}

#[test]
fn ids_that_are_no_pci_addresses_are_the_executed_plugins_own_affair() {
    let node = node();
    let ids = ["auxiliary/mlx5_core.sf.4", "vdpa:0000:65:00.3/vdpa0"];
    let _kubelet = Kubelet::serve([Answer::pod(PodResources::new("p", &[&[(RESOURCE, &ids)]]))]);
    // What the device plugin wrote of the first; a name of a file has no slash.
    let infos = Path::new("/run/k8s.cni.cncf.io/devinfo/dp");
    fs::create_dir_all(infos).unwrap();
    let info = json!({"type": "vdpa", "version": "1.1.0"});
    fs::write(infos.join("example.org-port-auxiliary-mlx5_core.sf.4-device.json"), info.to_string()).unwrap();
    let call = |verb| node.world.call(verb, "c1", &node.netns, &node.conf).pod("p");
    call("ADD").ok();
    let told = node.recorder.calls();
    for (call, id) in told[1..].iter().zip(ids) {
        assert_eq!((&call.0["conf"]["deviceID"], &call.0["conf"]["pciBusID"]), (&json!(id), &json!(id)));
    }
    let status = node.world.status("p").unwrap();
    assert_eq!((&status[1]["device-info"], &status[2]["device-info"]), (&info, &Value::Null));
    call("DEL").ok();
    assert_eq!(node.recorder.take().len(), 6);

    // The built-in `sriov` needs a PCI address; nothing has happened by then.
    let config =
        json!({"cniVersion": "1.0.0", "type": "sriov", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}});
    node.world.definition_with_resource("x", RESOURCE, &config);
    for (network, id) in [("net1", ids[0]), ("data0", ids[1])] {
        let says = [&format!("default/x as {network}"), &format!("{id:?} is not a PCI address")];
        node.refuses(&node.conf, 7, &[says[0], says[1], "a subfunction or a vdpa device needs another plugin"]);
    }
}
