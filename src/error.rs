//! How an error reaches the user: one line that names the thing, one that says what to do.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::limits;

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
    /// A failure out of an error that knows its help. Where the host has run out of something, that
    /// is what helps, whatever was being done.
    pub fn new(status: ExitStatus, error: &(impl Help + 'static)) -> Self {
        Failure {
            status,
            error: error.to_string(),
            help: help_for(error),
        }
    }
}

/// What to do about `error`: about the limit of the host that is behind it, where there is one.
pub fn help_for(error: &(impl Help + 'static)) -> String {
    exhausted(error).unwrap_or_else(|| error.help())
}

/// What to do about a limit of the host that is behind `error`.
fn exhausted(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let errno = causes.find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())?;
    let help = match errno {
        libc::EMFILE => "raise the limit of open files: ulimit -n 4096".to_owned(),
        libc::ENFILE => {
            "the host has no more open files: end other programs, or raise 'sysctl fs.file-max'".into()
        }
        libc::ENOMEM | libc::EAGAIN if limits::address_space().is_some() => more_address_space(),
        libc::ENOMEM => "the host has no memory left: end other programs ('free -m' shows it), or look at the limit of the cgroup".into(),
        _ => return None,
    };
    Some(help)
}

/// What to do where that limit may be the reason.
pub fn more_address_space() -> String {
    "raise the limit of address space: ulimit -v unlimited".into()
}

/// Prints a line to standard error. One that is closed or full is no reason to end a machine.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// An I/O error in words: the host's text without its `(os error n)`.
pub fn io_reason(error: &io::Error) -> String {
    without_errno(&error.to_string())
}

/// `text` without each `(os error n)`, which tells nobody anything that the words before it do not.
pub fn without_errno(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let first = parts.next().unwrap_or_default();
    let rest = parts.filter_map(|part| part.split_once(')').map(|(_number, after)| after));
    std::iter::once(first).chain(rest).collect()
}

/// `text` without what a terminal would obey: control characters, and those that turn the direction
/// of writing round, are shown as escapes. Names of files may hold any of them.
pub fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().map(|c| match harmless(c) {
        true => c.to_string(),
        false => c.escape_default().to_string(),
    });
    Cow::Owned(escaped.collect())
}

/// Lines of `text`, each [`printable`].
pub fn printable_lines(text: &str) -> String {
    text.lines()
        .flat_map(|line| [printable(line), "\n".into()])
        .collect()
}

/// The known word that `word` was most likely meant to be; of several as near, the first.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const SIMILAR: f64 = 0.65;
    let mut best: Option<(f64, &str)> = None;
    for candidate in known {
        let score = strsim::jaro_winkler(word, candidate);
        if score >= SIMILAR && best.is_none_or(|(other, _)| score > other) {
            best = Some((score, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_of_a_name() {
        assert_eq!(printable("a b\u{e9}"), "a b\u{e9}");
        assert_eq!(printable("a\x1b[2Jb\n\u{202e}"), "a\\u{1b}[2Jb\\n\\u{202e}");
    }

    #[test]
    fn numbers_of_errors_are_left_out() {
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        assert_eq!(io_reason(&error), "Too many open files");
        assert_eq!(
            without_errno(&format!("a ({error}), b: {error}")),
            "a (Too many open files), b: Too many open files"
        );
    }

    #[test]
    fn the_nearest_word_is_near() {
        let known = ["memory", "initrd", "cpus"];
        assert_eq!(nearest("memroy", known), Some("memory"));
        assert_eq!(nearest("intrd", known), Some("initrd"));
        assert_eq!(nearest("xyzzy", known), None);
    }
}
