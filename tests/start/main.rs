//! What a start finds before the guest runs: limits of the host, rights, a console that cannot be
//! written, a KVM that the kernel does not boot on. `--dry-run` finds the same.

#[path = "../common/mod.rs"]
mod common;
mod limits;
mod qemu;
mod rehearsal;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use common::trials::{Test, exit_after, trials_of};
use common::{Outcome, TempFile, bantam, guest, run_with, set_limit};

const START: i32 = 3;
const QEMU: &str = "qemu-system-x86_64";

fn main() {
    let no_kvm = common::kvm().err();
    let without = |program: &str| {
        let why = || format!("{program} is not installed");
        no_kvm
            .clone()
            .or_else(|| (!common::has_program(program)).then(why))
    };
    let no_kvm = || no_kvm.clone();
    let tests: [Test; 12] = [
        ("no_reboot_means_what_qemu_means", no_kvm(), qemu::no_reboot),
        (
            "sizes_and_topologies_are_what_qemu_makes_of_them",
            without(QEMU),
            qemu::sizes,
        ),
        ("check_says_which_limit_is_too_low", no_kvm(), limits::check),
        (
            "too_few_open_files_are_one_clear_error",
            no_kvm(),
            limits::open_files,
        ),
        (
            "too_little_address_space_is_one_clear_error",
            no_kvm(),
            limits::address_space,
        ),
        (
            "the_terminal_comes_back_whatever_was_missing",
            no_kvm(),
            limits::terminal,
        ),
        (
            "each_call_of_kvm_that_fails_is_one_clear_error",
            without("strace"),
            failing_calls,
        ),
        (
            "dry_run_finds_what_a_start_would",
            no_kvm(),
            rehearsal::finds_the_same,
        ),
        (
            "dry_run_finds_that_there_is_too_little_memory",
            no_kvm(),
            rehearsal::little_memory,
        ),
        (
            "dry_run_finds_that_kvm_is_forbidden",
            no_kvm().or_else(rehearsal::kvm_is_for_all),
            rehearsal::forbidden,
        ),
        ("dry_run_leaves_no_trace", no_kvm(), rehearsal::no_trace),
        (
            "stock_kernels_on_pvm_are_refused_before_they_start",
            no_kvm(),
            rehearsal::pvm,
        ),
    ];
    exit_after(trials_of(tests));
}

fn kernel() -> &'static str {
    guest::elf().to_str().unwrap()
}

/// `bantam` with a limit of setrlimit(2).
fn limited(args: &[&str], resource: libc::__rlimit_resource_t, value: u64) -> Outcome {
    let mut command = Command::new(bantam());
    command.args(args);
    // SAFETY: setrlimit is async-signal-safe.
    unsafe { command.pre_exec(move || set_limit(resource, value)) };
    let mut outcome = run_with(command, b"", Duration::from_secs(60));
    outcome.command = format!(
        "{}, resource {resource} limited to {value}",
        outcome.command
    );
    outcome
}

/// The nth ioctl of each thread fails, by fault injection into the real binary.
fn failing_calls() {
    let disk = TempFile::new("disk.img", &[0; 4096]);
    let mut named = std::collections::BTreeSet::new();
    for (errno, hint) in [("EINVAL", "help: "), ("ENOMEM", "no memory left")] {
        for nth in 1..=21 {
            let mut command = common::with_failing(&format!("ioctl:error={errno}:when={nth}"), &[]);
            command
                .args(["run", kernel(), "--cpus", "2", "--time-limit", "30s"])
                .args(["--disk", disk.str()]);
            let outcome = run_with(command, b"", Duration::from_secs(60));
            assert_eq!(outcome.code(), START, "{errno} {nth}: {outcome:?}");
            let lines: Vec<_> = outcome.stderr.lines().collect();
            assert!(
                lines.len() == 2 && lines[0].starts_with("error: "),
                "{nth}: {outcome:?}"
            );
            assert!(lines[1].starts_with("help: "), "{nth}: {outcome:?}");
            assert!(!lines[1].contains("--memory"), "{nth}: {outcome:?}");
            if let Some(call) = lines[0].strip_prefix("error: KVM_") {
                assert!(lines[1].contains(hint), "{nth}: {outcome:?}");
                named.insert(call.split(' ').next().unwrap().to_owned());
            }
        }
    }
    assert!(named.len() >= 8, "{named:?}");
}
