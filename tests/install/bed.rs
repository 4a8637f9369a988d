//! A node with a primary network and no more, and what its runtime makes of its directory.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::harness::{Call, Outcome, World, bare_add, names, run};

pub(crate) const NET_D: &str = "/etc/cni/net.d";
pub(crate) const OURS: &str = "/etc/cni/net.d/00-meta-cni.conflist";
pub(crate) const PRIMARY: &str = "/etc/cni/net.d/10-podnet.conflist";
pub(crate) const KEPT: &str = "/etc/cni/net.d/10-podnet.conflist.meta-cni";
pub(crate) const STATE: &str = "/var/lib/cni/meta-cni";
/// How long something may take that happens at once, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// Our binary without its debug information, which is most of it: it is copied by every test.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("meta-cni");
    let draft = path.with_extension(std::process::id().to_string());
    run("strip", &["-o", draft.to_str().unwrap(), env!("CARGO_BIN_EXE_meta-cni")]);
    fs::rename(draft, &path).unwrap();
    path
});

/// A node.
pub(crate) struct Node {
    pub(crate) world: World,
    pub(crate) bin: PathBuf,
    program: PathBuf,
}

impl Node {
    /// One whose primary network is a bridge, and that can attach a macvlan network "net-a".
    pub(crate) fn new() -> Self {
        let node = Self::bare();
        node.own_primary(&podnet(json!({"portMappings": true})));
        node
    }

    /// One whose primary network is still to come.
    pub(crate) fn bare() -> Self {
        let world = World::new();
        fs::create_dir_all(NET_D).unwrap();
        world.plugins("reference", &["bridge", "host-local", "portmap"]);
        world.macvlan("net-a", "10.10.1.0/24");
        let program = PathBuf::from("/run/test/program");
        // By another process: a file that is open to be written, be it in a child of another test's, is not executed.
        run("cp", &[PROGRAM.to_str().unwrap(), program.to_str().unwrap()]);
        let node = Self { bin: world.bin.clone(), program, world };
        fs::write("/run/test/own.json", json!({"manifestDir": node.world.manifests}).to_string()).unwrap();
        node
    }

    /// Its primary's owner writes the configuration anew, as `cp -f` does.
    pub(crate) fn own_primary(&self, conf: &Value) {
        let _ = fs::remove_file(PRIMARY);
        fs::write(PRIMARY, conf.to_string()).unwrap();
        // Whoever stays may have taken it already.
        let _ = fs::set_permissions(PRIMARY, fs::Permissions::from_mode(0o640));
    }

