//! How events get to the server: neither lost nor waited for.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, handed, wait_for},
    events::{conf, events, said, wrong},
    harness::names,
};

/// The processes of ours on this test's node that post events: others on the machine are of other tests.
fn posters() -> Vec<String> {
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let is_poster = |pid: &String| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"meta-cni\0post-events\0")
            && fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|net| net == own)
    };
    names("/proc").into_iter().filter(is_poster).collect()
}

/// Waits for them.
pub(crate) fn all_posted() {
    wait_for("the processes that post events end", 20, || posters().is_empty());
}

/// The session that a process is of.
fn session(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').nth(3)?.to_owned())
}

#[test]
fn a_server_that_answers_has_the_event_before_the_reply_and_no_process_is_started() {
    let bed = Bed::enter();
    let mut conf = handed(&conf(&bed, "failures"), &wrong());
    conf["logLevel"] = json!("info");
    let netns = bed.world.netns();
    // On a busy machine a connection may take longer than an event may, but not each time.
    let at_once = (0..10).any(|number| {
        let pod = Bed::pod(&format!("quick-{number}"), &wrong());
        let mut log = String::new();
        let asked = Bed::requests(|| log = bed.call("ADD", &netns, &conf, &pod).run().stderr);
        let by_another = log.contains("events are posted by a process of their own");
        all_posted();
        assert_eq!(events(&pod.name).len(), 1, "{asked:?}\n{log}");
        assert!(by_another || asked == ["create events/"], "{asked:?}");
        !by_another
    });
    assert!(at_once, "each event needed a process of its own");
    bed.assert_undone(&netns);
}

/// How long an ADD takes that is refused.
fn refusal(bed: &Bed, netns: &str, conf: &Value, pod: &ApiPod) -> Duration {
    let began = Instant::now();
    bed.call("ADD", netns, conf, pod).fails(7);
    began.elapsed()
}

#[test]
fn a_server_that_hangs_does_not_hold_the_reply_up_and_has_the_event_later() {
    let mut bed = Bed::enter();
    let all = handed(&conf(&bed, "all"), &json!({}));
    let [silent, conf] = ["off", "failures"].map(|events| handed(&conf(&bed, events), &wrong()));
    let [pod, plain] =
        [("hangs-refused", wrong()), ("hangs-attached", json!({}))].map(|(name, of)| Bed::pod(name, &of));
    let netns = bed.world.netns();
    bed.pause();
    // An ADD that succeeds has the sandbox's lock to its end.
    let other = bed.world.netns();
    bed.call("ADD", &other, &all, &plain).ok();
    let alone = refusal(&bed, &netns, &silent, &pod);
    let with_event = refusal(&bed, &netns, &conf, &pod);
    println!("a refusal takes {alone:?} without events, {with_event:?} with one that the server does not take");
    assert!(with_event < alone + Duration::from_secs(1), "{with_event:?}, without events {alone:?}");
    wait_for("two processes, each in a session of its own", 5, || {
        posters().len() == 2 && posters().iter().all(|pid| session(pid).as_ref() == Some(pid))
    });
    let waiting = posters();
    for pid in &waiting {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap().display().to_string();
        wait_for("nothing of ours is open", 5, || {
            let open: Vec<String> =
                names(format!("/proc/{pid}/fd")).iter().map(|fd| link(&format!("fd/{fd}"))).collect();
            open[..3] == ["/dev/null"; 3] && !open.iter().any(|path| path.contains("meta-cni"))
        });
        assert_eq!(link("cwd"), "/");
    }
    // The sandboxes are free while these wait.
    for (netns, pod) in [(&netns, &pod), (&other, &plain)] {
        let began = Instant::now();
        bed.call("DEL", netns, &conf, pod).ok();
        assert!(began.elapsed() < Duration::from_secs(1), "DEL waited for {:?}", began.elapsed());
    }
    refusal(&bed, &netns, &silent, &pod);
    assert_eq!(posters(), waiting);
    // And if it cannot be started, that is in the log.
    let failing =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-P", "/proc/self/exe", "-e", "inject=execve:error=EACCES"];
    let outcome = bed.call("ADD", &netns, &conf, &pod).under(&failing).run();
    assert_eq!((outcome.code, &outcome.json()["code"]), (1, &json!(7)), "{outcome:#?}");
    assert!(outcome.stderr.contains("events are lost: no process could be started"), "{outcome:#?}");
    bed.resume();
    assert_eq!(said("hangs-refused", 1).len(), 1);
    assert_eq!(said("hangs-attached", 1).len(), 1);
    all_posted();
    bed.assert_undone(&netns);
}

#[test]
fn what_kills_our_process_group_right_after_the_reply_does_not_lose_the_event() {
    let mut bed = Bed::enter();
    let conf = handed(&conf(&bed, "failures"), &wrong());
    let pod = Bed::pod("killed-refused", &wrong());
    let netns = bed.world.netns();
    bed.pause();
    let adding = bed.call("ADD", &netns, &conf, &pod).under(&["setsid"]).start();
    let group = Pid::from_raw(adding.id().cast_signed());
    let output = adding.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"code\": 7"), "{output:?}");
    // There is nobody in it any more.
    assert_eq!(killpg(group, Signal::SIGKILL), Err(Errno::ESRCH));
    bed.resume();
    assert_eq!(said("killed-refused", 1).len(), 1);
    all_posted();
}

#[test]
fn without_a_server_a_refusal_is_prompt_and_no_process_stays() {
    let mut bed = Bed::enter();
    let mut conf = handed(&conf(&bed, "failures"), &wrong());
    conf["logFile"] = json!("/run/test/events.log");
    let pod = Bed::pod("down-refused", &wrong());
    let netns = bed.world.netns();
    bed.stop();
    let mut silent = conf.clone();
    silent["events"] = json!("off");
    let alone = refusal(&bed, &netns, &silent, &pod);
    let with_event = refusal(&bed, &netns, &conf, &pod);
    println!("a refusal takes {alone:?} without events, {with_event:?} with one that the server does not take");
    assert!(with_event < alone + Duration::from_secs(1), "{with_event:?}, without events {alone:?}");
    assert!(!posters().is_empty());
    all_posted();
    let log = fs::read_to_string("/run/test/events.log").unwrap();
    assert!(log.contains(r#"msg="events are lost" lost=1"#) && log.contains("Connection refused"), "{log}");
    bed.start();
    assert_eq!(events("down-refused"), Vec::<Value>::new());
    bed.assert_undone(&netns);
}
