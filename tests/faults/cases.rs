//! Faults that have once found something, each with what was wrong.

use std::process::Stdio;
use std::time::Duration;

use libc::c_long;

use crate::calls::Which;
use crate::common::{self, bare};
use crate::inject::{Fault, with};
use crate::machines::{Console, Format, Machine};
use crate::tracer::Answer;

/// The second fdatasync(2) after one that has failed succeeds, although what was written before may be lost: a guest that
/// tries its flush again was told that all is well.
pub fn flush_again() {
    // With io_uring the kernel makes the call by itself, where nobody can answer it instead.
    let disks: [(c_long, &[(Format, &str)]); 3] = [
        (libc::SYS_fdatasync, &[(Format::Raw, ",io=threads")]),
        (libc::SYS_fsync, &[(Format::Qcow2, "")]),
        (libc::SYS_fsync, &[(Format::Qcow2, ",cache=direct")]),
    ];
    for (number, disks) in disks {
        let machine = Machine {
            name: "flush_again",
            console: Console::Pipes,
            disks,
            words: &["--reboot"],
            wish: "flush-again",
            limit: "60s",
        };
        let fault = Fault {
            which: Which { number, detail: 0 },
            answer: Answer::Fails(libc::EIO),
            occurrence: 1,
        };
        let (run, hit, _) = with(&machine, fault);
        let good = run
            .stdout
            .lines()
            .filter(|line| line.starts_with("ok "))
            .count();
        assert!(
            hit && good == 5,
            "{machine:?}\n{}\n{}",
            run.stdout,
            run.stderr
        );
        assert_eq!(run.end.status.code(), Some(0), "{}", run.stderr);
    }
}

/// A real-time signal is refused where the user's queue of signals is full, and the vCPUs were never told of the end.
pub fn no_signals() {
    let mut command = bare::command("deaf", &["--cpus", "2"]);
    command.args(["--time-limit", "300ms"]).stdin(Stdio::null());
    // SAFETY: setrlimit is async-signal-safe.
    unsafe {
        use std::os::unix::process::CommandExt;
        command.pre_exec(|| common::set_limit(libc::RLIMIT_SIGPENDING, 0));
    }
    let outcome = common::run_with(command, b"", Duration::from_secs(30));
    assert_eq!(outcome.code(), 6, "{outcome:?}");
}
