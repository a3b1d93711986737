//! A host that fails: each call to the kernel in turn, of a machine that has everything, fails in each way that it can,
//! and the machine does what it may then do, and nothing else ([`verdict`]).
//!
//! The program is the one that is shipped: what fails is what the kernel answers to it ([`tracer`]). First a machine runs
//! undisturbed, and its calls are counted; then it runs once for each call, error and occurrence. `make test` tries some
//! occurrences of each, `make soak` many more. One of them again, and what it says:
//!
//! ```text
//! BANTAM_FAULT=every_device,openat,EMFILE,3 cargo test --test faults one_fault -- --ignored
//! ```

mod calls;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod inject;
mod machines;
mod shortage;
mod soak;
mod starts;
mod stopped;
mod tracer;
mod verdict;

use common::trials::{Test, each, exit_after, trial, trials_of};

fn main() {
    let missing = common::kvm().err();
    let mut trials = Vec::new();
    for machine in machines::MACHINES {
        let name = format!("whatever_fails_under_a_machine_with_{}", machine.name);
        trials.push(trial(name, missing.as_deref(), move || {
            inject::everything(&machine)
        }));
    }
    let of = |why: Option<String>| missing.clone().or(why);
    let tests: [Test; 7] = [
        (
            "starts_and_stops_leave_nothing_over",
            of(None),
            starts::leave_nothing,
        ),
        (
            "a_busy_machine_stays_as_it_is",
            of(None),
            soak::stays_as_it_is,
        ),
        (
            "another_clock_is_no_other_time_limit",
            of(stopped::namespace_missing()),
            stopped::another_clock,
        ),
        (
            "a_wall_clock_that_jumps_ends_nothing_and_keeps_nothing_from_ending",
            stopped::lab_missing(),
            stopped::wall_clock,
        ),
        (
            "a_limit_of_data_is_one_clear_error",
            of(None),
            shortage::little_data,
        ),
        (
            "a_flush_that_has_failed_never_succeeds_again",
            of(None),
            cases::flush_again,
        ),
        (
            "an_end_comes_where_no_signal_can_be_queued",
            of(None),
            cases::no_signals,
        ),
    ];
    trials.extend(trials_of(tests));
    let disks = [
        ("raw", ("raw", "")),
        ("raw_by_threads", ("raw", ",cache=direct,io=threads")),
        ("qcow2", ("qcow2", ",iothread")),
    ];
    let missing = missing.as_deref();
    trials.extend(each(
        "a_machine_that_is_stopped_loses_nothing",
        disks,
        missing,
        stopped::keeps_its_data,
    ));
    let no_group = shortage::group_missing();
    let no_group = missing.or(no_group.as_deref());
    let disks = [
        ("raw", (machines::Format::Raw, "")),
        ("qcow2", (machines::Format::Qcow2, "")),
    ];
    let name = "a_machine_that_the_kernel_ends_for_its_memory_leaves_nothing_and_loses_nothing";
    trials.extend(each(name, disks, no_group, shortage::ended_by_the_kernel));
    let fault = std::env::var("BANTAM_FAULT").ok();
    let none = fault.is_none().then_some("BANTAM_FAULT names none");
    trials.push(trial("one_fault", none, move || {
        inject::one(&fault.unwrap())
    }));
    exit_after(trials);
}
