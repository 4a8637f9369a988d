//! The command line, read against a table of commands: what a command is called, what it takes, and its help all come
//! from its entry there.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
};

use lexopt::{Arg, Parser};

/// A command for people.
#[derive(Debug)]
pub(super) struct Command {
    /// What it is called by: `ipam list`.
    pub(super) words: &'static [&'static str],
    /// What it is about, as its usage line names it; empty if it takes nothing.
    pub(super) operands: &'static [&'static str],
    /// What it does, in one line.
    pub(super) about: &'static str,
    /// What more there is to say.
    pub(super) details: &'static str,
    /// What it can be told.
    pub(super) options: &'static [&'static Flag],
    /// What is to be run.
    pub(super) action: super::Action,
}

/// An option of a command.
#[derive(Debug)]
pub(super) struct Flag {
    /// `--NAME`.
    pub(super) name: &'static str,
    /// `-L`.
    pub(super) letter: Option<char>,
    /// What its value is, if it has one.
    pub(super) value: Option<&'static str>,
    /// What it does.
    pub(super) about: &'static str,
}

/// What a command was told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    operands: Vec<String>,
    values: BTreeMap<&'static str, Vec<String>>,
    switches: BTreeSet<&'static str>,
}

impl Arguments {
    /// The operand at a place; there are as many as the command's entry says.
    pub(super) fn operand(&self, at: usize) -> &str {
        self.operands.get(at).map(String::as_str).unwrap_or_default()
    }

    /// The value of an option; of several the last.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last().map(String::as_str)
    }

    /// The values of an option that may be given several times.
    pub(super) fn values(&self, name: &str) -> &[String] {
        self.values.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The value of an option that is a path.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    /// Whether a switch was given.
    pub(super) fn switch(&self, name: &str) -> bool {
        self.switches.contains(name)
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// To be told about all commands that begin with these words.
    Help(Vec<String>),
    /// Which version this is.
    Version,
    /// To run a command.
    Run(&'static Command, Arguments),
}

/// Reads a command line, without the program's name.
///
/// # Errors
/// A text that says what is wrong with it.
pub(super) fn read(
    commands: &'static [Command],
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Asked, String> {
    let mut parser = Parser::from_args(arguments);
    let mut words: Vec<String> = Vec::new();
    loop {
        if let Some(command) = commands.iter().find(|command| command.words == words) {
            return read_command(command, words, &mut parser);
        }
        match parser.next().map_err(|error| error.to_string())? {
            Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Asked::Help(words)),
            Some(Arg::Short('V') | Arg::Long("version")) if words.is_empty() => return Ok(Asked::Version),
            Some(Arg::Value(word)) if words.is_empty() && word == "help" => {
                return Ok(Asked::Help(parser.raw_args().map_err(|error| error.to_string())?.map(lossy).collect()));
            }
            Some(Arg::Value(word)) => words.push(lossy(word)),
            Some(option) => return Err(option.unexpected().to_string()),
            None => {
                return Err(format!("\"{}\" is not a whole command: {}", words.join(" "), titles(commands, &words)));
            }
        }
        if !commands.iter().any(|command| begins_with(command, &words)) {
            return Err(format!("there is no command \"{}\"", words.join(" ")));
        }
    }
}

fn read_command(command: &'static Command, words: Vec<String>, parser: &mut Parser) -> Result<Asked, String> {
    let mut arguments = Arguments::default();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        let flag = match &argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Asked::Help(words)),
            Arg::Short(letter) => command.options.iter().find(|flag| flag.letter == Some(*letter)),
            Arg::Long(name) => command.options.iter().find(|flag| flag.name == *name),
            Arg::Value(_) if arguments.operands.len() < command.operands.len() => None,
            Arg::Value(_) => return Err(argument.unexpected().to_string()),
        };
        let Some(flag) = flag else {
            match argument {
                Arg::Value(operand) => arguments.operands.push(text(operand)?),
                option => return Err(option.unexpected().to_string()),
            }
            continue;
        };
        if flag.value.is_some() {
            let value = text(parser.value().map_err(|error| error.to_string())?)?;
            arguments.values.entry(flag.name).or_default().push(value);
        } else {
            arguments.switches.insert(flag.name);
        }
    }
    match command.operands.get(arguments.operands.len()) {
        Some(missing) => Err(format!("{missing} is missing")),
        None => Ok(Asked::Run(command, arguments)),
    }
}

