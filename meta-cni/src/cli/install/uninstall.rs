//! Taking everything away again: first the runtime has its primary network's configuration back, then ours goes, then what it
//! led to.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    binary,
    conf::{Present, renamed},
    credentials,
    host::{self, Host, names_in},
    primary::{OUR_FILE, name_of_kept},
    turn,
};
use crate::{
    attach::record::{Entry, Record, Records, Stage},
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
    let before = attached(host, settings)?;
    if !before.is_empty() && !force {
        return Err(refusal(&before));
    }
    let mut done = give_back(host)?;
    let text = fs::read(host.conf(OUR_FILE)).ok();
    if host::remove(&host.conf(OUR_FILE))? {
        done.push(format!("{} is removed", host.net_d.join(OUR_FILE).display()));
    }
    // A pod may have come since we looked; from here on none can.
    let after = attached(host, settings)?;
    if let Some(text) = text.filter(|_| !after.is_empty() && !force) {
        host::place(&host.conf(OUR_FILE), &text, 0o600)?;
        take_back(host)?;
        return Err(refusal(&after));
    }
    forget_kept(host)?;
    done.extend(binary::uninstall(host)?);
    done.extend(credentials::remove(host)?);
    turn::remove(host)?;
    done.extend(clear_state(host, settings)?);
    if done.is_empty() {
        done.push("nothing of meta-cni is installed".to_owned());
    }
    done.extend(after.iter().map(|lost| format!("left behind: {}", lost.what)));
    Ok(Answer { text: done.iter().map(|line| format!("{line}\n")).collect(), good: true })
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

/// The networks of living pods besides the primary, and VFs that the drop-in `sriov` gave.
fn attached(host: &Host, settings: &Settings) -> Result<Vec<Attached>, Error> {
    let boot = boot_id()?;
    let mut found = Vec::new();
    for face in Face::ALL {
        let records = Records::of(&Layout::of(settings, face));
        for container in records.containers()? {
            for entry in records.of_container(&container)? {
                match entry {
                    Entry::Good(record) if (record.primary && face == Face::Meta) || !lives(&record, &boot, host) => {}
                    Entry::Good(record) => found.push(Attached { what: in_words(&record) }),
                    Entry::Torn { path, .. } => found.push(Attached {
                        what: format!("container {container}: a record that cannot be read ({})", path.display()),
                    }),
                }
            }
        }
    }
    Ok(found)
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
    for (kept, name) in kept(host) {
        if fs::symlink_metadata(&name).is_err() {
            host::place_second_name(&kept, &name)?;
            let name = name.file_name().unwrap_or_default();
            done.push(format!("{} is the runtime's again", host.net_d.join(name).display()));
        }
    }
    Ok(done)
}

/// Undoes [`give_back`].
fn take_back(host: &Host) -> Result<(), Error> {
    for (_, name) in kept(host).into_iter().filter(|(kept, name)| host::are_one(kept, name)) {
        host::remove(&name)?;
    }
    Ok(())
}

/// Removes what the kept configurations were kept under, and ours under names that others gave it.
fn forget_kept(host: &Host) -> Result<(), Error> {
    for (kept, _) in kept(host) {
        host::remove(&kept)?;
    }
    for name in renamed(host) {
        host::remove(&host.conf(&name))?;
    }
    Ok(())
}

/// The configurations that we keep, each with the name that it had.
fn kept(host: &Host) -> Vec<(PathBuf, PathBuf)> {
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
    let mut pods = 0;
    for face in Face::ALL {
        pods += Records::of(&Layout::of(settings, face)).containers()?.len();
    }
    let leases = names_in(&state.join("vfs")).iter().filter(|name| !name.starts_with('.')).count();
    let shown = Path::new("/").join(state.strip_prefix(&host.root).unwrap_or(state));
    if pods + leases > 0 {
        return Ok(vec![format!(
            "{} stays: it has records of {pods} sandboxes and leases of {leases} VFs; remove it when none of these lives any more",
            shown.display()
        )]);
    }
    for name in STATE {
        remove_tree(&state.join(name))?;
    }
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
