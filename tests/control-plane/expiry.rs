//! Tokens that expire while pods are made: replaced in time, a moment late, or not at all.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    bed::{ApiPod, Bed, wait_for},
    credentials::Ended,
    harness::Interface,
    tokens::{Mint, log_end, refused_since, review},
};

/// Writes a file as one that is replaced, never changed.
pub(crate) fn place(path: &str, text: &str) {
    let draft = format!("{path}.draft");
    fs::write(&draft, text).unwrap();
    fs::rename(draft, path).unwrap();
}

/// A kubeconfig whose token file is another one each time: both are replaced by rename, and the former token is removed.
struct ByHand {
    turn: usize,
}

impl ByHand {
    const PATH: &str = "/run/test/by-hand.kubeconfig";

    fn renew(&mut self, token: &str) {
        self.turn += 1;
        let file = format!("/run/test/token-{}", self.turn);
        place(&file, token);
        let draft = Bed::kubeconfig("draft", &Bed::server(), &json!({"tokenFile": file}));
        fs::rename(draft, Self::PATH).unwrap();
        let _ = fs::remove_file(format!("/run/test/token-{}", self.turn - 1));
    }
}

/// A projected volume, as kubelet mounts and renews it, which our installer keeps the node's copy by.
struct Projected {
    turn: usize,
}

impl Projected {
    const DIRECTORY: &str = "/run/test/projected";

    fn renew(&mut self, token: &str) {
        let directory = Path::new(Self::DIRECTORY);
        let version = format!("..version-{}", self.turn + 1);
        fs::create_dir_all(directory.join(&version)).unwrap();
        fs::write(directory.join(&version).join("token"), token).unwrap();
        fs::copy(Bed::path("pki/ca.crt"), directory.join(&version).join("ca.crt")).unwrap();
        symlink(&version, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        for name in ["token", "ca.crt"] {
            let _ = symlink(format!("..data/{name}"), directory.join(name));
        }
        let _ = fs::remove_dir_all(directory.join(format!("..version-{}", self.turn)));
        self.turn += 1;
    }

    /// Our installer, which stays, and the configuration that it wrote.
    fn install(bed: &Bed) -> (Ended, Value) {
        fs::create_dir_all("/run/test/net.d").unwrap();
        fs::copy(bed.world.flannel_primary(), "/run/test/net.d/10-flannel.conflist").unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_meta-cni"));
        command.args(["install", "--watch", "--node-name", "node-1", "--server", &Bed::server()]);
        for (flag, value) in [
            ("--cni-bin-dir", "/run/test/plugins"),
            ("--cni-conf-dir", "/run/test/net.d"),
            ("--state-dir", "/run/test/state"),
            ("--token-file", "/run/test/projected/token"),
            ("--ca-file", "/run/test/projected/ca.crt"),
        ] {
            command.args([flag, value]);
        }
        let watch = Ended(command.env_remove("CNI_COMMAND").stderr(Stdio::null()).spawn().unwrap());
        let ours = Path::new("/run/test/net.d/00-meta-cni.conflist");
        wait_for("it is installed", 60, || ours.exists() && !Path::new("/run/test/net.d/10-flannel.conflist").exists());
        let list: Value = serde_json::from_slice(&fs::read(ours).unwrap()).unwrap();
        let mut conf = list["plugins"][0].clone();
        for (key, value) in
            [("name", &list["name"]), ("cniVersion", &list["cniVersion"]), ("binDir", &json!(bed.world.bin))]
        {
            conf[key] = value.clone();
        }
        conf.as_object_mut().unwrap().remove("cniDir");
        (watch, conf)
    }
}

/// Attaches and detaches a pod, again and again.
pub(crate) fn stream(bed: &Bed, conf: &Value, pod: &ApiPod, ended: &AtomicBool, made: &AtomicUsize) {
    let netns = bed.world.netns();
    while !ended.load(Relaxed) {
        bed.call("ADD", &netns, conf, pod).ok();
        assert!(Interface::find(&netns, "net1").is_some_and(|net1| net1.addresses().len() == 1), "{}", pod.name);
        made.fetch_add(1, Relaxed);
        bed.call("DEL", &netns, conf, pod).ok();
        bed.assert_gone(&netns);
    }
}

/// Ends the others when one of them fails, too.
pub(crate) struct Ends<'a>(pub(crate) &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn no_add_of_a_stream_fails_while_tokens_expire_and_are_replaced() {
    let bed = Bed::enter();
    bed.macvlans(&[("expiring", 62)]);
    let mint = Mint::new("expiring-installer");
    let (mut by_hand, mut projected) = (ByHand { turn: 0 }, Projected { turn: 0 });
    by_hand.renew(&mint.token(60));
    projected.renew(&mint.token(60));
    let (_watch, installed) = Projected::install(&bed);
    let confs = [bed.conf(Path::new(ByHand::PATH)), installed];
    let pods: Vec<ApiPod> = (0..4).map(|at| Bed::pod_with(&format!("expiring-{at}"), "expiring")).collect();
    // The server is as strict as it is said here.
    assert_eq!(review(&mint.token(60)), Ok("node-1".to_owned()));
    let refusal = review(&mint.token(-1)).unwrap_err();
    assert!(refusal.contains("expired"), "{refusal}");

