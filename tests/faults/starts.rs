//! Many starts and stops, of machines of every kind, in every way that a machine can end: nothing is left over.
//!
//! What could be: a file beside the images, in the folder for temporary files or in the user's own ones; a process; a lock
//! on an image; a socket. Every machine begins on fresh images, and writes to them up to its end.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::Numbers;
use crate::inject::soak;
use crate::machines::{Format, MACHINES, Machine, Run, Visitor};
use crate::tracer::{Answer, Stops};
use crate::verdict;

const STARTS: u64 = 300;
const STARTS_OF_A_SOAK: u64 = 10_000;

/// How a machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    PowerOff,
    Reboots,
    Sigterm,
    TimeLimit,
    /// Ctrl-a x, where there is a terminal; else two signals.
    Quit,
    Kill,
}

const WAYS: [Way; 6] = [
    Way::PowerOff,
    Way::Reboots,
    Way::Sigterm,
    Way::TimeLimit,
    Way::Quit,
    Way::Kill,
];

/// So many starts by two at a time.
pub fn leave_nothing() {
    let starts = if soak() { STARTS_OF_A_SOAK } else { STARTS };
    let (next, begin) = (AtomicU64::new(0), Instant::now());
    let ways = Mutex::new(BTreeMap::<Way, u64>::new());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= starts {
                        return;
                    }
                    let machine = MACHINES[(number % MACHINES.len() as u64) as usize];
                    let way = WAYS[(number / MACHINES.len() as u64 % WAYS.len() as u64) as usize];
                    if let Err(what) = once(&machine, way, number) {
                        let text = format!("{}, {way:?}, {number}: {what}", machine.name);
                        wrong.lock().unwrap().push(text);
                    }
                    *ways.lock().unwrap().entry(way).or_default() += 1;
                }
            });
        }
    });
    println!(
        "{starts} starts in {:.1?}: {:?}",
        begin.elapsed(),
        ways.into_inner().unwrap()
    );
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} wrong\n{}",
        wrong.len(),
        wrong.join("\n========\n")
    );
}

fn once(machine: &Machine, way: Way, number: u64) -> Result<(), String> {
    let mut moments = Numbers(number + 1);
    let moment = Duration::from_micros(moments.below(20_000));
    let mut machine = *machine;
    machine.wish = match way {
        Way::PowerOff => "faults",
        Way::Reboots => "faults-twice",
        _ => "busy",
    };
    machine.limit = match way {
        Way::TimeLimit => "150ms",
        _ => machine.limit,
    };
    let visit = move |visitor: &mut Visitor| {
        std::thread::sleep(moment);
        match way {
            Way::PowerOff | Way::Reboots | Way::TimeLimit => {}
            Way::Sigterm => visitor.signal(libc::SIGTERM),
            Way::Quit if visitor.type_in(b"\x01x") => {}
            Way::Quit => {
                visitor.signal(libc::SIGTERM);
                visitor.signal(libc::SIGINT);
            }
            Way::Kill => visitor.signal(libc::SIGKILL),
        }
    };
    let run = machine.run(&Stops::At(Vec::new()), visit, |_| Answer::Made);
    let code = run.end.status.code();
    let expected = match way {
        // Two signals together: the guest may have been quicker.
        Way::Quit => matches!(code, Some(0 | 5)),
        Way::PowerOff | Way::Reboots | Way::Sigterm => code == Some(0),
        Way::TimeLimit => code == Some(6),
        Way::Kill => run.end.status.signal() == Some(libc::SIGKILL),
    };
    if !expected || run.end.killed || run.stdout.contains("WRONG") {
        return Err(format!("{:?}\n{}\n{}", run.end, run.stdout, run.stderr));
    }
    verdict::nothing_left(&machine, &run, way == Way::Kill)?;
    // Now and then another program takes its own locks.
    if number.is_multiple_of(10) {
        others_may_open(&run, way)?;
    }
    Ok(())
}

/// Opened for writing, which excludes everybody else. What a kill has left in a qcow2 image is put in order by us, and
/// until then read only by others (docs/disks.md).
fn others_may_open(run: &Run, way: Way) -> Result<(), String> {
    for (format, image) in &run.folder.images {
        let format = if *format == Format::Qcow2 {
            "qcow2"
        } else {
            "raw"
        };
        let what = match way {
            Way::Kill => "read 0 512",
            _ => "write 0 512",
        };
        let words = ["-f", format, "-c", what];
        let opened = Command::new("qemu-io").args(words).arg(image).output();
        let opened = opened.expect("qemu-io (package qemu-utils) is there after `make setup`");
        if !opened.status.success() {
            return Err(format!("QEMU cannot open {}: {opened:?}", image.display()));
        }
    }
    Ok(())
}
