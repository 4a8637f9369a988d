//! Which face is asked for; run it, print, exit. Nothing else prints or exits.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let called = meta_cni::Called::by(&arguments.next().unwrap_or_default());
    let reply = meta_cni::run(called, arguments, |key| std::env::var(key).ok(), io::stdin().lock());
    // A runtime that closed its end does not read the answer; there is nobody else to tell.
    let _ = io::stderr().write_all(reply.stderr.as_bytes());
    let _ = io::stdout().write_all(reply.stdout.as_bytes());
    ExitCode::from(reply.code)
}
