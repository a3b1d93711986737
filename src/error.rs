//! How an error reaches the user: one line that names the thing, one that says what to do.

use std::fmt::Display;
use std::io;

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
    /// The sandbox stopped a thread that called what it has no use for.
    Sandbox = 7,
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
    "raise the limits of address space and of data: ulimit -v unlimited; ulimit -d unlimited".into()
}

/// `text` as it may go to a terminal, on one line.
///
/// Names and words that come from a file, a folder or another program can hold anything: codes that
/// move the cursor, set the window's title or answer in the user's name, line feeds that make a line
/// which looks like one of ours, and letters that turn the direction of what follows. Each such
/// character is shown by its number: `\u{1b}`.
pub fn escaped(text: impl Display) -> String {
    escape(&text.to_string(), |_| false)
}

/// The same for a text of several lines: line feeds stay. What comes from outside within it has to be
/// [`escaped`] before, or it could make lines of its own.
pub fn escaped_lines(text: &str) -> String {
    escape(text, |c| c == '\n')
}

fn escape(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_unseen(c) && !stays(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    shown
}

/// Characters that do something else than to be seen: controls (ECMA-48), and those of Unicode that
/// have no width or turn the direction of writing (Unicode, category Cf, and the line separators).
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// JSON as it may go to a terminal. Line feeds are between its values; within them JSON has escapes
/// of its own, and these are used here for all other characters that are not seen.
pub fn escaped_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !is_unseen(c) {
            shown.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            shown.push_str(&format!("\\u{unit:04x}"));
        }
    }
    shown
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

    #[test]
    fn what_is_not_seen_is_shown_by_its_number() {
        assert_eq!(escaped("Grüße, 世界 \\ \"x\""), "Grüße, 世界 \\ \"x\"");
        assert_eq!(escaped("a\x1b]0;b\x07c"), r"a\u{1b}]0;b\u{7}c");
        assert_eq!(escaped("a\nhelp: b\r"), r"a\u{a}help: b\u{d}");
        assert_eq!(escaped_lines("a\n\tb\u{9b}"), "a\n\\u{9}b\\u{9b}");
        assert_eq!(escaped("\u{202e}gpj"), r"\u{202e}gpj");
    }

    proptest::proptest! {
        #[test]
        fn json_says_the_same(text in "\\PC*", c in proptest::char::any()) {
            let value = format!("{text}{c}\u{7f}\u{9b}\u{202e}\u{e0041}");
            let json = escaped_json(&serde_json::to_string(&value).unwrap());
            assert!(!json.chars().any(is_unseen), "{json}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), value);
        }
    }
}