    /// Another build of the program.
    pub(crate) fn another_build(mut self) -> Self {
        let path = PathBuf::from("/run/test/another-build");
        let mut content = fs::read(&self.program).unwrap();
        content.extend(b"another one");
        fs::write("/run/test/draft", content).unwrap();
        run("cp", &["/run/test/draft", path.to_str().unwrap()]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.program = path;
        self
    }

    /// Puts the program in its place beforehand, as a second name of the one that runs: nothing has to be copied.
    pub(crate) fn preinstall(&self) {
        let _ = fs::remove_file(self.bin.join("meta-cni"));
        fs::hard_link(&self.program, self.bin.join("meta-cni")).unwrap();
    }

    /// Whether the program that is installed is the one that installs.
    pub(crate) fn has_own_program(&self) -> bool {
        let own = fs::read(&self.program).unwrap();
        fs::read(self.bin.join("meta-cni")).is_ok_and(|there| there == own)
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    fn words<'a>(&'a self, verb: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let own: &[&str] = if verb == "install" { &["--config", "/run/test/own.json"] } else { &[] };
        let bin =
            if more.contains(&"--cni-bin-dir") { vec![] } else { vec!["--cni-bin-dir", self.bin.to_str().unwrap()] };
        let own = if more.contains(&"--config") || more.contains(&"--no-config") { &[] } else { own };
        let more = more.iter().filter(|word| **word != "--no-config");
        [verb].iter().chain(&bin).chain(own).chain(more).copied().collect()
    }

    /// A command of ours.
    pub(crate) fn command(&self, verb: &str, more: &[&str]) -> Call {
        let call = Call::command(&self.program, &self.words(verb, more));
        // As libc wants it; there is no runtime's variable.
        call.env("HOME", "/root")
    }

    pub(crate) fn run(&self, verb: &str, more: &[&str]) -> Outcome {
        self.command(verb, more).run()
    }

    /// Installs; gives what it says.
    pub(crate) fn install(&self, more: &[&str]) -> String {
        self.succeed("install", more)
    }

    pub(crate) fn uninstall(&self, more: &[&str]) -> String {
        self.succeed("uninstall", more)
    }

    fn succeed(&self, verb: &str, more: &[&str]) -> String {
        let outcome = self.run(verb, more);
        assert_eq!(outcome.code, 0, "{outcome:#?}");
        outcome.stdout
    }

    /// Runs it, and panics unless it fails and nothing is another than before; gives what it says.
    pub(crate) fn refuses(&self, verb: &str, more: &[&str], code: i32) -> String {
        let before = self.tree();
        let outcome = self.run(verb, more);
        assert_eq!(outcome.code, code, "{outcome:#?}");
        assert_eq!(outcome.stdout, "");
        let after = self.tree();
        // Directories may have been made for what was to come.
        let files = |tree: &Tree| {
            tree.0
                .iter()
                .filter(|(_, what)| !what.starts_with("directory"))
                .map(|(path, what)| (path.clone(), what.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(files(&before), files(&after), "{}", outcome.stderr);
        outcome.stderr
    }

    /// Starts an installer that stays.
    pub(crate) fn watch(&self, more: &[&str]) -> Watch {
        let words = self.words("install", &[more, &["--watch"]].concat()).into_iter().map(str::to_owned).collect();
        Watch::start(&self.program, words)
    }

    /// All that an installation touches.
    pub(crate) fn tree(&self) -> Tree {
        Tree::of(&[NET_D, self.bin.to_str().unwrap(), "/var/lib/cni", "/run/meta-cni"])
    }

    /// What the runtime reads: the first file of its directory, as libcni orders them.
    pub(crate) fn first(&self) -> Option<(String, Vec<u8>)> {
        let is_conf = |name: &String| [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending));
        let name = names(NET_D).into_iter().find(is_conf)?;
        let text = fs::read(Path::new(NET_D).join(&name)).ok()?;
        Some((name, text))
    }

    /// Panics unless what the runtime reads is whole: the primary's alone, or ours with all that it leads to. Gives whether
    /// it is ours.
    pub(crate) fn is_ours_and_whole(&self) -> bool {
        // Between looking for the first and reading it another may have come: then it is read again, as a runtime does.
        let (name, text) = (0..50).find_map(|_| self.first()).expect("a configuration is there");
        let list: Value = serde_json::from_slice(&text)
            .unwrap_or_else(|problem| panic!("{name}: {problem}: {:?}", String::from_utf8_lossy(&text)));
        let plugin = &list["plugins"][0];
        if plugin["type"] != "meta-cni" {
            assert_eq!((name.as_str(), &list["name"]), ("10-podnet.conflist", &json!("podnet")), "{list:#}");
            return false;
        }
        let primary: Value =
            serde_json::from_slice(&fs::read(plugin["clusterNetwork"].as_str().unwrap()).unwrap()).unwrap();
        assert_eq!(primary["name"], "podnet");
        assert!(fs::metadata(self.bin.join("meta-cni")).is_ok_and(|there| there.len() > 1000), "no program");
        true
    }

    /// Attaches a pod as the runtime does, with the network "net-a"; gives the interfaces that it has.
    pub(crate) fn add(&self, pod: &str, netns: &str) -> Value {
        self.world.pod(pod, "net-a");
        let (_, text) = self.first().unwrap();
        let list: Value = serde_json::from_slice(&text).unwrap();
        if list["plugins"][0]["type"] != "meta-cni" {
            return bare_add(&self.world, &list, pod, netns);
        }
        self.call("ADD", pod, netns, &list).ok()
    }

    pub(crate) fn del(&self, pod: &str, netns: &str) {
        let list: Value = serde_json::from_slice(&self.first().unwrap().1).unwrap();
        self.call("DEL", pod, netns, &list).ok();
    }

    fn call(&self, verb: &str, pod: &str, netns: &str, list: &Value) -> Call {
        let mut conf = list["plugins"][0].clone();
        conf["name"] = list["name"].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        // Ours is where we were told to put it, the others are in the runtime's directory.
        let program = Path::new(conf["binDir"].as_str().unwrap()).join(conf["type"].as_str().unwrap());
        conf["binDir"] = json!(self.bin);
        self.world.call(verb, pod, netns, &conf).program(&program).pod(pod)
    }
}

/// The configuration of a bridge.
pub(crate) fn podnet(capabilities: Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "podnet",
        "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
                     "capabilities": capabilities, "ipam": {"type": "host-local", "subnet": "10.88.0.0/24"}}]
    })
}

/// Our configuration.
pub(crate) fn ours() -> Value {
    serde_json::from_slice(&fs::read(OURS).unwrap()).unwrap()
}

/// The object of our plugin in it.
pub(crate) fn our_plugin() -> Value {
    ours()["plugins"][0].clone()
}

/// Files by path, each with its kind, mode, owner and content.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Tree(pub(crate) BTreeMap<String, String>);

impl Tree {
    pub(crate) fn of(roots: &[&str]) -> Self {
        let mut tree = Self(BTreeMap::new());
        roots.iter().for_each(|root| tree.add(Path::new(root)));
        tree
    }

    fn add(&mut self, path: &Path) {
        let Ok(there) = fs::symlink_metadata(path) else { return };
        let mut what = if there.is_dir() {
            "directory".to_owned()
        } else if there.is_symlink() {
            format!("link to {}", fs::read_link(path).unwrap().display())
        } else {
            let content = fs::read(path).unwrap();
            match std::str::from_utf8(&content) {
                Ok(text) if text.len() < 5000 => format!("file {text:?}"),
                _ => format!("program of {} bytes, ends {:?}", content.len(), &content[content.len() - 8..]),
            }
        };
        write!(what, " {:o} {}:{}", there.mode(), there.uid(), there.gid()).unwrap();
        self.0.insert(path.display().to_string(), what);
        if there.is_dir() {
            names(path).iter().for_each(|name| self.add(&path.join(name)));
        }
    }
}

/// An installer that stays, and what it says.
pub(crate) struct Watch {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Watch {
    fn start(program: &Path, words: Vec<String>) -> Self {
        let mut child = Command::new(program)
            .args(words)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child, log }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until something is so; gives how long that took.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn() -> bool) -> Duration {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; it says:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        began.elapsed()
    }

    /// Waits until it holds the node, so that nobody uninstalls.
    pub(crate) fn holds(&self) {
        self.until("it holds the node", || {
            let state = fs::File::open(STATE);
            state.is_ok_and(|state| matches!(state.try_lock(), Err(fs::TryLockError::WouldBlock)))
        });
    }

    /// Waits until it has said something.
    pub(crate) fn says(&self, what: &str) {
        self.until(what, || self.log().contains(what));
    }

    /// Asks it to end, or kills it; gives its exit code.
    pub(crate) fn end(mut self, by: Signal) -> Option<i32> {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), by).unwrap();
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "it does not end; it says:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().and_then(|status| status.code())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
