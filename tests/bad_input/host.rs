//! A host that lacks something: /dev/kvm.

use std::process::Command;
use std::time::Duration;

use crate::common::{self, Outcome, bantam, run_with};
use crate::{START, kernel, refused};

/// /dev/kvm answers as `errno` says, by fault injection into the real binary.
fn with_kvm_answering(errno: &str) -> Option<Outcome> {
    if !common::has_program("strace") {
        return None;
    }
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-P",
        "/dev/kvm",
        "-e",
        "trace=openat",
    ]);
    command.args([
        "-e",
        &format!("inject=openat:error={errno}"),
        bantam(),
        "run",
        kernel(),
    ]);
    Some(run_with(command, b"", Duration::from_secs(30)))
}

#[test]
fn kvm_missing_forbidden_or_busy() {
    for (errno, words) in [
        ("ENOENT", ["/dev/kvm does not exist", "modprobe"]),
        ("EACCES", ["/dev/kvm: permission denied", "kvm"]),
        ("EBUSY", ["/dev/kvm is busy", "stop the other hypervisor"]),
    ] {
        match with_kvm_answering(errno) {
            Some(outcome) => refused(&outcome, START, &words),
            None => panic!("strace is needed for this test: apt-get install strace"),
        }
    }
}
