//! What an address costs: ADD and DEL of the reference plugin and of ours under the name `host-local`, on pools of 0 to
//! 50,000 leases, one call at a time and 50 at once. Both in one run and in turn, so that the ratios hold on any machine.
//!
//! A number as argument cuts the rounds: `cargo bench --bench addresses -- 2`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench panics where it is wrong, and prints")]

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Barrier,
    time::Instant,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::resource::{UsageWho, getrusage},
};
use serde_json::json;
use tempfile::TempDir;

/// A range of 131,069 addresses: at most half of it is ever held.
const SUBNET: &str = "10.0.0.0/15";
const FIRST: u32 = 0x0a00_0002;
const AT_ONCE: usize = 50;

/// How many leases there are, how often each program is called alone, and how often 50 of each at once. The reference needs
/// half a second for a call at 50,000, and half a minute for 50 at once.
const LEVELS: [Level; 4] = [
    Level { leases: 0, alone: 60, theirs_at_once: 6, ours_at_once: 20 },
    Level { leases: 1_000, alone: 40, theirs_at_once: 3, ours_at_once: 20 },
    Level { leases: 10_000, alone: 15, theirs_at_once: 1, ours_at_once: 20 },
    Level { leases: 50_000, alone: 10, theirs_at_once: 1, ours_at_once: 20 },
];

/// What is measured. Runtimes ask for a DEL more than once.
const KINDS: [&str; 5] = ["ADD", "DEL", "DEL again", "ADD x50", "DEL x50"];
/// Those that are one call at a time, and those that are 50 at once, with their verbs.
const ALONE: [(usize, &str); 3] = [(0, "ADD"), (1, "DEL"), (2, "DEL")];
const TOGETHER: [(usize, &str); 2] = [(3, "ADD"), (4, "DEL")];

#[derive(Clone, Copy)]
struct Level {
    leases: u32,
    alone: usize,
    theirs_at_once: usize,
    ours_at_once: usize,
}

/// Calls of one kind.
#[derive(Default)]
struct Samples {
    /// Of all calls together.
    cpu_ms: f64,
    wall_ms: Vec<f64>,
}

impl Samples {
    fn cpu(&self) -> f64 {
        self.cpu_ms / self.wall_ms.len() as f64
    }

    /// The value that this part of the calls does not exceed.
    fn wall(&self, part: f64) -> f64 {
        let mut sorted = self.wall_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (part * sorted.len() as f64).ceil() as usize;
        sorted[at.clamp(1, sorted.len()) - 1]
    }
}

/// One program on a pool of its own.
struct Side {
    program: PathBuf,
    data: TempDir,
    /// As in [`KINDS`].
    kinds: [Samples; KINDS.len()],
    calls: usize,
}

impl Side {
    /// A pool with leases of others in it, as the reference leaves them.
    fn new(program: &Path, leases: u32) -> Self {
        let data = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let pool = data.path().join("net-a");
        fs::create_dir(&pool).unwrap();
        for number in 0..leases {
            let address = Ipv4Addr::from_bits(FIRST + number).to_string();
            fs::write(pool.join(&address), format!("other-{number}\r\neth0")).unwrap();
            if number + 1 == leases {
                fs::write(pool.join("last_reserved_ip.0"), &address).unwrap();
            }
        }
        let conf = json!({"cniVersion": "1.0.0", "name": "net-a", "type": "bridge",
            "ipam": {"type": "host-local", "dataDir": data.path(), "subnet": SUBNET}});
        fs::write(data.path().join("conf"), conf.to_string()).unwrap();
        Self { program: program.to_owned(), data, kinds: Default::default(), calls: 0 }
    }

    /// One call as a plugin makes it; gives its wall time.
    fn call(&self, verb: &str, container: usize) -> f64 {
        let begun = Instant::now();
        let output = Command::new(&self.program)
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("c{container}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", "/nonexistent/netns")
            .env("CNI_PATH", "/nonexistent/bin")
            .stdin(File::open(self.data.path().join("conf")).unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let wall = begun.elapsed().as_secs_f64() * 1e3;
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
        wall
    }

    /// These verbs of so many containers at once.
    fn round(&mut self, at_once: usize, verbs: &[(usize, &str)]) {
        for &(kind, verb) in verbs {
            let (side, first, barrier) = (&*self, self.calls, &Barrier::new(at_once));
            let cpu = cpu_of_children();
            let walls: Vec<f64> = match at_once {
                1 => vec![self.call(verb, first)],
                _ => std::thread::scope(|scope| {
                    let one = move |number: usize| {
                        barrier.wait();
                        side.call(verb, first + number)
                    };
                    let threads: Vec<_> = (0..at_once).map(|number| scope.spawn(move || one(number))).collect();
                    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
                }),
            };
            let samples = &mut self.kinds[kind];
            samples.cpu_ms += cpu_of_children() - cpu;
            samples.wall_ms.extend(walls);
        }
        self.calls += at_once;
    }
}

fn cpu_of_children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    ms(usage.user_time()) + ms(usage.system_time())
}

