//! The same calls to the reference plugin and to ours, on two directories, must give the same answers and leave the same
//! files; and so must the two in turn on one directory.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::bed::{Bed, addresses, answer, ours, theirs};

/// xorshift, so that a failure can be seen again.
struct Random(u32);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % limit
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(u32::try_from(of.len()).unwrap()) as usize]
    }
}

/// One call, whoever gets it.
#[derive(Debug)]
struct Step {
    verb: &'static str,
    container: String,
    interface: &'static str,
    /// `runtimeConfig.ips`.
    ips: Vec<String>,
}

impl Step {
    fn random(random: &mut Random, wanted: &[&[&str]]) -> Self {
        let verb = *random.pick(&["ADD", "ADD", "ADD", "DEL", "DEL", "CHECK"]);
        let mut ips = Vec::new();
        for choices in wanted {
            if verb == "ADD" && random.below(4) == 0 {
                ips.push((*random.pick(choices)).to_owned());
            }
        }
        let interface = ["eth0", "net1"][random.below(2) as usize];
        Self { verb, container: format!("c{}", random.below(9)), interface, ips }
    }

    /// The addresses given, or the text of the refusal.
    fn run(&self, program: &Path, bed: &Bed) -> Result<Vec<String>, String> {
        let mut conf = bed.conf("1.0.0");
        conf["runtimeConfig"] = json!({"ips": self.ips});
        let outcome = bed.call_with(program, self.verb, &self.container, &conf).if_name(self.interface).run();
        answer(&outcome).map(|result| addresses(&result))
    }

    /// What a lease of its caller says.
    fn content(&self) -> String {
        format!("{}\r\n{}", self.container, self.interface)
    }
}

/// Random calls to the reference on one directory, and on the other one to whoever `turn` says (`None` passes the call
/// over). Answers and files are compared after each.
fn same_on_both(
    seed: u32,
    ipam: &Value,
    wanted: &[&[&str]],
    mut turn: impl FnMut(&mut Random, &Step, &Bed) -> Option<&'static Path>,
) {
    let (reference, other) = (Bed::new(ipam), Bed::new(ipam));
    let mut random = Random(seed);
    // Leases as older versions of host-local wrote them. With several sets its DEL comes to these also where it has found
    // one of the new format, because it walks once for each set; ours does not.
    for name in wanted[0].iter().filter(|name| wanted.len() == 1 && !name.contains(['/', ':'])) {
        if random.below(2) == 0 {
            reference.plant(name, " c3\n");
            other.plant(name, " c3\n");
        }
    }
    let (mut served, mut refused) = (0, 0);
    for round in 0..150 {
        let step = Step::random(&mut random, wanted);
        let Some(program) = turn(&mut random, &step, &other) else { continue };
        let before = reference.files();
        let (expected, found) = (step.run(theirs(), &reference), step.run(program, &other));
        let context = format!("seed {seed}, round {round}: {step:?} by {} on {ipam}, {before:?}", program.display());
        assert_eq!(found, expected, "{context}");
        if expected.is_ok() {
            served += 1;
        } else {
            refused += 1;
            // host-local moves the round on, and drops the owner's earlier reservation, though it refuses.
            reference.restore(&before);
            match program == ours() {
                true => assert_eq!(other.files(), before, "a refusal of ours changes nothing; {context}"),
                false => other.restore(&before),
            }
        }
        assert_eq!(other.files(), reference.files(), "{context}");
    }
    assert!(served > 40 && refused > 10, "seed {seed}: {served} served and {refused} refused say little");
}

fn one_set() -> (Value, [&'static [&'static str]; 1]) {
    let ipam = json!({"subnet": "10.0.0.0/29", "routes": [{"dst": "0.0.0.0/0"}]});
    (ipam, [&["10.0.0.1", "10.0.0.3", "10.0.0.6/29", "::ffff:10.0.0.5", "10.0.0.7"]])
}

