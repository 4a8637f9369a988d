//! How we come to an API server: tokens, token files, certificates, names; and what is said when we cannot.

use std::{
    fs,
    net::UdpSocket,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::bed::{ApiPod, Bed, wait_for};

/// A pod with one network, and what it takes to attach it by a kubeconfig.
struct Scene {
    bed: Bed,
    pod: ApiPod,
    netns: String,
}

impl Scene {
    fn new(name: &str, pool: u8) -> Self {
        let bed = Bed::enter();
        bed.macvlans(&[(name, pool)]);
        let pod = Bed::pod_with(name, name);
        let netns = bed.world.netns();
        Self { bed, pod, netns }
    }

    fn works(&self, kubeconfig: &Path) {
        let conf = self.bed.conf(kubeconfig);
        self.bed.call("ADD", &self.netns, &conf, &self.pod).ok();
        self.bed.call("DEL", &self.netns, &conf, &self.pod).ok();
        self.bed.assert_undone(&self.netns);
    }

    fn fails(&self, kubeconfig: &Path, code: u64) -> String {
        let mut conf = self.bed.conf(kubeconfig);
        conf["addTimeoutSeconds"] = json!(4);
        let text = self.bed.call("ADD", &self.netns, &conf, &self.pod).fails(code);
        self.bed.assert_undone(&self.netns);
        text
    }
}

#[test]
fn a_token_file_is_read_anew_on_each_call() {
    let scene = Scene::new("rotated", 22);
    let file = Path::new("/run/test/token");
    // As a bound token is mounted; a relative path is meant from the kubeconfig's directory.
    let kubeconfig = Bed::kubeconfig("rotated", &Bed::server(), &json!({"tokenFile": "token"}));
    fs::write(file, format!("{}\n", Bed::token())).unwrap();
    scene.works(&kubeconfig);
    fs::write(file, "eyJhbGciOiJSUzI1NiJ9.e30.none").unwrap();
    let text = scene.fails(&kubeconfig, 11);
    assert!(text.contains("does not accept our credentials") && text.contains("renew"), "{text}");
    fs::write(file, Bed::token()).unwrap();
    scene.works(&kubeconfig);
    fs::write(file, "\n").unwrap();
    let text = scene.fails(&kubeconfig, 7);
    assert!(text.contains("/run/test/token is empty"), "{text}");
    fs::remove_file(file).unwrap();
    let text = scene.fails(&kubeconfig, 5);
    assert!(text.contains("/run/test/token") && text.contains("No such file"), "{text}");
}

/// A process that does not outlive its test.
pub(crate) struct Ended(pub(crate) std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn tokens_are_renewed_by_the_installer_in_the_middle_of_a_stream_of_pods() {
    let scene = Scene::new("installed", 61);
    fs::create_dir_all("/run/test/net.d").unwrap();
    fs::copy(scene.bed.world.flannel_primary(), "/run/test/net.d/10-flannel.conflist").unwrap();
    let token = Path::new("/run/test/pod-token");
    fs::write(token, Bed::token()).unwrap();
    let (authority, server) = (Bed::path("pki/ca.crt"), Bed::server());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_meta-cni"));
    let places =
        ["--cni-bin-dir", "/run/test/plugins", "--cni-conf-dir", "/run/test/net.d", "--state-dir", "/run/test/state"];
    command.args(["install", "--watch", "--server", &server]).args(places);
    command.arg("--token-file").arg(token).arg("--ca-file").arg(authority).env_remove("CNI_COMMAND");
    let _watch = Ended(command.stderr(std::process::Stdio::null()).spawn().unwrap());
    let ours = Path::new("/run/test/net.d/00-meta-cni.conflist");
    wait_for("it is installed", 60, || ours.exists() && !Path::new("/run/test/net.d/10-flannel.conflist").exists());
    let list: Value = serde_json::from_slice(&fs::read(ours).unwrap()).unwrap();
    let mut conf = list["plugins"][0].clone();
    assert_eq!(conf["kubeconfig"], "/run/test/state/credentials/kubeconfig");
    for (key, value) in
        [("name", &list["name"]), ("cniVersion", &list["cniVersion"]), ("binDir", &json!(scene.bed.world.bin))]
    {
        conf[key] = value.clone();
    }
    conf.as_object_mut().unwrap().remove("cniDir");
    let attach = || {
        scene.bed.call("ADD", &scene.netns, &conf, &scene.pod).ok();
        scene.bed.call("DEL", &scene.netns, &conf, &scene.pod).ok();
    };
    let kept = || fs::read_to_string("/run/test/state/credentials/token").unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let renewed = std::thread::scope(|scope| {
        let renewing = scope.spawn(|| {
            let mut renewed = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let next = Bed::token();
                fs::write("/run/test/next-token", &next).unwrap();
                fs::rename("/run/test/next-token", token).unwrap();
                wait_for("the token is renewed on the node", 60, || kept() == next);
                renewed += 1;
            }
            renewed
        });
        (0..8).for_each(|_| attach());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        renewing.join().unwrap()
    });
    assert!(renewed >= 2, "{renewed}");
    // One that has expired is replaced, too, and it is that file which is read.
    fs::write(token, "eyJhbGciOiJSUzI1NiJ9.e30.none").unwrap();
    wait_for("it is on the node", 60, || kept().ends_with(".none"));
    scene.bed.call("ADD", &scene.netns, &conf, &scene.pod).fails(11);
    fs::write(token, Bed::token()).unwrap();
    wait_for("it is renewed", 60, || !kept().ends_with(".none"));
    attach();
    scene.bed.assert_undone(&scene.netns);
}

#[test]
fn a_client_certificate_works_from_files_and_in_place() {
    let scene = Scene::new("certified", 23);
    scene.works(&Bed::path("admin.kubeconfig"));
    let user = json!({"client-certificate": Bed::path("pki/admin.crt"), "client-key": Bed::path("pki/admin.key")});
    scene.works(&Bed::kubeconfig("files", &Bed::server(), &user));
    let nobody = Bed::kubeconfig("nobody", &Bed::server(), &json!({}));
    let text = scene.fails(&nobody, 11);
    assert!(text.contains("system:anonymous") && text.contains("deploy/base/rbac.yaml"), "{text}");
}

#[test]
fn a_server_is_found_by_its_name_in_the_hosts_file() {
    let scene = Scene::new("by-name", 24);
    let hosts = "/run/test/hosts";
    fs::write(hosts, "127.0.0.1 localhost\n127.0.0.1\tapi.example api.bed.test # the bed\n").unwrap();
    let by_name = |host: &str| Bed::server().replace("127.0.0.1", host);
    let user = json!({"token": Bed::token()});
    let kubeconfig = Bed::kubeconfig("by-name", &by_name("api.bed.test"), &user);
    let none: Option<&str> = None;

    // No hosts file knows it and there is no DNS here: it ends in time, and says what it could not do.
    let began = Instant::now();
    let text = scene.fails(&kubeconfig, 11);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(text.contains("https://api.bed.test:") && text.contains("the name api.bed.test has no address"), "{text}");

    mount(Some(hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        scene.works(&kubeconfig);
        // A name that the server's certificate does not have.
        let text = scene.fails(&Bed::kubeconfig("other", &by_name("api.example"), &user), 11);
        assert!(text.contains("certificate"), "{text}");
    }));
    umount2("/etc/hosts", MntFlags::MNT_DETACH).unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A name server that knows one name, which is 127.0.0.1: answers A with it, anything else with nothing. Runs until its
/// socket has been idle for a while.
fn name_server(name: &'static str) -> std::thread::JoinHandle<usize> {
    let socket = UdpSocket::bind("127.0.0.1:53").expect("port 53 of the test's own namespace");
    socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    std::thread::spawn(move || {
        let mut answered = 0;
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            let question_end = 12 + query[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            let asks_for_a = query[question_end - 4..question_end - 2] == [0, 1];
            let mut labels = Vec::new();
            for label in name.split('.') {
                labels.push(u8::try_from(label.len()).unwrap());
                labels.extend(label.bytes());
            }
            let known = query[12..].to_ascii_lowercase().starts_with(&labels);
            // RFC 1035 4.1.1: id, "answer, recursion available" and the code, one question, perhaps one answer.
            let mut answer = query[..2].to_vec();
            answer.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(known && asks_for_a), 0, 0, 0, 0]);
            answer.extend(&query[12..question_end]);
            if known && asks_for_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
                answered += 1;
            }
            socket.send_to(&answer, client).unwrap();
        }
        answered
    })
}