/// Both programs on pools of this size.
fn measure(level: Level, theirs: &Path, ours: &Path) -> (Side, Side, f64) {
    let (mut reference, mut own) = (Side::new(theirs, level.leases), Side::new(ours, level.leases));
    // Neither program's first call counts; ours makes its index then.
    reference.round(1, &ALONE);
    let begun = cpu_of_children();
    own.call("ADD", usize::MAX);
    let first_call = cpu_of_children() - begun;
    own.call("DEL", usize::MAX);
    reference.kinds = Default::default();
    for _ in 0..level.alone {
        reference.round(1, &ALONE);
        own.round(1, &ALONE);
    }
    (0..level.theirs_at_once).for_each(|_| reference.round(AT_ONCE, &TOGETHER));
    (0..level.ours_at_once).for_each(|_| own.round(AT_ONCE, &TOGETHER));
    (reference, own, first_call)
}

fn main() {
    // What is noted there of the pools at boot is of no use to anybody else.
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let most = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(usize::MAX);
    let beds = std::env::var_os("META_CNI_REFERENCE_PLUGINS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/beds/plugins/reference"), PathBuf::from);
    let theirs = beds.join("host-local");
    assert!(theirs.is_file(), "{} is missing: run make beds", theirs.display());
    let bin = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ours = bin.path().join("host-local");
    symlink(env!("CARGO_BIN_EXE_meta-cni"), &ours).unwrap();

    println!("host-local: the reference plugin (ref) and ours, in turn; a /15 of one range; ratios are ref to ours\n");
    println!(
        "{:>7} {:>9} {:>27} {:>27} {:>20} {:>13}",
        "leases", "calls", "CPU ms a call: ref, ours", "wall ms, p50: ref, ours", "p99: ref, ours", "samples"
    );
    let mut summary = Vec::new();
    for level in LEVELS {
        let level = Level {
            alone: level.alone.min(most),
            theirs_at_once: level.theirs_at_once.min(most),
            ours_at_once: level.ours_at_once.min(most),
            ..level
        };
        let (reference, own, first_call) = measure(level, &theirs, &ours);
        for (kind, name) in KINDS.iter().enumerate() {
            let (ref_, own) = (&reference.kinds[kind], &own.kinds[kind]);
            let three = |ref_: f64, own: f64| format!("{ref_:.2} {own:.2} x{:.1}", ref_ / own);
            println!(
                "{:>7} {name:>9} {:>27} {:>27} {:>20} {:>13}",
                level.leases,
                three(ref_.cpu(), own.cpu()),
                three(ref_.wall(0.5), own.wall(0.5)),
                format!("{:.1} {:.1}", ref_.wall(0.99), own.wall(0.99)),
                format!("{} {}", ref_.wall_ms.len(), own.wall_ms.len()),
            );
        }
        summary.push((level.leases, reference, own, first_call));
    }
    print_aims(&summary);
}

/// The aims, and what was found.
fn print_aims(all: &[(u32, Side, Side, f64)]) {
    let (Some(least), Some(most)) = (all.first(), all.last()) else { return };
    let cheaper = |side: &(u32, Side, Side, f64), kind: usize| side.1.kinds[kind].cpu() / side.2.kinds[kind].cpu();
    let lowest = |sides: &[(u32, Side, Side, f64)]| {
        sides.iter().flat_map(|side| (0..KINDS.len()).map(|kind| cheaper(side, kind))).fold(f64::INFINITY, f64::min)
    };
    println!("\nCPU, the least ratio at {} leases (aim: 100): x{:.0}", most.0, lowest(std::slice::from_ref(most)));
    println!("CPU, the least ratio of all (aim: at least 1): x{:.2}", lowest(all));
    let grown = ALONE.iter().map(|&(kind, _)| most.2.kinds[kind].cpu() / least.2.kinds[kind].cpu()).fold(0.0, f64::max);
    println!("ours at {} leases to ours at {} (aim: flat): x{grown:.2}", most.0, least.0);
    let together = |side: &(u32, Side, Side, f64)| TOGETHER.map(|(kind, _)| side.2.kinds[kind].wall(0.99));
    let p99 = all.iter().flat_map(together).fold(0.0, f64::max);
    println!("ours, 50 at once, the highest p99 (aim: 50 ms): {p99:.1} ms");
    for (leases, _, _, first) in all {
        println!("ours, the first call on a pool of {leases} leases, which makes the index: {first:.1} ms of CPU");
    }
}
