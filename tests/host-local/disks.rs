//! Disks that are full, read-only or lack what we like best, and clocks that jump: real file systems in a mount namespace
//! of the test's own thread, and the real binary on them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
};
use serde_json::json;

use crate::{
    bed::{Bed, NETWORK, addresses, answer, ours},
    harness::{names, run},
    processes::{Before, Scene, Then},
};

/// Mounts of a test, gone at its end.
struct Mounts {
    points: Vec<PathBuf>,
    server: Option<(Child, tempfile::TempDir)>,
}

impl Mounts {
    /// None yet, in a mount namespace of this thread's own.
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: the suites need root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        Self { points: Vec::new(), server: None }
    }

    fn tmpfs(mut self, at: &Path, options: &str) -> Self {
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        self.points.push(at.to_owned());
        self
    }

    /// A FUSE file system (bindfs): links and locks, but no files without a name.
    fn without_unnamed_files(mut self, at: &Path) -> Self {
        let behind = tempfile::tempdir().unwrap();
        let server = Command::new("bindfs").arg("-f").arg(behind.path()).arg(at).spawn().expect("bindfs: make beds");
        self.server = Some((server, behind));
        self.points.push(at.to_owned());
        let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&fs::metadata(path).unwrap());
        let begun = Instant::now();
        while device(at) == device(at.parent().unwrap()) {
            assert!(begun.elapsed() < Duration::from_secs(30), "bindfs does not mount");
            thread::sleep(Duration::from_millis(5));
        }
        let unnamed = open(at, OFlag::O_TMPFILE | OFlag::O_WRONLY, Mode::S_IRUSR);
        assert_eq!(unnamed.unwrap_err(), nix::errno::Errno::EOPNOTSUPP);
        self
    }

    /// Lets a directory be read, and nothing in it written.
    fn read_only(&mut self, at: &Path) {
        mount(Some(at), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        self.points.push(at.to_owned());
        mount(
            None::<&str>,
            at,
            None::<&str>,
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
            None::<&str>,
        )
        .unwrap();
    }

    /// Takes the last one away.
    fn undo(&mut self) {
        umount2(&self.points.pop().unwrap(), MntFlags::MNT_DETACH).unwrap();
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        while !self.points.is_empty() {
            self.undo();
        }
        if let Some((mut server, _)) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A pool of two sets.
fn bed(cool_down: u64) -> Bed {
    Bed::new(&json!({
        "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]],
        "coolDownSeconds": cool_down
    }))
}

fn add(bed: &Bed, container: &str) -> Result<usize, String> {
    let outcome = bed.call(ours(), "ADD", container).run();
    let found = answer(&outcome).map(|result| addresses(&result).len());
    assert!(found.is_ok() || outcome.json()["code"] == 5, "an error of the disk has another code: {outcome:#?}");
    found
}

/// The path of what lies beside the pool.
fn beside(bed: &Bed) -> PathBuf {
    bed.data().join(".meta-cni").join(NETWORK)
}

/// At every number of free inodes, so that the disk is full at every step of the work: of an ADD in a pool that is not
/// there yet, of one in a pool with an index, and of one in a pool without.
#[test]
fn on_a_full_disk_all_addresses_are_given_or_none_and_what_is_given_can_be_given_back() {
    for case in ["nothing", "a pool", "no index"] {
        let bed = bed(0);
        let _mounts = Mounts::new().tmpfs(bed.data(), "size=1m,nr_inodes=64");
        if case != "nothing" {
            assert_eq!(add(&bed, "first").unwrap(), 2);
        }
        if case == "no index" {
            fs::remove_dir_all(beside(&bed)).unwrap();
        }
        let before = bed.leases();
        let mut number = 0;
        while fs::write(bed.data().join(format!("ballast-{number}")), "").is_ok() {
            number += 1;
        }
        let mut refusals = 0;
        loop {
            match add(&bed, "second") {
                Ok(count) => {
                    assert_eq!(count, 2, "{case}");
                    break;
                }
                Err(text) => {
                    refusals += 1;
                    assert!(text.contains("No space left on device (os error 28)"), "{case}: {text}");
                    assert_eq!(bed.leases(), before, "{case}");
                }
            }
            number -= 1;
            fs::remove_file(bed.data().join(format!("ballast-{number}"))).unwrap();
        }
        // Where an index was there, its mark is given up first: that is one file less.
        let steps = if case == "a pool" { 1 } else { 2 };
        assert!(refusals >= steps, "{case}: the disk was full at {refusals} steps only");
        // However little of the index could be written.
        let again = answer(&bed.call(ours(), "ADD", "second").run()).unwrap_err();
        assert!(again.contains("duplicate allocation is not allowed"), "{case}: {again}");
        bed.call(ours(), "DEL", "second").ok();
        assert_eq!(bed.leases(), before, "{case}");
    }
}

/// An address that is to cool down is given back when that can be written down: not before.
#[test]
fn on_a_full_disk_an_address_that_is_to_cool_down_stays_reserved() {
    let bed = bed(3600);
    let _mounts = Mounts::new().tmpfs(bed.data(), "size=1m,nr_inodes=64");
    add(&bed, "first").unwrap();
    let before = bed.leases();
    let mut number = 0;
    while fs::write(bed.data().join(format!("ballast-{number}")), "").is_ok() {
        number += 1;
    }
    let error = bed.call(ours(), "DEL", "first").fails(5);
    assert!(error.contains("hold back ") && error.contains("No space left on device"), "{error}");
    assert_eq!(bed.leases(), before);
    for ballast in 0..number {
        fs::remove_file(bed.data().join(format!("ballast-{ballast}"))).unwrap();
    }
    bed.call(ours(), "DEL", "first").ok();
    assert_eq!(bed.leases().len(), 0);
    assert_eq!(names(beside(&bed).join("withheld")), ["10.0.0.2", "fd00::2"]);
}

#[test]
fn a_read_only_disk_is_named_answers_check_and_loses_nothing() {
    let bed = bed(0);
    let mut mounts = Mounts::new().tmpfs(bed.data(), "size=1m");
    add(&bed, "first").unwrap();
    let before = bed.leases();
    mounts.read_only(bed.data());
    let text = add(&bed, "second").unwrap_err();
    let expected =
        format!("{}: Read-only file system (os error 30)", bed.directory().join("last_reserved_ip.0").display());
    assert!(text.contains(&expected), "{text}");
    bed.call(ours(), "CHECK", "first").ok();
    let error = bed.call(ours(), "DEL", "first").fails(5);
    assert!(error.contains("remove ") && error.contains("Read-only file system"), "{error}");
    bed.call(ours(), "STATUS", "").fails(50);
    assert_eq!(bed.leases(), before);
    mounts.undo();
    bed.call(ours(), "DEL", "first").ok();
    assert_eq!(bed.leases().len(), 0);
    assert_eq!(names(beside(&bed).join("owners")), Vec::<String>::new());
}

#[test]
fn a_read_only_index_is_done_without_and_is_never_believed_wrongly() {
    // One that says that it is complete cannot be made to say otherwise: then nothing is done.
    let bed = bed(0);
    let mut mounts = Mounts::new().tmpfs(bed.data(), "size=1m");
    add(&bed, "first").unwrap();
    let before = bed.leases();
    mounts.read_only(&bed.data().join(".meta-cni"));
    let text = add(&bed, "second").unwrap_err();
    assert!(text.contains("complete: Read-only file system"), "{text}");
    assert_eq!(bed.leases(), before);
    // What is given back is: an entry may say too much.
    bed.call(ours(), "DEL", "first").ok();
    assert_eq!(bed.leases().len(), 0);
    mounts.undo();
    assert_eq!(add(&bed, "first").unwrap(), 2);
    bed.call(ours(), "DEL", "first").ok();

    // One that does not is as good as none.
    fs::remove_file(beside(&bed).join("complete")).unwrap();
    mounts.read_only(&bed.data().join(".meta-cni"));
    assert_eq!(add(&bed, "second").unwrap(), 2);
    let again = answer(&bed.call(ours(), "ADD", "second").run()).unwrap_err();
    assert!(again.contains("duplicate allocation is not allowed"), "{again}");
    bed.call(ours(), "DEL", "second").ok();
    assert_eq!(bed.leases().len(), 0);
}

#[test]
fn without_unnamed_files_the_pool_is_the_same() {
    let bed = bed(0);
    let _mounts = Mounts::new().without_unnamed_files(bed.data());
    assert_eq!(add(&bed, "first").unwrap(), 2);
    let expected = ["10.0.0.2", "fd00::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"];
    assert_eq!(names(bed.directory()), expected);
    assert_eq!(bed.leases()["10.0.0.2"], "first\r\neth0");
    let again = answer(&bed.call(ours(), "ADD", "first").run()).unwrap_err();
    assert!(again.contains("duplicate allocation is not allowed"), "{again}");
    bed.call(ours(), "DEL", "first").ok();
    assert_eq!(bed.leases().len(), 0);
}

/// Nor can a file that has no name be given one where /proc is not mounted.
#[test]
fn without_proc_the_pool_is_the_same() {
    let bed = bed(0);
    let _mounts = Mounts::new().tmpfs(Path::new("/proc"), "size=1m");
    assert_eq!(add(&bed, "first").unwrap(), 2);
    let expected = ["10.0.0.2", "fd00::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"];
    assert_eq!(names(bed.directory()), expected);
    assert_eq!(bed.leases()["10.0.0.2"], "first\r\neth0");
    bed.call(ours(), "DEL", "first").ok();
    assert_eq!(bed.leases().len(), 0);
}

/// There a lease is a draft first, then has two names, then one.
#[test]
fn without_unnamed_files_nothing_is_lost_either_by_an_add_killed_at_every_change() {
    let mut before = 0;
    loop {
        for then in [Then::Del, Then::Gc, Then::Add] {
            let mut scene = Scene::bare();
            let _mounts = Mounts::new().without_unnamed_files(scene.bed.data());
            scene.prepare(Before::Ours);
            let (points, killed) = scene.kill("ADD", Some(before));
            if !killed {
                let drafts = points.iter().filter(|point| point.about.ends_with("/.reservation")).count();
                assert!(drafts >= 6, "written, linked and removed, twice: {points:?}");
                return;
            }
            println!("killed before {:?}, then {then:?}", points.last());
            scene.held(false);
            scene.carry_out(then);
            scene.count();
        }
        before += 1;
    }
}

/// The time that an address cools down is the kernel's since its boot, here that of a time namespace; the wall clock that
/// the files' times come from may say anything.
#[test]
fn only_the_time_since_boot_ends_a_cool_down_and_no_file_time_matters() {
    let bed = Bed::new(&json!({"subnet": "10.0.0.0/29", "rangeEnd": "10.0.0.3", "coolDownSeconds": 600}));
    let later = |seconds: &'static str| ["unshare", "--time", "--boottime", seconds];
    let add = |container: &str, seconds: &'static str| {
        let outcome = bed.call(ours(), "ADD", container).under(&later(seconds)).run();
        answer(&outcome).map(|result| addresses(&result).join(" "))
    };
    let everywhere = |time: &str| {
        run("find", &[bed.data().to_str().unwrap(), "-exec", "touch", "-h", "-d", time, "{}", "+"]);
    };
    assert_eq!(add("c1", "0").unwrap(), "10.0.0.2/29 via 10.0.0.1");
    assert_eq!(add("c2", "0").unwrap(), "10.0.0.3/29 via 10.0.0.1");
    bed.call(ours(), "DEL", "c1").ok();
    for time in ["1980-01-01", "2100-01-01"] {
        everywhere(time);
        for seconds in ["0", "500"] {
            let refusal = add("c3", seconds).unwrap_err();
            assert!(refusal.contains("; 1 address is withheld, until "), "{refusal}");
        }
        bed.call(ours(), "CHECK", "c2").ok();
        let duplicate = add("c2", "0").unwrap_err();
        assert!(duplicate.contains("10.0.0.3 has been allocated to c2"), "{duplicate}");
    }
    assert_eq!(add("c3", "700").unwrap(), "10.0.0.2/29 via 10.0.0.1");
    // A full pool that was looked through is looked through again if an orphan appears, whatever the times say.
    assert!(add("c4", "0").is_err());
    everywhere("1980-01-01");
    assert!(add("c4", "0").is_err());
    fs::remove_file(bed.directory().join("10.0.0.3")).unwrap();
    bed.plant("10.0.0.3", "");
    everywhere("1980-01-01");
    assert_eq!(add("c4", "0").unwrap(), "10.0.0.3/29 via 10.0.0.1");
}
