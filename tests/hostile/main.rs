//! Attacks from inside, on the program itself: a bare-metal guest gives every device what no driver ever would.
//!
//! After each attack another disk and the source of random bytes work, and the device that was attacked works after
//! a reset, with what it says compared. After each group the VMM does nothing while there is nothing to do, and has
//! never had more memory than its bound. What the attacks are is in `tests/guests/attack/catalogue.rs`.
//!
//! `BANTAM_SOAK=1` makes those that run for a time run forty times as long, with a seed of the clock's. A seed that has
//! found something is given back by `BANTAM_SEED=`.

mod boot;
#[path = "../guests/attack/catalogue.rs"]
#[macro_use]
mod catalogue;
#[path = "../common/mod.rs"]
mod common;
mod ends;

use std::sync::Arc;

use boot::{Boot, Target};
use common::trials::trial;
use libtest_mimic::{Arguments, Trial};

macro_rules! names {
    ($($name:literal: $attack:path,)*) => { &[$($name),*] };
}

/// Attacks on rings and registers, which all devices have.
const OF_ALL: [(&str, &[&str]); 7] = [
    ("chains", chains!(names)),
    ("addresses", addresses!(names)),
    ("rings", rings!(names)),
    ("set-up", set_up!(names)),
    ("registers", registers!(names)),
    ("several", several!(names)),
    ("random", random!(names)),
];
const OF_DISKS: (&str, &[&str]) = ("disk", disk!(names));
const OF_BALLOONS: (&str, &[&str]) = ("balloon", balloon!(names));
/// Attacks on what is no virtio device.
const OF_THE_MACHINE: [(&str, &[&str]); 3] = [
    ("ports", ports!(names)),
    ("interrupts", interrupts!(names)),
    ("memory", memory!(names)),
];

const fn disk(name: &'static str, format: &'static str, words: &'static str) -> Target {
    Target {
        name,
        page: 0,
        queue: 0,
        disk: (format, words),
        typing: false,
    }
}

const fn device(name: &'static str, page: u32, queue: u32) -> Target {
    Target {
        name,
        page,
        queue,
        ..disk("", "raw", "")
    }
}

const DISKS: [Target; 8] = [
    disk("a raw disk", "raw", ""),
    disk("a qcow2 disk", "qcow2", ""),
    disk("a direct disk", "raw", ",cache=direct"),
    disk("a disk of threads", "raw", ",io=threads"),
    disk("a throw-away disk", "raw", ",snapshot"),
    disk("a disk of four queues", "raw", ",queues=4"),
    disk("a disk with an I/O thread", "raw", ",iothread"),
    disk(
        "a direct disk of four I/O threads",
        "raw",
        ",cache=direct,iothread,queues=4",
    ),
];
const RNG: Target = device("the source of random bytes", 2, 0);
const BALLOON: Target = device("the balloon", 3, 0);
const REPORTS: Target = device("the balloon's reports", 3, 2);
const CONSOLE: Target = device("the console's output", 4, 1);
const TYPING: Target = Target {
    typing: true,
    ..device("the console's input", 4, 0)
};
const MACHINE: Target = device("the machine", 0, 0);

fn main() {
    let missing = common::kvm().err();
    let mut boots = Vec::new();
    let mut more = |(group, names): (&'static str, &'static [&'static str]), target| {
        let (seed, rounds) = luck();
        boots.push((Arc::new(Boot::new(group, target, seed, rounds)), names));
    };
    let others = [RNG, BALLOON, REPORTS, CONSOLE, TYPING];
    for target in DISKS.into_iter().chain(others) {
        // Where descriptors of a balloon change at any moment, it may be told to give away the guest's own code.
        let apart = |group: &str| target.page == BALLOON.page && group == "several";
        let groups = OF_ALL.into_iter().filter(|(group, _)| !apart(group));
        groups.for_each(|group| more(group, target));
    }
    DISKS.into_iter().for_each(|target| more(OF_DISKS, target));
    more(OF_BALLOONS, BALLOON);
    OF_THE_MACHINE
        .into_iter()
        .for_each(|group| more(group, MACHINE));
    let mut trials = trials_of(&boots, missing.as_deref());
    trials.extend(ends::trials(missing.as_deref()));
    let mut arguments = Arguments::from_args();
    // A guest takes a processor for itself.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    libtest_mimic::run(&arguments, trials).exit()
}

/// The seed, and how long the attacks of chance are to be.
fn luck() -> (u64, u64) {
    let given = std::env::var("BANTAM_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let soak = std::env::var_os("BANTAM_SOAK").is_some();
    let clock = || {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        time.map_or(1, |time| time.as_nanos() as u64 % 1_000_000_007)
    };
    match soak {
        true => (given.unwrap_or_else(clock), 40),
        false => (given.unwrap_or(1), 1),
    }
}

/// A trial for each promise. Those of one boot wait for it, so the first of each boot come first: then no two
/// that run at a time wait for the same.
fn trials_of(boots: &[(Arc<Boot>, &'static [&'static str])], missing: Option<&str>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (boot, _) in boots {
        let name = format!(
            "{} leave the VMM quiet and small: {}",
            boot.group, boot.target.name
        );
        let boot = boot.clone();
        trials.push(trial(name, missing, move || boot.is_quiet()));
    }
    for (boot, names) in boots {
        for name in *names {
            let boot = boot.clone();
            let promise = format!("{name}: {}", boot.target.name);
            trials.push(trial(promise, missing, move || boot.holds(name)));
        }
    }
    trials
}
