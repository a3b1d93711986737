//! How machines end: power off, reboot and panic of kernels that others have built, each with its
//! exit code. They have no driver for the pvpanic device in the initramfs, and most are built for
//! PCs with EFI.

mod common;

use common::linux::{contains, copy_of, exec, missing, path, run_vm, scratch};
use common::trials::{each, trial};
use common::{Outcome, lab};
use libtest_mimic::Trial;

/// Image, and what must be there for it.
const KERNELS: [(&str, &str); 8] = [
    ("test kernel", "bzImage"),
    ("cloud", "stock/vmlinuz"),
    ("generic", "kernels/generic/vmlinuz"),
    ("rt", "kernels/rt/vmlinuz"),
    ("later", "kernels/later/vmlinuz"),
    ("later-generic", "kernels/later-generic/vmlinuz"),
    ("backports", "kernels/backports/vmlinuz"),
    ("sid", "kernels/sid/vmlinuz"),
];
const POWER_OFF: &str = "true";
const REBOOT: &str = "busybox reboot -f; sleep 60";
const PANIC: &str = "echo c >/proc/sysrq-trigger; sleep 60";

fn main() {
    let needed = missing(&["bzImage", "initramfs.cpio.gz", "stock/vmlinuz"]);
    lab::main(needed, trials)
}

fn trials(ignored: Option<&str>) -> Vec<Trial> {
    let mut trials = Vec::new();
    let ways = [
        ("powers_off", powers_off as fn(&str)),
        ("reboots", reboots),
        ("panics", panics),
    ];
    for (name, image) in KERNELS {
        let missing = missing(&[image]);
        let ignored = ignored.or(missing.as_deref());
        for (way, test) in ways {
            let name = format!("{}_{way}", name.replace(' ', "_"));
            trials.push(trial(name, ignored, move || test(image)));
        }
    }
    trials.extend(each("a_reboot_is_a_success_by", WAYS, ignored, reboots_by));
    trials.extend(each(
        "a_panic_is_never_a_success",
        PANICS,
        ignored,
        panics_with,
    ));
    let tests: [(&str, fn()); 3] = [
        ("a_panic_is_told_by_pvpanic", pvpanic),
        (
            "a_reboot_is_a_success_with_another_command_line",
            other_command_line,
        ),
        ("with_reboot_it_starts_again_on_the_same_disk", starts_again),
    ];
    for (name, test) in tests {
        trials.push(trial(name, ignored, test));
    }
    trials
}

/// Boots `image` with our initramfs, which runs `script`.
fn run_script(image: &str, script: &str, args: &[&str], append: &str) -> Outcome {
    let (kernel, initrd) = (path(image), path("initramfs.cpio.gz"));
    let args = [&[kernel.as_str(), "--initrd", &initrd], args].concat();
    run_vm(&args, &format!("{append} {}", exec(script)))
}

/// Nothing comes before the guest's own first line: the machine gives a kernel no cause to complain.
#[track_caller]
fn is_quiet(outcome: &Outcome) {
    let first = outcome.stdout.lines().next().unwrap_or_default();
    assert!(first.starts_with("bantam-guest: ready"), "{outcome:?}");
}

fn powers_off(image: &str) {
    let outcome = run_script(image, POWER_OFF, &[], "quiet");
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    contains(&outcome.stderr, &["the guest powered off"]);
    is_quiet(&outcome);
}

fn reboots(image: &str) {
    let outcome = run_script(image, REBOOT, &[], "quiet");
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    contains(&outcome.stderr, &["the guest asked for a reset"]);
    is_quiet(&outcome);
}

fn panics(image: &str) {
    let outcome = run_script(image, PANIC, &[], "");
    assert_eq!(outcome.code(), 4, "{outcome:?}");
    contains(&outcome.stdout, &["Kernel panic - not syncing"]);
    contains(&outcome.stderr, &["error: the guest's kernel panicked"]);
}

/// For the test's name, what makes Linux reboot so, and what is said of it.
const WAYS: [(&str, (&str, &str)); 5] = [
    ("acpi", ("", "ACPI reset register")),
    (
        "the_keyboard_controller",
        ("reboot=k", "keyboard controller"),
    ),
    ("a_triple_fault", ("reboot=t", "triple fault")),
    ("port_0xcf9", ("reboot=p", "port 0xcf9")),
    ("the_reset_vector", ("reboot=b", "reset vector")),
];

fn reboots_by((option, how): (&'static str, &'static str)) {
    let outcome = run_script("vmlinux", REBOOT, &[], &format!("quiet {option}"));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    contains(&outcome.stderr, &[how]);
}

/// Whatever the command line makes of a panic, in a kernel that has not loaded pvpanic's driver.
const PANICS: [(&str, [&str; 2]); 6] = [
    ("with_reboot_k", ["--append", "reboot=k"]),
    ("with_reboot_t", ["--append", "reboot=t"]),
    ("with_reboot_p", ["--append", "reboot=p"]),
    ("with_reboot_w", ["--append", "reboot=w"]),
    ("with_panic_1", ["--append", "panic=1"]),
    ("with_another_command_line", OTHER),
];
/// A command line of the user's own has none of the words that ours has.
const OTHER: [&str; 2] = ["--cmdline", "console=ttyS0 panic=-1"];

fn panics_with(words: [&'static str; 2]) {
    let outcome = run_script("stock/vmlinuz", PANIC, &words, "");
    assert_eq!(outcome.code(), 4, "{outcome:?}");
    contains(&outcome.stdout, &["Kernel panic - not syncing"]);
}

fn pvpanic() {
    // The test kernel has the driver, which tells before the console does.
    let outcome = run_script("vmlinux", PANIC, &[], "panic=0");
    assert_eq!(outcome.code(), 4, "{outcome:?}");
}

fn other_command_line() {
    let outcome = run_script("stock/vmlinuz", REBOOT, &OTHER, "");
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    contains(&outcome.stderr, &["reset vector"]);
}

fn starts_again() {
    let folder = scratch();
    let disk = copy_of("root.ext4", &folder);
    let script =
        "n=$(cat /lives 2>/dev/null || echo 0); echo life=$n up=$(cut -d. -f1 /proc/uptime)
        echo $((n+1)) >/lives; sync; [ $n -ge 2 ] || { busybox reboot -f; sleep 60; }";
    let args = [&path("vmlinux"), "--disk", &disk, "--reboot", "--cpus", "2"];
    let outcome = run_vm(&args, &format!("quiet rw {}", exec(script)));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    contains(&outcome.stdout, &["life=0", "life=1", "life=2"]);
    contains(
        &outcome.stderr,
        &["starting again", "the guest powered off"],
    );
}
