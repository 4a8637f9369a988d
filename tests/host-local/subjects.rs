//! host-local's own test subjects as tables: each case runs on the reference plugin and on ours, in every version of the
//! CNI specification, and both must answer as it says.

mod asked;
mod leases;
mod ranges;
mod turn;

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    bed::{Bed, VERSIONS, answer, ours, theirs},
    harness::at,
};

/// One ADD or DEL, or a look at the pool's files.
#[derive(Clone)]
enum Step {
    Add {
        who: Who,
        asked: Asked,
        expected: Expected,
    },
    Del(Who),
    /// A file has this content; or is not there.
    File(&'static str, Option<&'static str>),
}

/// A container and its interface.
#[derive(Clone, Copy)]
struct Who(&'static str, &'static str);

/// Addresses asked for by name, in the places that there are.
#[derive(Clone, Default)]
struct Asked {
    /// `CNI_ARGS`.
    environment: &'static str,
    /// `args.cni.ips`.
    args: Vec<&'static str>,
    /// `runtimeConfig.ips`.
    runtime: Vec<&'static str>,
}

#[derive(Clone)]
enum Expected {
    /// Addresses with their gateways, in the order of the range sets.
    Given(Vec<String>),
    /// The end of the message.
    Refused(String),
}

/// An ADD that must give this.
fn gives(container: &'static str, expected: &[&str]) -> Step {
    asking(Asked::default(), container, expected)
}

fn asking(asked: Asked, container: &'static str, expected: &[&str]) -> Step {
    let expected = Expected::Given(expected.iter().map(|text| (*text).to_owned()).collect());
    Step::Add { who: Who(container, "eth0"), asked, expected }
}

/// An ADD that must be refused with a message that ends so.
fn refused(container: &'static str, text: &str) -> Step {
    asking_in_vain(Asked::default(), container, text)
}

fn asking_in_vain(asked: Asked, container: &'static str, text: &str) -> Step {
    Step::Add { who: Who(container, "eth0"), asked, expected: Expected::Refused(text.to_owned()) }
}

fn args(args: &[&'static str]) -> Asked {
    Asked { args: args.to_vec(), ..Asked::default() }
}

fn runtime(runtime: &[&'static str]) -> Asked {
    Asked { runtime: runtime.to_vec(), ..Asked::default() }
}

fn environment(environment: &'static str) -> Asked {
    Asked { environment, ..Asked::default() }
}

fn del(container: &'static str) -> Step {
    Step::Del(Who(container, "eth0"))
}

/// Runs the steps on a pool of each program in each version, with these files in it before.
fn same(ipam: &Value, planted: &[(&str, &str)], steps: &[Step]) {
    for version in VERSIONS {
        for program in [theirs(), ours()] {
            let bed = Bed::new(ipam);
            planted.iter().for_each(|(name, content)| bed.plant(name, content));
            for (number, step) in steps.iter().enumerate() {
                let context = format!("{} {version}, step {number}: {ipam}", program.display());
                perform(&bed, program, version, step, &context);
            }
        }
    }
}

fn perform(bed: &Bed, program: &Path, version: &str, step: &Step, context: &str) {
    let mut conf = bed.conf(version);
    match step {
        Step::File(name, content) => {
            let found = bed.files().remove(*name);
            assert_eq!(found.as_deref(), *content, "{context}: {name}");
        }
        Step::Del(Who(container, interface)) => {
            let outcome = bed.call_with(program, "DEL", container, &conf).if_name(interface).run();
            assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (0, "", ""), "{context}");
        }
        Step::Add { who: Who(container, interface), asked, expected } => {
            if !asked.args.is_empty() {
                conf["args"] = json!({"cni": {"ips": asked.args}});
            }
            if !asked.runtime.is_empty() {
                conf["runtimeConfig"] = json!({"ips": asked.runtime});
            }
            let call = bed.call_with(program, "ADD", container, &conf).if_name(interface);
            let outcome = call.env("CNI_ARGS", asked.environment).run();
            assert_eq!(outcome.stderr, "", "{context}");
            let found = answer(&outcome);
            match expected {
                _ if several_of_a_family(&bed.ipam) && version < "0.3.0" => {
                    let text = format!("CNI version {version} does not support more than 1 address per family");
                    assert_eq!(found, Err(text), "{context}");
                }
                Expected::Refused(text) => match found {
                    Err(found) => assert!(found.ends_with(text.as_str()), "{context}: {found:?}"),
                    Ok(found) => panic!("{context}: {found} instead of {text:?}"),
                },
                Expected::Given(expected) => {
                    let found = found.unwrap_or_else(|text| panic!("{context}: {text}"));
                    assert_eq!(&given(&found, version), expected, "{context}");
                }
            }
        }
    }
}

/// Whether results of old versions have no place for this.
fn several_of_a_family(ipam: &Value) -> bool {
    let mut sets: Vec<&str> = ipam["subnet"].as_str().into_iter().collect();
    let first = |set: &'_ Value| set[0]["subnet"].as_str().map(str::to_owned);
    let written: Vec<String> = ipam["ranges"].as_array().into_iter().flatten().filter_map(first).collect();
    sets.extend(written.iter().map(String::as_str));
    let v6 = sets.iter().filter(|subnet| subnet.contains(':')).count();
    v6 > 1 || sets.len() - v6 > 1
}

/// `ADDRESS via GATEWAY` of a result in its version's form, in the order of the sets (IPv4 first in the oldest).
fn given(result: &Value, version: &str) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if version < "0.3.0" {
        let ips = ["ip4", "ip6"].map(|key| &result[key]);
        let ips = ips.iter().filter(|ip| !ip.is_null());
        return ips.map(|ip| format!("{} via {}", text(&ip["ip"]), text(&ip["gateway"]))).collect();
    }
    let ips = at(result, "/ips").as_array().unwrap();
    ips.iter()
        .map(|ip| {
            let family = if text(&ip["address"]).contains(':') { "6" } else { "4" };
            let said = if version < "1.0.0" { json!(family) } else { Value::Null };
            assert_eq!(ip["version"], said, "{version}: {result}");
            format!("{} via {}", text(&ip["address"]), text(&ip["gateway"]))
        })
        .collect()
}

fn one_set(subnets: &[&str]) -> Value {
    let set: Vec<Value> = subnets.iter().map(|subnet| json!({"subnet": subnet})).collect();
    json!({"ranges": [set]})
}

const LAST: &str = "last_reserved_ip.0";
/// A lease of somebody else.
const TAKEN: &str = "other\r\neth0";
