//! A machine that is busy for long stays as it is: it takes no more memory, descriptors and threads at the end than at
//! the beginning.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{self, TempFile, bare, resident_kib, run};

/// Without `make soak`.
const SHORT: Duration = Duration::from_secs(12);
/// Of `make soak`, unless SOAK_MINUTES says otherwise.
const MINUTES: u64 = 60;
/// The heap may be cut into pieces in another way; anything that grows with what is done, grows by more.
const ROOM_KIB: u64 = 1024;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Sample {
    resident_kib: u64,
    descriptors: usize,
    threads: usize,
}

impl Sample {
    fn of(vmm: &Child) -> Self {
        let entries = |what: &str| {
            fs::read_dir(format!("/proc/{}/{what}", vmm.id()))
                .unwrap()
                .count()
        };
        Sample {
            resident_kib: resident_kib(vmm.id()),
            descriptors: entries("fd"),
            threads: entries("task"),
        }
    }

    /// The most of each.
    fn most(samples: &[Sample]) -> Self {
        let most = |of: fn(&Sample) -> usize| samples.iter().map(of).max().unwrap();
        Sample {
            resident_kib: samples
                .iter()
                .map(|sample| sample.resident_kib)
                .max()
                .unwrap(),
            descriptors: most(|sample| sample.descriptors),
            threads: most(|sample| sample.threads),
        }
    }
}

/// Starts a guest that says when it is at work; what it prints after that is read by a thread and thrown away, but for
/// what says that something is wrong.
pub fn at_work(mut command: Command) -> (Child, ChildStdin) {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut vmm = command.spawn().unwrap();
    let keys = vmm.stdin.take().unwrap();
    let stdout = vmm.stdout.as_mut().unwrap();
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with("at work\n") {
        stdout
            .read_exact(&mut byte)
            .unwrap_or_else(|_| panic!("it says only {text:?}"));
        text.push(byte[0] as char);
    }
    (vmm, keys)
}

pub fn stays_as_it_is() {
    let minutes = std::env::var("SOAK_MINUTES").map(|text| text.parse().unwrap());
    let time = match std::env::var_os("BANTAM_SOAK") {
        Some(_) => Duration::from_secs(60 * minutes.unwrap_or(MINUTES)),
        None => SHORT,
    };
    let images = [(); 5].map(|()| TempFile::on_disk("disk"));
    let formats = ["raw", "raw", "raw", "qcow2", "raw"];
    let options = ["", ",io=threads", ",cache=direct,iothread", "", ",snapshot"];
    let mut words = vec![
        "--rng".into(),
        "--reclaim".into(),
        "--cpus".into(),
        "2".into(),
    ];
    for ((image, format), options) in images.iter().zip(formats).zip(options) {
        let made = run(&["image", "create", "-f", format, image.str(), "1M"]);
        assert_eq!(made.code(), 0, "{made:?}");
        words.push("--disk".into());
        words.push(format!("{},format={format}{options}", image.str()));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = bare::command("busy", &words);
    // Said twice, the last one counts.
    command.args(["--time-limit", "48h"]);
    let (mut vmm, mut keys) = at_work(command);
    let mut stdout = vmm.stdout.take().unwrap();
    let rounds = std::thread::spawn(move || {
        let mut text = String::new();
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut chunk) {
            text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            if text.len() > 1 << 16 {
                text.drain(..1 << 15);
            }
        }
        text
    });
    // All of the guest's memory that it uses is touched by now, and so is each thread's stack.
    std::thread::sleep(time / 12);
    let (begin, mut samples) = (Instant::now(), Vec::new());
    while begin.elapsed() < time {
        samples.push(Sample::of(&vmm));
        assert_eq!(vmm.try_wait().unwrap(), None, "it has ended by itself");
        for signal in [libc::SIGUSR1, libc::SIGUSR2] {
            common::signal(&vmm, signal);
            std::thread::sleep(Duration::from_millis(20));
        }
        keys.write_all(b"typed").unwrap();
        std::thread::sleep(time / 240);
    }
    keys.write_all(b"q").unwrap();
    let outcome = common::end_of(vmm, "busy");
    let said = rounds.join().unwrap();
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(said.contains("ok all of it"), "{said}");
    let quarter = samples.len() / 4;
    assert!(quarter > 5, "{samples:?}");
    let first = Sample::most(&samples[..quarter]);
    let last = Sample::most(&samples[samples.len() - quarter..]);
    let round = said
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("rounds "))
        .unwrap_or("0");
    println!("{round} rounds of all devices in {time:?}: at first {first:?}, at last {last:?}");
    assert!(
        last.resident_kib <= first.resident_kib + ROOM_KIB,
        "{samples:?}"
    );
    assert!(last.descriptors <= first.descriptors, "{samples:?}");
    assert!(last.threads <= first.threads, "{samples:?}");
}
