//! How an error reaches the user: one line that names the thing, one that says what to do.

use std::io::{self, Write};

/// An error that knows what its reader can do about it.
pub trait Help: std::error::Error {
    /// One sentence, an imperative, without a full stop.
    fn help(&self) -> String;
}

/// How the process ends. The numbers are part of the interface (`bantam --help`, README).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The guest powered off or rebooted, or the user left with Ctrl-a x.
    Success = 0,
    /// `bantam check`: this host cannot run guests.
    Unable = 1,
    /// The command line or the configuration file is wrong; nothing was started.
    Usage = 2,
    /// The machine could not be started.
    Start = 3,
    /// The guest crashed: triple fault, kernel panic, or an error inside KVM.
    GuestCrash = 4,
    /// A signal ended the machine before the guest did.
    Signal = 5,
    /// The time limit ended the machine.
    TimeLimit = 6,
}

/// What `main` prints before it ends with `status`.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub status: ExitStatus,
    /// After `error: `.
    pub error: String,
    /// After `help: `.
    pub help: String,
}

impl Failure {
    /// A failure out of an error that knows its help.
    pub fn new(status: ExitStatus, error: &impl Help) -> Self {
        Failure {
            status,
            error: error.to_string(),
            help: error.help(),
        }
    }
}

/// Prints a line to standard error. One that is closed or full is no reason to end a machine.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// An I/O error in words: the host's text without its `(os error n)`.
pub fn io_reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}
