//! How machines end: power off, reboot and panic of kernels that others have built, each with its
//! exit code. They have no driver for the pvpanic device in the initramfs, and most are built for
//! PCs with EFI.

mod common;

use common::linux::{contains, copy_of, exec, missing, path, run_vm, scratch};
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
            trials.push(common::trials::trial(name, ignored, move || test(image)));
        }
    }
    let tests: [(&str, fn()); 5] = [
        ("reboot_by_every_way_is_a_success", every_way),
        ("a_panic_is_never_a_success", every_panic),
        ("a_panic_is_told_by_pvpanic", pvpanic),
        ("another_command_line_ends_as_well", other_command_line),
        ("with_reboot_it_starts_again_on_the_same_disk", starts_again),
    ];
    for (name, test) in tests {
        trials.push(common::trials::trial(name, ignored, test));
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

fn every_way() {
    for (option, how) in [
        ("", "ACPI reset register"),
        ("reboot=k", "keyboard controller"),
        ("reboot=t", "triple fault"),
        ("reboot=p", "port 0xcf9"),
        ("reboot=b", "reset vector"),
    ] {
        let outcome = run_script("vmlinux", REBOOT, &[], &format!("quiet {option}"));
        assert_eq!(outcome.code(), 0, "{option}: {outcome:?}");
        contains(&outcome.stderr, &[how]);
    }
}

/// Whatever the command line makes of a panic, in a kernel that has not loaded pvpanic's driver.
fn every_panic() {
    for option in ["reboot=k", "reboot=t", "reboot=p", "reboot=w", "panic=1"] {
        let outcome = run_script("stock/vmlinuz", PANIC, &[], option);
        assert_eq!(outcome.code(), 4, "{option}: {outcome:?}");
    }
}

fn pvpanic() {
    // The test kernel has the driver, which tells before the console does.
    let outcome = run_script("vmlinux", PANIC, &[], "panic=0");
    assert_eq!(outcome.code(), 4, "{outcome:?}");
}

/// A command line of the user's own has none of the words that ours has.
fn other_command_line() {
    let own = ["--cmdline", "console=ttyS0 panic=-1"];
    let outcome = run_script("stock/vmlinuz", REBOOT, &own, "");
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    contains(&outcome.stderr, &["reset vector"]);
    let outcome = run_script("stock/vmlinuz", PANIC, &own, "");
    assert_eq!(outcome.code(), 4, "{outcome:?}");
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
