//! A host that lacks something: /dev/kvm answers as `errno` says, by fault injection into the real binary.

use std::time::Duration;

use crate::common::{self, run_with};
use crate::{START, kernel, refused};

#[test]
fn kvm_missing_forbidden_or_busy() {
    assert!(
        common::has_program("strace"),
        "strace is needed for this test: apt-get install strace"
    );
    for (errno, words) in [
        ("ENOENT", ["/dev/kvm does not exist", "modprobe"]),
        ("EACCES", ["/dev/kvm: permission denied", "kvm"]),
        ("EBUSY", ["/dev/kvm is busy", "stop the other hypervisor"]),
    ] {
        let rule = format!("openat:error={errno}");
        let mut command = common::with_failing(&rule, &["-P", "/dev/kvm"]);
        command.args(["run", kernel()]);
        let outcome = run_with(command, b"", Duration::from_secs(30));
        refused(&outcome, START, &words);
    }
}
