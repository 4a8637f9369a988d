//! The log file: many writers, rotation, and what an administrator, a full disk or a kill does to it.

use std::{
    collections::BTreeSet,
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::{DIRECTORY, LOG, Line, OF_ADD, all_lines, lines, logging_world, parse, short};
use crate::harness::{Call, Which, World, names, trace};

/// A call that fails at once, with lines longer than what a pipe takes in one piece.
fn long_call(world: &World, container: &str, conf: &Value) -> Call {
    let netns = format!("/run/{}", "long-name/".repeat(380));
    world.call("ADD", container, &netns, conf).pod("p")
}

#[test]
fn fifty_processes_at_once_write_whole_lines_and_lose_none() {
    const MAX: u64 = 104_857;
    let (world, _, mut conf) = logging_world();
    conf["logOptions"] = json!({"maxSize": 0.1, "maxBackups": 0});
    conf["logToStderr"] = json!(false);
    let storm = |round: &str, conf: &Value| {
        let containers: Vec<String> = (0..50).map(|number| format!("{round}-{number}")).collect();
        let children: Vec<_> = containers.iter().map(|name| long_call(&world, name, conf).start()).collect();
        for child in children {
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
        }
        containers
    };
    let mut wanted = Vec::new();
    for round in ["a", "b", "c"] {
        for container in storm(round, &conf) {
            wanted.extend(["begin", "reply"].map(|step| (container.clone(), step.to_owned())));
        }
    }
    let mut found: Vec<(String, String)> = all_lines()
        .iter()
        .map(|line| ["container", "step"].map(|key| line[key].as_str().unwrap().to_owned()).into())
        .collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    let backups: Vec<String> = names(DIRECTORY).into_iter().filter(|name| name != "meta.log").collect();
    assert!(backups.len() >= 10, "{backups:?}");
    for name in &backups {
        let found = fs::metadata(Path::new(DIRECTORY).join(name)).unwrap();
        assert!(found.len() + 10_000 > MAX, "{name} was put aside with {} bytes", found.len());
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
    }

    // Not more than asked for, the newest of them, and nothing else of the directory.
    for other in ["meta-old.log", "meta-2020-01-01T00-00-00.000000000.txt", "other-2020-01-01T00-00-00.000000000.log"] {
        fs::write(Path::new(DIRECTORY).join(other), "").unwrap();
    }
    conf["logOptions"] = json!({"maxSize": 0.04, "maxBackups": 3});
    storm("d", &conf);
    let of_form = |name: &&String| name.starts_with("meta-20") && name.ends_with(".log");
    let left = names(DIRECTORY);
    let kept: Vec<&String> = left.iter().filter(of_form).collect();
    assert_eq!((kept.len(), left.len()), (3, 7), "{left:?}");
    assert!(kept.iter().all(|name| !backups.contains(name)), "{kept:?}");
    assert!(all_lines().iter().all(|line| line["container"].as_str().unwrap().starts_with(['c', 'd'])));
}

#[test]
fn what_was_put_aside_long_ago_is_removed_when_the_next_one_is() {
    let (world, _, mut conf) = logging_world();
    conf["logOptions"] = json!({"maxSize": 0.001, "maxBackups": 0, "maxAge": 2});
    let old = Path::new(DIRECTORY).join("meta-2020-01-01T00-00-00.000000000.log");
    fs::write(&old, "").unwrap();
    fs::write(LOG, "time=x\n").unwrap();
    long_call(&world, "c1", &conf).run();
    assert!(!old.exists());
    // The filler, and the first line of the call.
    assert_eq!(names(DIRECTORY).len(), 3, "{:?}", names(DIRECTORY));
}

#[test]
fn killed_anywhere_in_a_rotation_the_next_call_logs_and_rotates_on() {
    let (world, _, mut conf) = logging_world();
    conf["logOptions"] = json!({"maxSize": 0.001, "maxBackups": 2});
    let filler = format!("time=then msg={}\n", "x".repeat(1500));
    let prepare = || {
        let _ = fs::remove_dir_all(DIRECTORY);
        fs::create_dir_all(DIRECTORY).unwrap();
        for day in 1..=2 {
            fs::write(format!("{DIRECTORY}/meta-2020-01-0{day}T00-00-00.000000000.log"), "time=before\n").unwrap();
        }
        fs::write(LOG, &filler).unwrap();
    };
    conf["logOptions"]["maxAge"] = json!(0);
    let call = world.call("ADD", "c1", "/run/none", &conf).pod("p");
    prepare();
    let points = trace(&call, Which::All, None).points;
    let of_log: Vec<usize> = (0..points.len()).filter(|at| points[*at].about.starts_with(DIRECTORY)).collect();
    let kinds: BTreeSet<&str> = of_log.iter().map(|at| points[*at].call).collect();
    assert_eq!(kinds, ["flock", "openat", "rename", "unlink", "write"].into(), "{points:#?}");
    let is_line = |at: &&usize| points[**at].call == "write";
    assert_eq!(of_log.iter().filter(is_line).count(), 2, "one write for a line: the kernel keeps these apart");
    for at in of_log {
        prepare();
        let traced = trace(&call, Which::All, Some(at));
        assert!(traced.killed, "{traced:#?}");
        let point = &traced.points[at];
        assert_eq!((point.call, traced.points.len()), (points[at].call, at + 1));
        let fillers = || all_lines().iter().filter(|line| line["time"] == "then").count();
        assert_eq!(fillers(), 1, "{point:?}");
        for container in ["c2", "c3"] {
            world.call("ADD", container, "/run/none", &conf).pod("p").fails(8);
            let found = all_lines();
            let of_call: Vec<String> =
                found.iter().filter(|line| line.get("container") == Some(&json!(container))).map(short).collect();
            assert_eq!(of_call, ["begin", "reply"], "{point:?}: {:?}", names(DIRECTORY));
        }
        assert!(fs::metadata(LOG).unwrap().len() <= 1048, "{point:?}");
        assert_eq!(fillers(), 1, "{point:?}");
        // Once more for what a kill before the removal left: it goes with the next rotation.
        fs::write(LOG, &filler).unwrap();
        world.call("ADD", "c4", "/run/none", &conf).pod("p").fails(8);
        assert_eq!(names(DIRECTORY).len(), 3, "{point:?}: {:?}", names(DIRECTORY));
    }
}

#[test]
fn while_one_process_rotates_the_lines_of_others_go_into_the_old_file() {
    let (world, _, mut conf) = logging_world();
    conf["logOptions"] = json!({"maxSize": 0.001});
    let call = |container: &str| drop(world.call("ADD", container, "/run/none", &conf).pod("p").fails(8));
    fs::write(LOG, format!("msg={}\n", "x".repeat(2000))).unwrap();
    let rotating = File::open(LOG).unwrap();
    rotating.lock().unwrap();
    call("c1");
    assert_eq!(names(DIRECTORY), ["meta.log"]);
    assert_eq!(lines(LOG).iter().map(short).collect::<Vec<_>>(), ["", "begin", "reply"]);
    drop(rotating);
    call("c2");
    assert_eq!(names(DIRECTORY).len(), 2);
    assert_eq!(lines(LOG).iter().map(short).collect::<Vec<_>>(), ["begin", "reply"]);
}

#[test]
fn an_administrators_logrotate_may_work_on_the_same_file() {
    let (world, _, conf) = logging_world();
    let call = |container: &str| drop(world.call("ADD", container, "/run/none", &conf).pod("p").fails(8));
    let containers = |path: &str| {
        let found: Vec<Line> = lines(path);
        found.iter().filter(|line| line["step"] == "reply").map(|line| line["container"].clone()).collect::<Vec<_>>()
    };
    call("c1");
    // `create`: it makes the new file, with a mode of its own; or leaves it to us.
    fs::rename(LOG, format!("{LOG}.1")).unwrap();
    fs::write(LOG, "").unwrap();
    fs::set_permissions(LOG, Permissions::from_mode(0o640)).unwrap();
    call("c2");
    assert_eq!(fs::metadata(LOG).unwrap().permissions().mode() & 0o777, 0o640);
    fs::rename(LOG, format!("{LOG}.2")).unwrap();
    call("c3");
    // `copytruncate`.
    fs::copy(LOG, format!("{LOG}.3")).unwrap();
    File::options().write(true).open(LOG).unwrap().set_len(0).unwrap();
    call("c4");
    for (number, path) in [".1", ".2", ".3", ""].iter().enumerate() {
        assert_eq!(containers(&format!("{LOG}{path}")), [format!("c{}", number + 1)]);
    }
}

#[test]
fn the_file_behind_a_link_is_put_aside_in_its_own_directory() {
    let (world, _, mut conf) = logging_world();
    conf["logOptions"] = json!({"maxSize": 0.001});
    fs::create_dir("/run/test/disk").unwrap();
    fs::write("/run/test/disk/real.log", format!("msg={}\n", "x".repeat(2000))).unwrap();
    symlink("/run/test/disk/real.log", LOG).unwrap();
    world.call("ADD", "c1", "/run/none", &conf).pod("p").fails(8);
    assert!(fs::symlink_metadata(LOG).unwrap().is_symlink());
    assert_eq!(names(DIRECTORY), ["meta.log"]);
    let there = names("/run/test/disk");
    assert!(there.len() == 2 && there[0].starts_with("real-20") && there[1] == "real.log", "{there:?}");
    assert_eq!(lines(LOG).len(), 2);
}

#[test]
fn a_log_that_cannot_be_written_is_one_warning_and_no_error() {
    let (world, _, mut conf) = logging_world();
    let none: Option<&str> = None;
    fs::create_dir("/run/test/ro").unwrap();
    mount(Some("tmpfs"), "/run/test/ro", Some("tmpfs"), MsFlags::MS_RDONLY, none).unwrap();
    nix::unistd::mkfifo("/run/test/fifo", nix::sys::stat::Mode::S_IRUSR).unwrap();
    for path in ["/run/none/x.log", "/run/test", "/dev/full", "/run/test/ro/x.log", "/run/test/fifo"] {
        for to_stderr in [true, false] {
            conf["logFile"] = json!(path);
            conf["logToStderr"] = json!(to_stderr);
            let netns = world.netns();
            for verb in ["ADD", "DEL"] {
                // A pipe that nobody reads must not keep it waiting.
                let call = world.call(verb, "c1", &netns, &conf).pod("p");
                let outcome = call.under(&["timeout", "60"]).run();
                assert_eq!(outcome.code, 0, "{path}: {outcome:#?}");
                let told: Vec<Line> = outcome.stderr.lines().map(parse).collect();
                assert_eq!(told.len(), 1, "{path}: {outcome:#?}");
                let message = told[0]["msg"].as_str().unwrap();
                assert!(message.starts_with(&format!("the log file {path} cannot be ")), "{message}");
                assert_eq!((&told[0]["level"], &told[0]["pod"]), (&json!("WARN"), &json!("default/p")));
            }
        }
    }
    // A file that cannot be put aside is written to all the same.
    fs::create_dir("/run/test/fixed").unwrap();
    fs::write("/run/test/fixed/x.log", format!("msg={}\n", "x".repeat(2000))).unwrap();
    mount(Some("/run/test/fixed/x.log"), "/run/test/fixed/x.log", none, MsFlags::MS_BIND, none).unwrap();
    conf["logFile"] = json!("/run/test/fixed/x.log");
    conf["logOptions"] = json!({"maxSize": 0.001});
    let outcome = world.call("ADD", "c1", "/run/none", &conf).pod("p").run();
    assert!(outcome.stderr.contains("cannot be written, or not be put aside"), "{outcome:#?}");
    assert_eq!(lines("/run/test/fixed/x.log").iter().map(short).collect::<Vec<_>>(), ["", "begin", "reply"]);
}

#[test]
fn half_a_line_on_a_full_disk_does_not_spoil_the_next_one() {
    let (world, _, mut conf) = logging_world();
    let none: Option<&str> = None;
    fs::create_dir("/run/test/small").unwrap();
    mount(Some("tmpfs"), "/run/test/small", Some("tmpfs"), MsFlags::empty(), Some("size=4k")).unwrap();
    conf["logFile"] = json!("/run/test/small/x.log");
    conf["logToStderr"] = json!(false);
    let outcome = long_call(&world, "c1", &conf).run();
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:#?}");
    let text = fs::read_to_string("/run/test/small/x.log").unwrap();
    assert!(!text.ends_with('\n'), "the test wants half a line");
    mount(none, "/run/test/small", none, MsFlags::MS_REMOUNT, Some("size=100k")).unwrap();
    world.call("ADD", "c2", "/run/none", &conf).pod("p").fails(8);
    let text = fs::read_to_string("/run/test/small/x.log").unwrap();
    let whole: Vec<Line> = text.lines().filter(|line| line.contains("container=c2")).map(parse).collect();
    assert_eq!(whole.iter().map(short).collect::<Vec<_>>(), ["begin", "reply"]);
}

#[test]
fn the_lines_of_a_removed_file_go_into_a_new_one() {
    let (world, recorder, conf) = logging_world();
    recorder.behave("second", "ADD", &format!("rm {LOG}"));
    let netns = world.netns();
    world.call("ADD", "c1", &netns, &conf).pod("p").ok();
    let found: Vec<String> = lines(LOG).iter().map(short).collect();
    assert_eq!(found, [&OF_ADD[4..], &["reply"]].concat());
    assert_eq!(fs::metadata(LOG).unwrap().nlink(), 1);
    File::options().append(true).open(LOG).unwrap().write_all(b"half").unwrap();
    world.call("DEL", "c1", &netns, &conf).pod("p").ok();
    let text = fs::read_to_string(LOG).unwrap();
    assert_eq!(text.lines().filter(|line| *line == "half").count(), 1, "{text}");
}
