//! Taking everything away again: first the runtime has its primary network's configuration back, then ours goes, then what it
//! led to.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    binary::{PROGRAM, Programs},
    conf::{Present, renamed},
    credentials,
    host::{self, Host, names_in},
    installed::Installed,
    kept,
    primary::{OUR_FILE, name_of_kept},
    turn,
};
use crate::{
    attach::{
        gate,
        record::{Entry, Record, Records, Stage},
    },
    cli::Answer,
    cni::{Error, Object},
    face::Face,
    node::{Layout, boot_id},
    settings::Settings,
};

/// Our indexes beside host-local's pools, which are made anew where they are missing.
const INDEXES: &str = "/var/lib/cni/networks/.meta-cni";
/// The directories of our state; those of records are looked at first.
const STATE: [&str; 4] = ["sandboxes", "confs", "vfs", "faces"];

/// Takes everything away.
///
/// # Errors
/// [`Error::Config`] if pods would be left with networks that nobody detaches, or an installer stays on the node;
/// [`Error::Io`], after which it can be run again.
pub(super) fn uninstall(host: &Host, force: bool) -> Result<Answer, Error> {
    let net_d = host.seen(&host.net_d);
    let _alone = if net_d.is_dir() { Some(host.lock()?) } else { None };
    let (host, settings) = &as_installed(host);
    if host.is_kept() {
        return Err(Error::Config(
            "an installer stays on this node (install --watch) and would put everything back: end it first, by removing the DaemonSet".to_owned(),
        ));
    }
    host.sweep();
    kept::recover(host)?;
    // Before our configuration is touched: a pod that came after a look would be left to nobody, and one that came while
    // ours was gone for another look would silently have its primary network alone.
    let layouts: Vec<Layout> = journals(host, settings).into_iter().map(|(_, layout)| layout).collect();
    let _shut = if settings.state_dir.is_dir() { Some(gate::shut(&layouts)?) } else { None };
    let Pods { attached, plain } = pods(host, settings)?;
    if !attached.is_empty() && !force {
        return Err(refusal(&attached));
    }
    let stays = plain > 0 && !force;
    let mut done = give_back(host)?;
    if host::remove(&host.conf(OUR_FILE))? {
        done.push(format!("{} is removed", host.net_d.join(OUR_FILE).display()));
    }
    if stays {
        host::place(&gate::removed_mark(&settings.state_dir), b"", 0o600)?;
    }
    forget_kept(host)?;
    let mut programs = Programs::default();
    programs.look(host);
    done.extend(programs.uninstall(host, stays)?);
    Installed::remove(host)?;
    done.extend(credentials::remove(host)?);
    turn::remove(host)?;
    if stays {
        done.push(what_stays(host, plain));
    } else {
        done.extend(clear_state(host, settings)?);
    }
    if done.is_empty() {
        done.push("nothing of meta-cni is installed".to_owned());
    }
    done.extend(attached.iter().map(|lost| format!("left behind: {}", lost.what)));
    Ok(Answer { text: done.iter().map(|line| format!("{line}\n")).collect(), good: true })
}

/// What is left for pods that have the primary network alone: CRI-O detaches a pod by the configuration that it had when it
/// was attached, which names our program.
fn what_stays(host: &Host, plain: usize) -> String {
    let usual = [("--cni-bin-dir", &host.bin, "/opt/cni/bin"), ("--state-dir", &host.state, "/var/lib/cni/meta-cni")];
    let others = usual.iter().filter(|(_, path, usual)| *path != Path::new(usual));
    let options: String = others.map(|(flag, path, _)| format!(" {flag} {}", path.display())).collect();
    format!(
        "{} stays, and its records in {}: the runtime may need them to detach {}; run uninstall once more{options} when {}",
        host.bin.join(PROGRAM).display(),
        host.state.display(),
        if plain == 1 {
            "1 pod with the primary network".to_owned()
        } else {
            format!("{plain} pods with the primary network")
        },
        if plain == 1 { "it is gone" } else { "they are gone" },
    )
}

/// The directories as our configuration names them, whatever the command line says, and its settings with the paths as they
/// are seen here.
fn as_installed(host: &Host) -> (Host, Settings) {
    let mut host = host.clone();
    let mut settings = match Present::read(&host).and_then(|present| present.settings()) {
        Some(told) => {
            host.state.clone_from(&told.state_dir);
            host.bin.clone_from(&told.bin_dir);
            told
        }
        None => Settings { state_dir: host.state.clone(), ..Settings::of_plugin(&Object::default()) },
    };
    settings.state_dir = host.seen(&settings.state_dir);
    settings.run_dir = host.seen(&settings.run_dir);
    (host, settings)
}

/// A network of a living pod that nobody but us can detach.
struct Attached {
    what: String,
}

fn refusal(attached: &[Attached]) -> Error {
    let list: String = attached.iter().map(|attached| format!("\n  {}", attached.what)).collect();
    Error::Config(format!(
        "{} of living pods can be detached by meta-cni alone: delete the pods first (drain the node), or go on with --force and lose what these hold:{list}\nnothing is removed",
        match attached.len() {
            1 => "1 network".to_owned(),
            number => format!("{number} networks"),
        }
    ))
}

/// Who lives.
#[derive(Default)]
struct Pods {
    /// The networks of living pods besides the primary, and VFs that the drop-in `sriov` gave.
    attached: Vec<Attached>,
    /// How many have the primary network.
    plain: usize,
}

