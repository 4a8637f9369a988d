//! One call: read it, run its verb, say what to print.

use std::{ffi::OsString, io::Read};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    attach::Engine,
    cli,
    cni::{Asked, Command, Error, Invocation, RECURSION_MARK, SpecVersion, TRACEPARENT, Trace},
    face::{Called, Face},
    host_local,
    log::{self, LogSettings},
    pod::PodName,
    reply::Reply,
    settings::Settings,
};

/// Runs one call of a plugin with the environment and stdin of the process; or, where no runtime calls, the command that a
/// person gave as `arguments`. A runtime gives none.
pub fn run(
    called: Called,
    arguments: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<String>,
    stdin: impl Read,
) -> Reply {
    let began = Instant::now();
    let mut arguments = arguments.into_iter().peekable();
    let by_a_runtime = env("CNI_COMMAND").is_some_and(|command| !command.is_empty());
    if called == Called::Engine(Face::Meta) && !by_a_runtime && arguments.peek().is_some() {
        return cli::run(arguments, stdin);
    }
    let invocation = match Asked::read(&env, stdin) {
        Ok(Asked::About) => return Reply { stderr: called.about(), ..Reply::success(None) },
        Ok(Asked::Version) => return Reply { stdout: SpecVersion::report(), ..Reply::success(None) },
        Ok(Asked::Call(invocation)) => *invocation,
        Err(error) => return Reply::failure(&error, SpecVersion::LATEST),
    };
    let version = match invocation.conf.text("cniVersion").and_then(|text| SpecVersion::of_conf(Some(&text))) {
        Ok(version) => version,
        Err(error) => return Reply::failure(&error, SpecVersion::LATEST),
    };
    let outcome = match called {
        Called::HostLocal => {
            let alone = env(RECURSION_MARK).is_none();
            version.allow(invocation.command).and_then(|()| host_local::run(&invocation, version, alone))
        }
        Called::Passthru => version.allow(invocation.command).map(|()| nothing(invocation.command, version)),
        Called::Engine(face) => {
            // We execute plugins, and a drop-in may be one of them: only the meta plugin must not be.
            let recursive = face == Face::Meta && env(RECURSION_MARK).is_some();
            judge_and_dispatch(face, invocation, version, (began, recursive))
        }
    };
    match outcome {
        Ok(result) => Reply::success(result.as_ref()),
        Err(error) => Reply::failure(&error, version),
    }
}

/// The answer of a plugin that does nothing: an empty result.
fn nothing(command: Command, version: SpecVersion) -> Option<Value> {
    (command == Command::Add).then(|| json!({"cniVersion": version.as_str()}))
}

fn judge_and_dispatch(
    face: Face,
    invocation: Invocation,
    version: SpecVersion,
    (began, recursive): (Instant, bool),
) -> Result<Option<Value>, Error> {
    version.allow(invocation.command)?;
    if recursive && invocation.command == Command::Del {
        // Its ADD was refused, so there is nothing to undo, and the caller must get rid of its own record of it.
        return Ok(None);
    }
    if recursive {
        return Err(Error::Config(
            "meta-cni was called by a plugin that it executed: a configuration leads back to it; name the network's own plugin there".to_owned(),
        ));
    }
    let settings = match face {
        Face::Meta => Settings::read(&invocation.conf)?,
        Face::Sriov => Settings::of_plugin(&invocation.conf),
    };
    start_log(&settings.log, &invocation);
    let command = invocation.command;
    begin(&invocation);
    let outcome = judge_keys(face, &invocation, &settings).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::io("start", "the I/O runtime", source))?;
        runtime.block_on(dispatch(face, invocation, settings))
    });
    end(command, began, &outcome);
    outcome
}

/// Starts the log: what every line says of the call.
fn start_log(settings: &LogSettings, invocation: &Invocation) {
    let pod = PodName::of_args(&invocation.args);
    let call = [
        ("verb", invocation.command.as_str()),
        ("pod", &pod.as_ref().map(PodName::title).unwrap_or_default()),
        ("uid", pod.as_ref().map_or("", |pod| &pod.uid)),
        ("container", &invocation.container),
        ("conf", &invocation.conf.text("name").unwrap_or_default()),
        ("ifname", &invocation.if_name),
        ("trace_id", invocation.trace.id()),
    ];
    log::start(settings, &call);
}

/// The first line of a call. STATUS is asked every few seconds, and says more only if something is wrong.
fn begin(invocation: &Invocation) {
    if invocation.trace == Trace::Invalid {
        tracing::debug!("{TRACEPARENT} is no trace context: it is not passed on");
    }
    let netns = invocation.netns.as_str();
    match invocation.command {
        Command::Status => tracing::debug!(step = "begin", "a call begins"),
        Command::Gc => tracing::info!(step = "begin", "a call begins"),
        _ => tracing::info!(step = "begin", netns, "a call begins"),
    }
}

/// Its last line.
fn end(command: Command, began: Instant, outcome: &Result<Option<Value>, Error>) {
    let ms = log::ms(began);
    match outcome {
        Ok(_) if command == Command::Status => tracing::debug!(step = "reply", ms, "done"),
        Ok(_) => tracing::info!(step = "reply", ms, "done"),
        Err(error) => {
            tracing::error!(step = "reply", ms, code = error.code(), details = error.details(), "{error}");
        }
    }
}

/// Warns of keys that have no effect, or refuses them.
fn judge_keys(face: Face, invocation: &Invocation, settings: &Settings) -> Result<(), Error> {
    let conf = &invocation.conf;
    match face {
        Face::Meta => {
            settings.warn_of_ineffective_keys(conf);
            match Settings::judge_unknown_keys(conf) {
                // What was attached before the key was written must be detached all the same.
                Err(error) if matches!(invocation.command, Command::Del | Command::Gc) => tracing::warn!("{error}"),
                judged => judged?,
            }
        }
        Face::Sriov => {
            if let Err(problem) = LogSettings::read(conf) {
                tracing::warn!("{problem}: {}; logging to stderr alone", problem.details());
            }
        }
    }
    Ok(())
}

async fn dispatch(face: Face, invocation: Invocation, settings: Settings) -> Result<Option<Value>, Error> {
    let command = invocation.command;
    let mut engine = Engine::new(face, invocation, settings)?;
    let events = engine.events();
    let outcome = match command {
        Command::Add => engine.add().await.map(Some),
        Command::Del => engine.del().await.map(|()| None),
        Command::Check => engine.check().await.map(|()| None),
        Command::Gc => engine.gc().await.map(|()| None),
        Command::Status => engine.status().await.map(|()| None),
        Command::Version => Ok(None),
    };
    // The reply is ready: what is still open, the sandbox's lock above all, is given up, and only then events are waited
    // for (for 50 ms at most).
    drop(engine);
    events.finish().await;
    outcome
}
