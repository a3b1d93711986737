//! Linux guests: where their parts are, and how one is run.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{Outcome, bantam, run_with, target};

/// For one boot, also of 32 vCPUs, on an emulated processor that others use as well.
pub const LIMIT: &str = "150s";

pub fn guest_path(name: &str) -> PathBuf {
    target().join("guest").join(name)
}

pub fn path(name: &str) -> String {
    guest_path(name).to_str().unwrap().to_owned()
}

/// What `make guests` has not made of `names`.
pub fn missing(names: &[&str]) -> Option<String> {
    names
        .iter()
        .find(|name| !guest_path(name).exists())
        .map(|name| format!("{name} is missing: make guests"))
}

/// A scratch folder in memory: in the lab, /tmp is another machine's.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

pub fn copy_of(name: &str, folder: &tempfile::TempDir) -> String {
    let to = folder.path().join(name.replace('/', "-"));
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .arg(guest_path(name))
        .arg(&to)
        .status();
    assert!(copied.unwrap().success());
    to.to_str().unwrap().to_owned()
}

/// `guest.exec=` for a script, which the guest's init runs and then powers off.
pub fn exec(script: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("guest.exec=");
    for chunk in script.as_bytes().chunks(3) {
        let mut bits = 0u32;
        for i in 0..3 {
            bits = bits << 8 | u32::from(*chunk.get(i).unwrap_or(&0));
        }
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { digit as char } else { '=' });
        }
    }
    text
}

pub fn run_vm(args: &[&str], append: &str) -> Outcome {
    let once = || {
        let mut command = Command::new(bantam());
        command
            .arg("run")
            .args(args)
            .args(["--append", append, "--time-limit", LIMIT, "-v"])
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
        run_with(command, b"", Duration::from_secs(200))
    };
    let outcome = once();
    if outcome.code() != 6 {
        return outcome;
    }
    // A guest that stands still says nothing of the VMM where its processor is emulated: those
    // stop now and then with several vCPUs (docs/lab.md). One that does it twice does.
    eprintln!("a guest stood still and is started again: {args:?}");
    once()
}

/// Runs a script in the test kernel with its initramfs; it must succeed.
#[track_caller]
pub fn script(text: &str, args: &[&str]) -> String {
    let (kernel, initrd) = (path("vmlinux"), path("initramfs.cpio.gz"));
    let args = [&[kernel.as_str(), "--initrd", &initrd], args].concat();
    succeeded(&run_vm(&args, &exec(text)))
}

#[track_caller]
pub fn succeeded(outcome: &Outcome) -> String {
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stdout.contains("guest-exit=0"), "{outcome:?}");
    assert!(
        outcome.stderr.contains("the guest powered off"),
        "{outcome:?}"
    );
    assert!(!outcome.stdout.contains("Call Trace"), "{}", outcome.stdout);
    outcome.stdout.replace('\r', "")
}

#[track_caller]
pub fn contains(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no '{word}' in {text}");
    }
}