    let (ended, made, place) = (AtomicBool::new(false), AtomicUsize::new(0), log_end());
    let mut turn = 0;
    scope(|scope| {
        for (at, pod) in pods.iter().enumerate() {
            let (bed, conf, ended, made) = (&bed, &confs[at % 2], &ended, &made);
            scope.spawn(move || {
                let _ends = Ends(ended);
                stream(bed, conf, pod, ended, made);
            });
        }
        let _ends = Ends(&ended);
        // A token lives for two seconds and is replaced each second; of one in three the next comes after its end.
        // On a busy machine ADDs are few, and it takes longer until enough of them have met an expired one.
        while turn < 6 || made.load(Relaxed) < 8 || refused_since(place) == 0 {
            assert!(turn < 60, "{made:?} ADDs, {} refused requests", refused_since(place));
            let late = turn % 3 == 2;
            if late {
                by_hand.renew(&mint.token(-1));
                projected.renew(&mint.token(-1));
                sleep(Duration::from_millis(500));
            }
            by_hand.renew(&mint.token(2));
            projected.renew(&mint.token(2));
            sleep(Duration::from_secs(1));
            assert!(!ended.load(Relaxed), "an ADD failed in turn {turn}");
            turn += 1;
        }
    });
    let refused = refused_since(place);
    println!("{made:?} ADDs while tokens of two seconds were replaced {turn} times; {refused} requests were refused");
    bed.world.assert_clean();
    for pod in &pods {
        assert_eq!(Bed::status(&pod.name).expect("network-status")[1]["name"], "default/expiring");
    }
}

#[test]
fn a_token_that_expired_is_waited_for_and_if_it_stays_so_it_is_said() {
    let bed = Bed::enter();
    bed.macvlans(&[("lapsed", 63)]);
    let mint = Mint::new("lapsed-installer");
    let token = "/run/test/lapsed.token";
    let conf = bed.conf(&Bed::kubeconfig("lapsed", &Bed::server(), &json!({"tokenFile": token})));
    let pod = Bed::pod_with("lapsed", "lapsed");
    let netns = bed.world.netns();

    // Who renews it is late.
    for _ in 0..2 {
        place(token, &mint.token(-1));
        let start = log_end();
        let adding = bed.call("ADD", &netns, &conf, &pod).start();
        wait_for("the server refuses the token", 20, || refused_since(start) > 0);
        sleep(Duration::from_millis(700));
        place(token, &mint.token(60));
        let output = adding.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        bed.call("DEL", &netns, &conf, &pod).ok();
        bed.assert_undone(&netns);
    }

    // Nobody renews it.
    place(token, &mint.token(-240));
    let (began, start) = (Instant::now(), log_end());
    let text = bed.call("ADD", &netns, &conf, &pod).fails(11);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    for said in ["does not accept our credentials", "/run/test/lapsed.token", "expired at 20", "DaemonSet"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!((2..=12).contains(&refused_since(start)), "{} requests", refused_since(start));
    bed.assert_undone(&netns);

    // Once it is there nothing waits, or looks at the former one.
    place(token, &mint.token(60));
    let start = log_end();
    bed.call("ADD", &netns, &conf, &pod).ok();
    assert_eq!(refused_since(start), 0);
    bed.call("DEL", &netns, &conf, &pod).ok();
    bed.assert_undone(&netns);
}
