//! The commands for people. A command is an entry of [`COMMANDS`], which its command line and its help are made from, and
//! an arm of [`run_command`]; what it does is in a room of its own below this one, and gives back an [`Answer`]: nothing prints.

mod arguments;
mod install;
mod ipam;
mod node;
mod post_events;
mod table;

use std::{ffi::OsString, io::Read};

use serde::Serialize;

use crate::{
    cluster::POST_COMMAND,
    cni::Error,
    face::{Called, Face},
    reply::Reply,
};
use arguments::{Arguments, Asked, Command, Flag};

/// The exit code of a command that failed, or that found what it looks for.
const FAILED: u8 = 1;
/// The exit code for a command line that is wrong.
const USAGE: u8 = 2;

/// What a command is: the room that does it, and what it is called there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Install(install::Verb),
    Ipam(ipam::Verb),
}

const COMMANDS: &[Command] = &[
    Command {
        words: &["install"],
        operands: &[],
        about: "make this program the runtime's plugin on this node, and keep it so",
        details: install::INSTALL_DETAILS,
        options: &[
            &install::WATCH,
            &install::STATUS_FILE,
            &install::READY,
            &install::NODE_NAME,
            &install::TOKEN_FILE,
            &install::CA_FILE,
            &install::SERVER,
            &install::KUBELET_KUBECONFIG,
            &install::KUBECONFIG,
            &install::PRIMARY,
            &install::CONFIG,
            &install::NAMES,
            &install::REPLACE,
            &install::CNI_BIN_DIR,
            &install::CNI_CONF_DIR,
            &install::STATE_DIR,
            &install::HOST_ROOT,
        ],
        action: Action::Install(install::Verb::Install),
    },
    Command {
        words: &["uninstall"],
        operands: &[],
        about: "give the node back as it was",
        details: install::UNINSTALL_DETAILS,
        options: &[
            &install::FORCE,
            &install::CNI_BIN_DIR,
            &install::CNI_CONF_DIR,
            &install::STATE_DIR,
            &install::HOST_ROOT,
        ],
        action: Action::Install(install::Verb::Uninstall),
    },
    Command {
        words: &["ipam", "list"],
        operands: &[],
        about: "show the pools of the node, and who has which address",
        details: ipam::LIST_DETAILS,
        options: &[&NETWORK, &DATA_DIR, &CONF, &ALL, &NET_DIR, &OUTPUT],
        action: Action::Ipam(ipam::Verb::List),
    },
    Command {
        words: &["ipam", "release"],
        operands: &["ADDRESS"],
        about: "give back an address whose holder is gone",
        details: ipam::RELEASE_DETAILS,
        options: &[&NETWORK, &DATA_DIR, &NET_DIR, &BIN_DIR, &OUTPUT],
        action: Action::Ipam(ipam::Verb::Release),
    },
    Command {
        words: &["ipam", "verify"],
        operands: &[],
        about: "compare the pools with our records and the living namespaces",
        details: ipam::VERIFY_DETAILS,
        options: &[&NETWORK, &DATA_DIR, &CONF, &NET_DIR, &OUTPUT],
        action: Action::Ipam(ipam::Verb::Verify),
    },
];

const NETWORK: Flag =
    Flag { name: "network", letter: None, value: Some("NAME"), about: "only the pool of this network" };
const DATA_DIR: Flag = Flag {
    name: "data-dir",
    letter: None,
    value: Some("DIR"),
    about: "only the pools in this directory; without it those in /var/lib/cni/networks and wherever a network has its own",
};
const CONF: Flag = Flag {
    name: "conf",
    letter: None,
    value: Some("FILE"),
    about: "a network's configuration, for the ranges of its pool where they are not known",
};
const ALL: Flag = Flag {
    name: "all",
    letter: None,
    value: None,
    about: "every lease, also of living pods in a pool that has very many (table only; JSON has all)",
};
const NET_DIR: Flag = Flag {
    name: "net-dir",
    letter: None,
    value: Some("DIR"),
    about: "where the runtime's configurations are, ours among them; /etc/cni/net.d by default",
};
const BIN_DIR: Flag = Flag {
    name: "bin-dir",
    letter: None,
    value: Some("DIR"),
    about: "where plugins are that have to be run, besides binDir of our configuration; /opt/cni/bin without one",
};
const OUTPUT: Flag =
    Flag { name: "output", letter: Some('o'), value: Some("FORM"), about: "table (the default) or json" };

/// What a command has to say.
#[derive(Debug)]
struct Answer {
    /// For stdout.
    text: String,
    /// Whether it did what was asked, and found nothing wrong.
    good: bool,
}

/// Why a command did nothing.
#[derive(Debug)]
enum Failure {
    /// It was called in a wrong way.
    Usage(String),
    /// It failed, or refused.
    Failed(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<::ipam::Error> for Failure {
    fn from(error: ::ipam::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Json,
}

impl Form {
    fn of(arguments: &Arguments) -> Result<Self, Failure> {
        match arguments.value(OUTPUT.name) {
            None | Some("table") => Ok(Self::Table),
            Some("json") => Ok(Self::Json),
            Some(other) => Err(Failure::Usage(format!("--output is table or json, not \"{other}\""))),
        }
    }

    /// The value in this form; `table` is its text for people.
    fn write<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> String) -> Result<String, Failure> {
        match self {
            Self::Table => Ok(table(value)),
            Self::Json => serde_json::to_string_pretty(value)
                .map(|text| text + "\n")
                .map_err(|problem| Failure::Failed(Error::decode("the answer", problem))),
        }
    }
}

/// Runs a command line, without the program's name. `stdin` is for what we start ourselves.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>, stdin: impl Read) -> Reply {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.peek().is_some_and(|word| word == POST_COMMAND) {
        return reply(post_events::run(stdin));
    }
    reply(match arguments::read(COMMANDS, arguments) {
        Err(problem) => Err(Failure::Usage(problem)),
        Ok(Asked::Version) => Ok(Answer { text: Called::Engine(Face::Meta).about(), good: true }),
        Ok(Asked::Help(words)) => Ok(Answer { text: arguments::help(COMMANDS, &words), good: true }),
        Ok(Asked::Run(command, arguments)) => run_command(command, &arguments),
    })
}

fn reply(outcome: Result<Answer, Failure>) -> Reply {
    let (stdout, stderr, code) = match outcome {
        Ok(answer) => (answer.text, String::new(), if answer.good { 0 } else { FAILED }),
        Err(Failure::Usage(problem)) => {
            (String::new(), format!("meta-cni: {problem}; meta-cni --help lists what there is\n"), USAGE)
        }
        Err(Failure::Failed(error)) => (String::new(), format!("meta-cni: {}\n", in_words(&error)), FAILED),
    };
    Reply { stdout, stderr, code }
}

fn run_command(command: &Command, arguments: &Arguments) -> Result<Answer, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::Failed(Error::Config(format!(
            "\"{}\" needs root: it works on files, records and namespaces of the node",
            command.words.join(" ")
        ))));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::io("start", "the I/O runtime", source))?;
    runtime.block_on(async {
        match command.action {
            Action::Install(verb) => install::run(verb, arguments).await,
            Action::Ipam(verb) => ipam::run(verb, arguments).await,
        }
    })
}

/// An error with its cause, for people.
fn in_words(error: &Error) -> String {
    let details = error.details();
    if details.is_empty() { error.to_string() } else { format!("{error}: {details}") }
}