fn two_sets() -> (Value, [&'static [&'static str]; 2]) {
    let ipam = json!({"ranges": [
        [{"subnet": "10.0.0.0/30"}, {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.0", "rangeEnd": "10.1.0.4"},
         {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.250", "rangeEnd": "10.2.0.255", "gateway": "10.2.0.252"}],
        [{"subnet": "2001:db8:0:1::/64", "rangeEnd": "2001:db8:0:1::9"}],
    ]});
    (
        ipam,
        [
            &["10.1.0.0", "10.2.0.255", "10.2.0.252", "10.9.9.9"],
            &["2001:db8:0:1::5", "2001:DB8:0:1:0:0:0:9", "2001:db8:0:1::1"],
        ],
    )
}

fn three_sets() -> (Value, [&'static [&'static str]; 3]) {
    let ipam = json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.16", "rangeEnd": "10.0.0.20", "gateway": "10.0.0.18",
        "ranges": [[{"subnet": "fd00::/126"}], [{"subnet": "10.5.0.0/29"}]]});
    (ipam, [&["10.0.0.17", "10.0.0.18", "10.0.0.15"], &["fd00::2", "fd00::"], &["10.5.0.6"]])
}

#[test]
fn each_on_its_own_directory() {
    let always = |_: &mut Random, _: &Step, _: &Bed| Some(ours());
    let (ipam, wanted) = one_set();
    [11, 12, 13].iter().for_each(|seed| same_on_both(*seed, &ipam, &wanted, always));
    let (ipam, wanted) = two_sets();
    [21, 22, 23].iter().for_each(|seed| same_on_both(*seed, &ipam, &wanted, always));
    let (ipam, wanted) = three_sets();
    [31, 32].iter().for_each(|seed| same_on_both(*seed, &ipam, &wanted, always));
}

/// A node that is moved over, and back, at every call. An ADD for a key that the other program gave an address to is left
/// out: no runtime makes it, and what the other one gave is not in our index.
#[test]
fn in_turn_on_one_directory() {
    let either = |random: &mut Random, step: &Step, bed: &Bed| {
        let program = *random.pick(&[theirs(), ours()]);
        let marks = bed.data().join("of-theirs");
        fs::create_dir_all(&marks).unwrap();
        let mark = marks.join(format!("{}-{}", step.container, step.interface));
        let held = bed.leases().into_values().any(|content| content == step.content());
        if step.verb == "ADD" && held && mark.exists() != (program == theirs()) {
            return None;
        }
        match (step.verb, program == theirs()) {
            ("ADD", true) if !held => fs::write(mark, "").unwrap(),
            ("ADD", false) if !held => drop(fs::remove_file(mark)),
            _ => {}
        }
        Some(program)
    };
    let (ipam, wanted) = one_set();
    [41, 42, 43].iter().for_each(|seed| same_on_both(*seed, &ipam, &wanted, either));
    let (ipam, wanted) = two_sets();
    [51, 52, 53].iter().for_each(|seed| same_on_both(*seed, &ipam, &wanted, either));
    let (ipam, wanted) = three_sets();
    [61, 62].iter().for_each(|seed| same_on_both(*seed, &ipam, &wanted, either));
}

/// IPv6 has many ways to be written and one to be named.
#[test]
fn files_are_named_alike() {
    let set = |number: u32| json!([{"subnet": format!("2001:db8:{number:x}::/48")}]);
    let ipam = json!({"ranges": (1..=24).map(set).collect::<Vec<_>>()});
    let mut random = Random(71);
    for round in 0..8 {
        let (reference, own) = (Bed::new(&ipam), Bed::new(&ipam));
        let mut ips = Vec::new();
        for number in 1..=24 {
            // Groups that are often zero make every shape of compression.
            let groups = (0..5).map(|_| if random.below(2) == 0 { 0 } else { random.below(0x1_0000) });
            let mut groups: Vec<String> = groups.map(|group| format!("{group:04X}")).collect();
            if groups.iter().all(|group| group == "0000") {
                // The network's own address is not in the range.
                groups[4] = "000a".to_owned();
            }
            ips.push(format!("2001:0db8:{number:x}:{}", groups.join(":")));
        }
        let step = Step { verb: "ADD", container: "c1".to_owned(), interface: "eth0", ips };
        let found = step.run(ours(), &own);
        assert_eq!(found, step.run(theirs(), &reference), "round {round}: {step:?}");
        assert_eq!(found.map(|addresses| addresses.len()), Ok(24), "round {round}: {step:?}");
        assert_eq!(own.files(), reference.files(), "round {round}: {step:?}");
        assert_eq!(own.files().len(), 48);
    }
}