/// What is said about the commands that begin with these words: all about one, a line each about several.
pub(super) fn help(commands: &[Command], words: &[String]) -> String {
    let meant: Vec<&Command> = commands.iter().filter(|command| begins_with(command, words)).collect();
    let [command] = meant.as_slice() else {
        let width = commands.iter().map(|command| command.title().len()).max().unwrap_or_default();
        let lines: String =
            meant.iter().map(|command| format!("  {:width$}  {}\n", command.title(), command.about)).collect();
        return format!(
            "usage: meta-cni COMMAND [OPTIONS]\n\n{lines}\nmeta-cni COMMAND --help says more about one; meta-cni --version says which version this is.\n"
        );
    };
    let width = command.options.iter().map(|flag| flag.title().len()).max().unwrap_or_default();
    let options: String =
        command.options.iter().map(|flag| format!("  {:width$}  {}\n", flag.title(), flag.about)).collect();
    format!("usage: meta-cni {} [OPTIONS]\n\n{}\n{}\n{options}", command.title(), command.about, command.details)
}

impl Command {
    /// The words and operands.
    fn title(&self) -> String {
        [self.words, self.operands].concat().join(" ")
    }
}

impl Flag {
    fn title(&self) -> String {
        let letter = self.letter.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
        let value = self.value.map(|value| format!(" {value}")).unwrap_or_default();
        format!("{letter}--{}{value}", self.name)
    }
}

fn titles(commands: &[Command], words: &[String]) -> String {
    let meant = commands.iter().filter(|command| begins_with(command, words));
    meant.map(Command::title).collect::<Vec<_>>().join(", ")
}

fn begins_with(command: &Command, words: &[String]) -> bool {
    command.words.len() >= words.len() && command.words.iter().zip(words).all(|(word, given)| word == given)
}

fn text(argument: OsString) -> Result<String, String> {
    argument.into_string().map_err(|argument| format!("{} is not UTF-8", argument.to_string_lossy()))
}

fn lossy(argument: OsString) -> String {
    argument.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::COMMANDS;

    fn read(line: &str) -> Result<Asked, String> {
        super::read(COMMANDS, line.split(' ').filter(|word| !word.is_empty()).map(OsString::from))
    }

    #[test]
    fn options_stand_anywhere_behind_the_command_and_in_every_usual_form() {
        for line in [
            "ipam release 10.0.0.1 --network a -o json",
            "ipam release -o json --network=a 10.0.0.1",
            "ipam release -ojson --network a -- 10.0.0.1",
        ] {
            let Ok(Asked::Run(command, arguments)) = read(line) else { panic!("{line}") };
            assert_eq!(command.words, ["ipam", "release"]);
            assert_eq!(arguments.operand(0), "10.0.0.1", "{line}");
            assert_eq!((arguments.value("network"), arguments.value("output")), (Some("a"), Some("json")), "{line}");
        }
        let Ok(Asked::Run(_, arguments)) = read("ipam list --all") else { panic!() };
        assert!(arguments.switch("all") && arguments.value("network").is_none());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, wanted) in [
            ("ipam", "\"ipam\" is not a whole command: ipam list, ipam release ADDRESS, ipam verify"),
            ("ipam lits", "there is no command \"ipam lits\""),
            ("frob", "there is no command \"frob\""),
            ("--frob", "invalid option '--frob'"),
            ("ipam list --frob", "invalid option '--frob'"),
            ("ipam list extra", "unexpected argument \"extra\""),
            ("ipam list --network", "missing argument for option '--network'"),
            ("ipam list --all=yes", "unexpected argument for option '--all': \"yes\""),
            ("ipam release", "ADDRESS is missing"),
        ] {
            assert_eq!(read(line).unwrap_err(), wanted, "{line}");
        }
    }

    #[test]
    fn help_is_given_wherever_it_is_asked_for() {
        for (line, words) in [
            ("--help", vec![]),
            ("-h", vec![]),
            ("help", vec![]),
            ("help ipam list", vec!["ipam", "list"]),
            ("ipam --help", vec!["ipam"]),
            ("ipam list --all --help", vec!["ipam", "list"]),
        ] {
            let Ok(Asked::Help(asked)) = read(line) else { panic!("{line}") };
            assert_eq!(asked, words, "{line}");
        }
        assert!(matches!(read("--version"), Ok(Asked::Version)));
        for command in COMMANDS {
            let words: Vec<String> = command.words.iter().map(|word| (*word).to_owned()).collect();
            let text = help(COMMANDS, &words);
            assert!(text.starts_with(&format!("usage: meta-cni {} [OPTIONS]\n", command.title())), "{text}");
            assert!(help(COMMANDS, &[]).contains(command.about));
        }
    }
}
