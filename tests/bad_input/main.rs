//! What bad input gets: one line that names the thing, one that says what to do, the right exit
//! code, and nothing else. Runs the binary; needs no /dev/kvm, except where a test says so.

#[path = "../common/mod.rs"]
mod common;
mod config;
mod files;
mod habits;
mod host;
mod kernels;
mod words;

use common::{Outcome, guest};

const USAGE: i32 = 2;
const START: i32 = 3;

/// Exactly `error: ...` with all of `words`, and `help: ...`, and nothing on stdout.
#[track_caller]
fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code(), code, "{outcome:?}");
    assert_eq!(outcome.stdout, "", "nothing is started");
    let lines: Vec<_> = outcome.stderr.lines().collect();
    let [error, help] = lines[..] else {
        panic!("not two lines: {outcome:?}");
    };
    assert!(error.starts_with("error: "), "{error}");
    assert!(help.starts_with("help: ") && help.len() > 12, "{help}");
    assert!(
        !outcome.stderr.contains("os error"),
        "a bare errno: {outcome:?}"
    );
    for word in words {
        assert!(
            error.contains(word) || help.contains(word),
            "no '{word}' in {outcome:?}"
        );
    }
}

fn kernel() -> &'static str {
    guest::elf().to_str().unwrap()
}