#[test]
fn a_server_is_found_by_its_name_in_the_dns() {
    let scene = Scene::new("by-dns", 27);
    fs::write("/run/test/resolv.conf", "nameserver 127.0.0.1\n").unwrap();
    let none: Option<&str> = None;
    mount(Some("/run/test/resolv.conf"), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let server = name_server("api.bed.test");
        let user = json!({"token": Bed::token()});
        scene.works(&Bed::kubeconfig("by-dns", &Bed::server().replace("127.0.0.1", "api.bed.test"), &user));
        assert!(server.join().unwrap() > 0, "the name server was not asked");
    }));
    umount2("/etc/resolv.conf", MntFlags::MNT_DETACH).unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn users_that_need_a_program_or_are_another_are_refused_in_clear_words() {
    let scene = Scene::new("refused", 25);
    let exec = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/run/test/never",
                               "interactiveMode": "Never"}});
    fs::write("/run/test/never", "#!/bin/sh\ntouch /run/test/executed\n").unwrap();
    fs::set_permissions("/run/test/never", fs::Permissions::from_mode(0o755)).unwrap();
    for user in [exec.clone(), json!({"auth-provider": {"name": "oidc", "config": {}}})] {
        let text = scene.fails(&Bed::kubeconfig("refused", &Bed::server(), &user), 7);
        assert!(text.contains("refused.kubeconfig") && text.contains("exec or auth-provider"), "{text}");
        assert!(text.contains("use a token file or a client certificate"), "{text}");
    }
    assert!(!Path::new("/run/test/executed").exists(), "the program was run");
    let other = json!({"token": Bed::token(), "as": "system:admin"});
    let text = scene.fails(&Bed::kubeconfig("other", &Bed::server(), &other), 7);
    assert!(text.contains("acts as another one"), "{text}");
    // Such a user beside the one of the current context is nobody's concern.
    let path = Bed::kubeconfig("beside", &Bed::server(), &json!({"token": Bed::token()}));
    let mut kubeconfig: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    kubeconfig["users"].as_array_mut().unwrap().insert(0, json!({"name": "somebody", "user": exec}));
    fs::write(&path, kubeconfig.to_string()).unwrap();
    scene.works(&path);
}

#[test]
fn a_kubeconfig_that_is_wrong_is_named() {
    let scene = Scene::new("wrong", 26);
    let text = scene.fails(Path::new("/run/test/absent.kubeconfig"), 5);
    assert!(text.contains("/run/test/absent.kubeconfig") && text.contains("No such file"), "{text}");
    fs::write("/run/test/garbage.kubeconfig", "{{{").unwrap();
    let text = scene.fails(Path::new("/run/test/garbage.kubeconfig"), 7);
    assert!(text.contains("/run/test/garbage.kubeconfig"), "{text}");
    // Another authority's certificate for the server: never talked to.
    let path = Bed::kubeconfig("impostor", &Bed::server(), &json!({"token": Bed::token()}));
    let mut kubeconfig: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    kubeconfig["clusters"][0]["cluster"]["certificate-authority"] = json!(Bed::path("pki/admin.crt"));
    fs::write(&path, kubeconfig.to_string()).unwrap();
    let text = scene.fails(&path, 11);
    assert!(text.contains("certificate"), "{text}");
}
