//! Attacks that a machine may end by, and guests that never stop: the end comes, and is the one that it should be.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::boot::{self, peak_kib, threads_ticks};
use crate::common::bare::{command, ring_word};
use crate::common::trials::trial;
use crate::common::{self, Outcome, TempFile, pty, run_with};

/// What a machine of 64 MiB, of which all may be in use, has in memory at the most, in KiB.
const MEMORY_KIB: u64 = (64 + 32) << 10;

/// All of them; `missing` says why none can be tried.
pub fn trials(missing: Option<&str>) -> Vec<Trial> {
    let tests: [(&str, fn()); 21] = [
        ("HLT on all vCPUs costs the host nothing", halt),
        (
            "a storm of exits from all vCPUs leaves the machine to be ended",
            exits,
        ),
        ("an NMI to itself without a handler is a crash", || {
            crash("nmi", 1)
        }),
        ("NMIs to all others without a handler are a crash", || {
            crash("nmi-to-others", 3)
        }),
        ("a triple fault of another vCPU is a crash", || {
            crash("fault-of-another", 2)
        }),
        ("a jump to where nothing is is a crash", || {
            jump(0xc800_0000)
        }),
        ("a jump into a device's page is a crash", || {
            jump(0xd000_0000)
        }),
        ("a jump behind the end of RAM is a crash", || jump(64 << 20)),
        ("a jump into the interrupt controllers is a crash", || {
            jump(0xfee0_0000)
        }),
        ("MSRs of any number and value harm the guest alone", msrs),
        (
            "a guest that gives all of its RAM away harms itself alone",
            give_all,
        ),
        (
            "output without end to a reader who reads nothing costs no memory",
            || flood("output", &[], false),
        ),
        ("output without end is passed on without end", || {
            flood("output", &[], true)
        }),
        (
            "a console's chains without end to a reader who reads nothing cost no memory",
            || {
                flood("console", &["--console", "virtio"], false);
            },
        ),
        (
            "a console's chains without end are passed on without end",
            || {
                flood("console", &["--console", "virtio"], true);
            },
        ),
        ("resets of all vCPUs at once are one reset", resets),
        (
            "resets without end are lives without end, of bounded memory",
            || flood("resets", &["--reboot"], true),
        ),
        ("resets with a full ring in flight lose no disk", || {
            in_flight("")
        }),
        (
            "resets with a full ring in flight lose no qcow2 disk",
            || in_flight("qcow2"),
        ),
        (
            "resets with a full ring in flight lose no direct disk",
            || in_flight("direct"),
        ),
        (
            "a terminal that changes its size all the time harms no console",
            resize,
        ),
    ];
    let tests = tests.into_iter();
    tests
        .map(|(name, test)| trial(name, missing, test))
        .collect()
}

fn wish(what: &str) -> String {
    format!("end what={what}{}", ring_word())
}

fn end(what: &str, more: &[&str]) -> Outcome {
    let mut command = command(&wish(what), &["--memory", "64M"]);
    command.args(more);
    run_with(command, b"", Duration::from_secs(90))
}

