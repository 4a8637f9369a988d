//! A list of plugins, run as libcni runs it.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    CniArgs, CniResult, Command, Error, Ledger, Object, PluginList, SpecVersion, TRACEPARENT, TRACESTATE, Trace,
    conf::Plugin,
    exec::{Execution, find_plugin},
};
use crate::log;

/// Plugins that keep nothing outside the sandbox, and whose DEL fails where there is none: `sbr` opens the namespace to
/// lock it.
const OF_THE_SANDBOX_ALONE: [&str; 1] = ["sbr"];

/// What all plugins of one attachment are told.
#[derive(Debug, Clone)]
pub struct Scene {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub if_name: String,
    /// `CNI_ARGS`.
    pub args: CniArgs,
    /// `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// What may be given to plugins that declare the capability.
    pub runtime_config: Object,
    /// When a plugin that is still running is ended.
    pub deadline: Instant,
    /// Where it is noted which plugin runs; nothing where no lock is held.
    pub ledger: Option<Ledger>,
    /// The trace that they are part of.
    pub trace: Trace,
}

/// Runs ADD from the plugin at `from` on; each gets the result of the one before. Gives the last result, as printed and
/// as understood. What was made before a failure stays: the caller undoes it by [`del`].
///
/// # Errors
/// The failing plugin's, as the plugin said it, or how it broke.
pub async fn add(
    list: &PluginList,
    from: usize,
    previous: Option<Value>,
    scene: &Scene,
) -> Result<(Value, CniResult), Error> {
    let mut previous = previous;
    for plugin in list.plugins.iter().skip(from) {
        let printed = run(list, plugin, Command::Add, previous.as_ref(), scene).await?;
        previous = Some(in_version(&plugin.kind, printed, list.version)?);
    }
    let value = previous.unwrap_or(Value::Null);
    let result = CniResult::parse(&format!("the result of {}", list.kinds()), &value, list.version)?;
    Ok((value, result))
}

/// Gives a plugin's output the version of the list: libcni adds a missing one, and we convert another one, so that the
/// next plugin and the runtime get exactly what they were promised.
fn in_version(kind: &str, printed: Value, version: SpecVersion) -> Result<Value, Error> {
    let what = format!("the result of {kind}");
    let result = CniResult::parse(&what, &printed, version)?;
    match printed.get("cniVersion").and_then(Value::as_str) {
        Some(text) if text == version.as_str() => Ok(printed),
        None | Some("") if printed.is_object() => {
            let mut printed = printed;
            printed["cniVersion"] = json!(version.as_str());
            Ok(printed)
        }
        _ if printed.is_null() => Ok(json!({"cniVersion": version.as_str()})),
        _ => result.to_json(version),
    }
}

/// Runs DEL in reverse down to the plugin at `down_to`. It stops at the first error, as libcni does: a plugin further
/// ahead may free an address that a later one still uses (cni#924). With the namespace gone nothing uses it any more,
/// and a plugin that cannot live without one must not keep the others from freeing theirs: then all are run, but for those
/// that could do nothing but fail.
///
/// # Errors
/// The failing plugins'.
pub async fn del(
    list: &PluginList,
    down_to: usize,
    previous: Option<&Value>,
    scene: &Scene,
    namespace_gone: bool,
) -> Result<(), Error> {
    let previous = previous.filter(|value| value.is_object() && list.version >= SpecVersion::V0_4_0);
    let mut errors = Vec::new();
    for plugin in list.plugins.iter().skip(down_to).rev() {
        if namespace_gone && OF_THE_SANDBOX_ALONE.contains(&plugin.kind.as_str()) {
            continue;
        }
        let deleted = run(list, plugin, Command::Del, previous, scene).await;
        errors.extend(deleted.err());
        if !namespace_gone && !errors.is_empty() {
            break;
        }
    }
    Error::join(errors).map_or(Ok(()), Err)
}

/// Runs CHECK from the plugin at `from` on. A list below 0.4.0, or one that disables it, is not asked.
///
/// # Errors
/// The failing plugin's.
pub async fn check(list: &PluginList, from: usize, previous: &Value, scene: &Scene) -> Result<(), Error> {
    if list.disable_check || list.version < SpecVersion::V0_4_0 {
        return Ok(());
    }
    for plugin in list.plugins.iter().skip(from) {
        run(list, plugin, Command::Check, Some(previous), scene).await?;
    }
    Ok(())
}

/// Runs GC on every plugin with the list of valid attachments, under both names of the key (cni#1101). A list below
/// 1.1.0, or one that disables it, is not asked. All are asked, whatever one of them says.
///
/// # Errors
/// All failures, joined.
pub async fn gc(list: &PluginList, valid: &Value, scene: &Scene) -> Result<(), Error> {
    if list.disable_gc || list.version < SpecVersion::V1_1_0 {
        return Ok(());
    }
    let mut errors = Vec::new();
    for plugin in &list.plugins {
        let mut object = prepare(list, plugin, None, scene);
        object.set("cni.dev/valid-attachments", valid);
        object.set("cni.dev/attachments", valid);
        errors.extend(execute(plugin, Command::Gc, &object, scene).await.err());
    }
    Error::join(errors).map_or(Ok(()), Err)
}