/// Where it is written who lives: the journals of our configuration, and that of the drop-in `sriov`, whose own
/// configuration cannot say another place than the usual one.
fn journals(host: &Host, settings: &Settings) -> Vec<(Face, Layout)> {
    let mut journals = Face::ALL.map(|face| (face, Layout::of(settings, face))).to_vec();
    let mut usual = Settings::of_plugin(&Object::default());
    usual.state_dir = host.seen(&usual.state_dir);
    usual.run_dir = host.seen(&usual.run_dir);
    if usual.state_dir != settings.state_dir && usual.state_dir.is_dir() {
        journals.push((Face::Sriov, Layout::of(&usual, Face::Sriov)));
    }
    journals
}

fn pods(host: &Host, settings: &Settings) -> Result<Pods, Error> {
    let boot = boot_id()?;
    let mut pods = Pods::default();
    for (face, layout) in journals(host, settings) {
        let records = Records::of(&layout);
        for container in records.containers()? {
            for entry in records.of_container(&container)? {
                match entry {
                    Entry::Good(record) if !lives(&record, &boot, host) => {}
                    Entry::Good(record) if record.primary && face == Face::Meta => pods.plain += 1,
                    Entry::Good(record) => pods.attached.push(Attached { what: in_words(&record) }),
                    Entry::Torn { path, .. } => pods.attached.push(Attached {
                        what: format!("container {container}: a record that cannot be read ({})", path.display()),
                    }),
                }
            }
        }
    }
    Ok(pods)
}

/// Whether nothing is lost with an entry: the primary network of a pod that is gone. Its own plugins have given back what it
/// held, or will, when the runtime asks them.
fn is_over(entry: &Entry, boot: &str, host: &Host) -> bool {
    match entry {
        Entry::Good(record) => record.primary && record.stage != Stage::Owed && !lives(record, boot, host),
        Entry::Torn { .. } => false,
    }
}

/// Whether the pod of a record may live. In a container its namespace may be hidden from us: then it does, if it is of this
/// boot.
fn lives(record: &Record, boot: &str, host: &Host) -> bool {
    if record.boot_id != boot || record.stage == Stage::Owed {
        return false;
    }
    if !host.is_here() {
        return true;
    }
    match &record.netns_id {
        Some(id) => id.is_alive().unwrap_or(true),
        None => Path::new(&record.netns).exists(),
    }
}

fn in_words(record: &Record) -> String {
    let pod = record.pod.as_ref().map_or_else(
        || format!("container {}", record.call.container),
        |pod| format!("{}/{}", pod.namespace, pod.name),
    );
    let mut holds: Vec<String> = Vec::new();
    holds.extend(record.vf.as_ref().map(|vf| format!("VF {}", vf.pci)));
    for address in record.addresses.iter().flat_map(|addresses| &addresses.addresses) {
        holds.push(format!("address {address}"));
    }
    let holds = if holds.is_empty() { String::new() } else { format!(", which holds {}", holds.join(", ")) };
    format!("{pod}: {}{holds}", record.title())
}

/// Gives the primary's configuration its name back, beside ours, which is still the first. What its owner wrote anew is there
/// already, and newer.
fn give_back(host: &Host) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    for (kept, name) in kept_files(host) {
        if fs::symlink_metadata(&name).is_err() {
            host::place_second_name(&kept, &name)?;
            let name = name.file_name().unwrap_or_default();
            done.push(format!("{} is the runtime's again", host.net_d.join(name).display()));
        }
    }
    Ok(done)
}

/// Removes what the kept configurations were kept under, and ours under names that others gave it.
fn forget_kept(host: &Host) -> Result<(), Error> {
    for (kept, _) in kept_files(host) {
        host::remove(&kept)?;
    }
    for name in renamed(host) {
        host::remove(&host.conf(&name))?;
    }
    Ok(())
}

/// The configurations that we keep, each with the name that it had.
fn kept_files(host: &Host) -> Vec<(PathBuf, PathBuf)> {
    let names = names_in(&host.seen(&host.net_d));
    let pair = |file: &String| Some((host.conf(file), host.conf(name_of_kept(file)?)));
    names.iter().filter_map(pair).collect()
}

/// Removes our state, unless somebody's record or VF is in it.
fn clear_state(host: &Host, settings: &Settings) -> Result<Vec<String>, Error> {
    let state = &settings.state_dir;
    if !state.is_dir() {
        return Ok(Vec::new());
    }
    let boot = boot_id()?;
    let mut pods = 0;
    for face in Face::ALL {
        let records = Records::of(&Layout::of(settings, face));
        for container in records.containers()? {
            let entries = records.of_container(&container)?;
            let is_over = face == Face::Meta && entries.iter().all(|entry| is_over(entry, &boot, host));
            pods += usize::from(!is_over);
        }
    }
    let leases = names_in(&state.join("vfs")).iter().filter(|name| !name.starts_with('.')).count();
    let shown = Path::new("/").join(state.strip_prefix(&host.root).unwrap_or(state));
    if pods + leases > 0 {
        return Ok(vec![format!(
            "{} stays: it has records of {pods} sandboxes and leases of {leases} VFs; what these hold (addresses, VFs) only a DEL or GC by meta-cni gives back; install it again for that, or remove the directory",
            shown.display()
        )]);
    }
    for name in STATE {
        remove_tree(&state.join(name))?;
    }
    host::remove(&gate::removed_mark(state))?;
    remove_tree(&settings.run_dir)?;
    remove_tree(&host.seen(Path::new(INDEXES)))?;
    // ENOTEMPTY: something that is not ours.
    let gone = fs::remove_dir(state).is_ok();
    Ok(if gone { vec![format!("{} is removed", shown.display())] } else { Vec::new() })
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path.display(), source))
        }
        _ => Ok(()),
    }
}
