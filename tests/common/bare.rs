//! Machines with the bare-metal guest (tests/guests), and what it says of itself.

use std::process::{Child, Command};
use std::time::Duration;

use bantam::machine::host::{Backend, backend};

use super::{Outcome, bantam, guest, run_with};

/// How the requests of a disk may be done: for the names of tests, and as words behind its path.
pub const ENGINES: [(&str, &str); 5] = [
    ("default", ""),
    ("threads", ",io=threads"),
    ("direct", ",cache=direct"),
    ("direct_threads", ",cache=direct,io=threads"),
    ("io_thread", ",iothread"),
];

/// `bantam run` with the guest, which does `wish`.
pub fn command(wish: &str, more: &[&str]) -> Command {
    command_of(guest::elf().to_str().unwrap(), wish, more)
}

/// The same with another image of the guest.
pub fn command_of(image: &str, wish: &str, more: &[&str]) -> Command {
    let mut command = Command::new(bantam());
    command
        .args(["run", image, "--append", &format!("do={wish}")])
        .args(["--time-limit", "60s"])
        .args(more);
    command
}

/// Runs the guest to its end.
pub fn wish(wish: &str, more: &[&str]) -> Outcome {
    run_with(command(wish, more), b"", Duration::from_secs(90))
}

/// Starts the guest and returns when it is at work.
pub fn at_work(wish: &str, disk: &str) -> Child {
    super::at_work(command(wish, &["--disk", disk]), "at work\n")
}

/// The guest has made so many checks, each of which it reports as "ok ..." or "WRONG ...", and has then
/// ended the machine. The number is exact: a guest that stops half-way has nothing wrong to report.
#[track_caller]
pub fn all_ok(outcome: &Outcome, checks: usize) {
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(!outcome.stdout.contains("WRONG"), "{outcome:?}");
    let good = outcome.stdout.lines().filter(|l| l.starts_with("ok "));
    assert_eq!(good.count(), checks, "{outcome:?}");
}

/// The guest has ended the machine, and has said all of `words`.
#[track_caller]
pub fn says(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    for word in words {
        assert!(outcome.stdout.contains(word), "no '{word}' in {outcome:?}");
    }
}

/// How the guest gets to ring 3, by the way that this host's KVM knows: a word of its command line.
pub fn ring_word() -> &'static str {
    match backend() {
        Backend::Pvm => "",
        _ => " ring=iret",
    }
}