/// Runs STATUS on every plugin; a list below 1.1.0 is not asked.
///
/// # Errors
/// The first plugin's that is not ready, with its code.
pub async fn status(list: &PluginList, scene: &Scene) -> Result<(), Error> {
    if list.version < SpecVersion::V1_1_0 {
        return Ok(());
    }
    for plugin in &list.plugins {
        run(list, plugin, Command::Status, None, scene).await?;
    }
    Ok(())
}

/// Runs ADD of an IPAM plugin for a plugin of the list that is built in: the complete configuration on stdin (SPEC,
/// "Plugin Delegation").
///
/// # Errors
/// The plugin's.
pub async fn ipam_add(list: &PluginList, plugin: &Plugin, kind: &str, scene: &Scene) -> Result<CniResult, Error> {
    let printed = delegate_ipam(list, plugin, kind, Command::Add, None, scene).await?;
    CniResult::parse(&format!("the result of {kind}"), &printed, list.version)
}

/// Runs DEL or CHECK of an IPAM plugin.
///
/// # Errors
/// The plugin's.
pub async fn ipam_verb(
    list: &PluginList,
    plugin: &Plugin,
    kind: &str,
    command: Command,
    previous: Option<&Value>,
    scene: &Scene,
) -> Result<(), Error> {
    let previous = previous.filter(|_| list.version >= SpecVersion::V0_4_0);
    delegate_ipam(list, plugin, kind, command, previous, scene).await.map(drop)
}

async fn delegate_ipam(
    list: &PluginList,
    plugin: &Plugin,
    kind: &str,
    command: Command,
    previous: Option<&Value>,
    scene: &Scene,
) -> Result<Value, Error> {
    let ipam = Plugin { kind: kind.to_owned(), object: plugin.object.clone() };
    run(list, &ipam, command, previous, scene).await
}

async fn run(
    list: &PluginList,
    plugin: &Plugin,
    command: Command,
    previous: Option<&Value>,
    scene: &Scene,
) -> Result<Value, Error> {
    let object = prepare(list, plugin, previous, scene);
    execute(plugin, command, &object, scene).await.map_err(|error| match error {
        Error::Delegate { code, msg, details } => Error::Delegate {
            code,
            msg: format!("plugin {} ({command}): {msg}", plugin.kind, command = command.as_str()),
            details,
        },
        other => other,
    })
}

/// The plugin's object with what the specification has the runtime set: name, version, result so far, and the part of
/// the runtime's configuration that the plugin declares.
fn prepare(list: &PluginList, plugin: &Plugin, previous: Option<&Value>, scene: &Scene) -> Object {
    let mut object = plugin.object.clone();
    object.set("name", &list.name);
    object.set("cniVersion", list.version.as_str());
    let declared = plugin.capabilities().unwrap_or_default();
    let mut granted = Object::default();
    for key in scene.runtime_config.keys().filter(|key| declared.contains(*key)) {
        if let Some(value) = scene.runtime_config.raw(key) {
            granted.set(key, value);
        }
    }
    object.remove("runtimeConfig");
    if !granted.is_empty() {
        object.set("runtimeConfig", &granted);
    }
    object.remove("prevResult");
    if let Some(previous) = previous {
        object.set("prevResult", previous);
    }
    object
}

async fn execute(plugin: &Plugin, command: Command, object: &Object, scene: &Scene) -> Result<Value, Error> {
    let program = find_plugin(&plugin.kind, &scene.path)?;
    let path = std::env::join_paths(&scene.path)
        .map_err(|problem| Error::Environment(format!("CNI_PATH: {problem}")))?
        .to_string_lossy()
        .into_owned();
    let mut env = vec![
        ("CNI_COMMAND", command.as_str().to_owned()),
        ("CNI_CONTAINERID", scene.container.clone()),
        ("CNI_NETNS", scene.netns.clone()),
        ("CNI_IFNAME", scene.if_name.clone()),
        ("CNI_ARGS", scene.args.to_text()),
        ("CNI_PATH", path),
    ];
    let stdin = object.to_text();
    let span = scene.trace.span();
    env.extend(span.as_ref().map(|span| (TRACEPARENT, span.parent.clone())));
    let without: &[&str] = if scene.trace == Trace::Invalid { &[TRACEPARENT, TRACESTATE] } else { &[] };
    tracing::debug!(step = "execute", plugin = plugin.kind, command = command.as_str(), "a plugin starts");
    let began = Instant::now();
    let execution = Execution {
        program: &program,
        env: &env,
        without,
        stdin: &stdin,
        deadline: scene.deadline,
        ledger: scene.ledger.as_ref(),
    };
    let outcome = execution.run().await;
    let (ms, span_id) = (log::ms(began), span.map(|span| span.id));
    // The runtime asks every few seconds.
    let is_routine = command == Command::Status;
    let (plugin, command) = (plugin.kind.as_str(), command.as_str());
    match &outcome {
        Err(error) => tracing::info!(step = "plugin", ms, plugin, command, span_id, %error, "the plugin failed"),
        Ok(_) if is_routine => {
            tracing::debug!(step = "plugin", ms, plugin, command, span_id, "the plugin answered");
        }
        Ok(_) => tracing::info!(step = "plugin", ms, plugin, command, span_id, "the plugin answered"),
    }
    outcome
}