/// The guest has come to what it was to do, and the machine has crashed by it, with a report.
fn crash(what: &str, cpus: u32) {
    let outcome = end(what, &["--cpus", &cpus.to_string()]);
    assert_eq!(outcome.code(), 4, "{outcome:?}");
    assert!(outcome.stdout.contains("at work\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("crashed: "), "{outcome:?}");
}

fn jump(to: u64) {
    crash(&format!("jump to={to}"), 1);
}

fn msrs() {
    // A guest that has spoiled its own state may crash, and a host that does not give it faults may end it.
    let outcome = end("msrs", &[]);
    assert!(outcome.stdout.contains("at work\n"), "{outcome:?}");
    assert!(matches!(outcome.code(), 0 | 4), "{outcome:?}");
}

fn give_all() {
    // The word by which a guest says that it wants a reset is in RAM as well: a reset, or a crash.
    let ram = 64 << 20;
    let outcome = end(
        &format!("give-all ram={ram}"),
        &["--reclaim", "--time-limit", "20s"],
    );
    assert!(outcome.stdout.contains("at work\n"), "{outcome:?}");
    assert!(matches!(outcome.code(), 0 | 4 | 6), "{outcome:?}");
}

fn at_work(what: &str, more: &[&str]) -> Child {
    let mut command = command(&wish(what), &["--memory", "64M"]);
    command.args(more);
    common::at_work(command, "at work\n")
}

/// Two signals, as the guest does not know the power button, end it.
fn is_ended(mut vmm: Child) {
    for _ in 0..2 {
        assert_eq!(vmm.try_wait().unwrap(), None, "it has ended by itself");
        common::signal(&vmm, libc::SIGTERM);
        std::thread::sleep(Duration::from_millis(300));
    }
    let status = common::wait(&mut vmm, Duration::from_secs(20)).expect("it ends");
    assert_eq!(status.code(), Some(5));
}

/// Whether `ticks`, in hundredths of a second, stand still for once in a few seconds.
fn stands_still(ticks: impl Fn() -> u64) -> bool {
    (0..20).any(|_| {
        let before = ticks();
        std::thread::sleep(Duration::from_millis(200));
        ticks() - before <= 6
    })
}

fn halt() {
    let vmm = at_work("halt", &["--cpus", "4"]);
    let pid = vmm.id();
    assert!(stands_still(|| boot::all_ticks(pid).unwrap()));
    is_ended(vmm);
}

fn exits() {
    let vmm = at_work("exits", &["--cpus", "4"]);
    let pid = vmm.id();
    // The vCPUs are busy, and nobody else.
    assert!(stands_still(|| threads_ticks(pid).unwrap()));
    assert!(peak_kib(pid).unwrap() <= MEMORY_KIB);
    is_ended(vmm);
}

/// A guest that goes on until its time is up. With `read`, somebody reads what it prints.
fn flood(what: &str, more: &[&str], read: bool) {
    let mut command = command(&wish(what), &["--memory", "64M", "--cpus", "2"]);
    // The last of several time limits counts.
    command.args(more).args(["--time-limit", "2s"]);
    let mut vmm = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = vmm.stdout.take().unwrap();
    let (keep, gone) = match read {
        true => (
            None,
            Some(std::thread::spawn(move || {
                std::io::copy(&mut stdout, &mut std::io::sink()).unwrap_or(0)
            })),
        ),
        false => (Some(stdout), None),
    };
    let (pid, begin) = (vmm.id(), Instant::now());
    let mut peak = 0;
    let status = loop {
        peak = peak_kib(pid).unwrap_or(peak);
        if let Some(status) = vmm.try_wait().unwrap() {
            break status;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(6), "ended by the time limit");
    assert!(peak > 0 && peak <= MEMORY_KIB, "{peak} KiB");
    if let Some(reader) = gone {
        assert!(reader.join().unwrap() > 0, "nothing came");
    }
    drop(keep);
}

fn resets() {
    let outcome = end("resets", &["--cpus", "3", "-v"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let said = outcome.stderr.matches("asked for a reset").count();
    assert_eq!(said, 1, "{outcome:?}");
}

fn in_flight(kind: &str) {
    let disk = TempFile::on_disk("disk");
    let format = if kind == "qcow2" { "qcow2" } else { "raw" };
    let made = common::run(&["image", "create", "-f", format, disk.str(), "1M"]);
    assert_eq!(made.code(), 0, "{made:?}");
    let cache = if kind == "direct" {
        ",cache=direct"
    } else {
        ""
    };
    let words = format!("{},format={format}{cache}", disk.str());
    flood(
        "reset-in-flight",
        &["--reboot", "--disk", &words, "--console", "serial"],
        false,
    );
    let info = common::run(&["image", "info", disk.str()]);
    assert_eq!(info.code(), 0, "{info:?}");
}

fn resize() {
    let attack = boot::on_a_terminal();
    let words: Vec<&str> = attack.words.iter().map(String::as_str).collect();
    let mut session = pty::Session::sized(&words, (80, 24));
    session.patience = Duration::from_secs(120);
    let mut size = 1;
    while !attack.is_idle() {
        assert_eq!(session.child.try_wait().unwrap(), None, "it runs");
        size = size % 500 + 1;
        session.resize((size, 501 - size));
        session.catch_up();
    }
    attack.tell();
    assert_eq!(session.finish().code(), Some(0), "{}", session.seen());
    attack.holds_all();
}
