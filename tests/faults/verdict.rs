//! What a machine on a failing host may do, and what not.
//!
//! | allowed | how it is seen |
//! |---|---|
//! | nothing has happened, for the call was made again | exit code 0, and the guest came to its end |
//! | the guest was told of an I/O error | the same, and a line of the guest's that ends in `io` |
//! | a message, and the machine goes on without what failed | exit code 0, and a line on stderr |
//! | a documented end | exit code 3 or 4, and an error on stderr |
//! | the standard library has given up | its own words, known to [`STD`] |
//!
//! Never: a signal, a panic, a hang, an acknowledged write that is lost, a file, lock or process that is left over, a
//! terminal that is not as it was.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use crate::machines::{Console, Format, Machine, Run};

/// What came of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// None.
    Unseen,
    /// The guest was told of an I/O error.
    GuestTold,
    /// The machine went on, and a message says without what.
    Message,
    /// The machine was not started, or ended.
    Ended,
    /// The standard library has given up.
    StandardLibrary,
}

/// The standard library's words where a thread, and the first one before `main`, finds no memory for its signal stack:
/// it cannot be told to do otherwise. Where the limit is the program's own (RLIMIT_AS), there is a look before a thread is
/// begun (`src/limits.rs`).
const STD: [&str; 2] = [
    "failed to allocate an alternative stack",
    "failed to set up alternative stack guard page",
];

const START: i32 = 3;
const GUEST_CRASH: i32 = 4;

/// What came of it, or what is wrong. `silenced`: standard error itself is what failed.
pub fn of(machine: &Machine, run: &Run, silenced: bool) -> Result<Effect, String> {
    let wrong = |what: String| {
        Err(format!(
            "{what}\n--- stdout\n{}\n--- stderr\n{}",
            run.stdout, run.stderr
        ))
    };
    if run.end.killed {
        return wrong("it hangs".into());
    }
    if STD.iter().any(|words| run.stderr.contains(words)) {
        return Ok(Effect::StandardLibrary);
    }
    if let Some(signal) = run.end.status.signal() {
        return wrong(format!("signal {signal} has ended it"));
    }
    for word in ["panicked at", "RUST_BACKTRACE", "defect"] {
        if run.stderr.contains(word) {
            return wrong(format!("'{word}' is no message"));
        }
    }
    if let Err(what) = nothing_left(machine, run, false) {
        return wrong(what);
    }
    let message = run.stderr.contains("error: ")
        || run.stderr.contains("warn: ")
        || run.stderr.contains("console: the");
    match run.end.status.code() {
        Some(0) => {}
        Some(START | GUEST_CRASH) if silenced || run.stderr.contains("error: ") => {
            return Ok(Effect::Ended);
        }
        code => {
            return wrong(format!(
                "exit code {code:?}, without an error that says why"
            ));
        }
    }
    // Nobody reads a pseudo-terminal that has just been made.
    let mut lines = run.stdout.lines();
    let whole = machine.console == Console::Pty || lines.any(|line| line.ends_with("end"));
    if !whole && !silenced && !message {
        return wrong("the guest did not come to its end, and nothing says why".into());
    }
    if run
        .stdout
        .lines()
        .any(|line| line.trim_end().ends_with(" io"))
    {
        return Ok(Effect::GuestTold);
    }
    if message {
        return Ok(Effect::Message);
    }
    Ok(Effect::Unseen)
}

/// Whether nothing is left over of a machine that has ended, and nothing that it has acknowledged is lost. A machine that
/// was killed cannot give its terminal back.
pub fn nothing_left(machine: &Machine, run: &Run, killed: bool) -> Result<(), String> {
    if run.end.left_behind > 0 {
        return Err(format!("{} processes are left over", run.end.left_behind));
    }
    if run.terminal_changed && !killed {
        return Err("the terminal is not as it was".into());
    }
    let left_over = run.folder.left_over();
    if !left_over.is_empty() {
        return Err(format!("files are left over: {left_over:?}"));
    }
    if let Some((_, image)) = run.folder.images.iter().find(|(_, image)| !lockable(image)) {
        return Err(format!("a lock is left over on {}", image.display()));
    }
    kept(machine, run)
}

/// Whether nobody has a lock on the image any more.
fn lockable(image: &Path) -> bool {
    let file = File::options().read(true).write(true).open(image).unwrap();
    // SAFETY: an all-zero flock is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    // SAFETY: reads the struct, which lives for the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) == 0 }
}

// ---------------------------------------------------------------------------- acknowledged writes

/// Word `word` of write `n` of disk `disk`; `tests/guests/faults.rs` knows the same.
fn pattern(disk: u64, n: u64, word: u64) -> u64 {
    0xfa17_0000_0000_0000 | disk << 32 | n << 16 | word
}

const SECTOR: usize = 512;

/// Whether all that was acknowledged is there: for the guest's second life, and in the images.
fn kept(machine: &Machine, run: &Run) -> Result<(), String> {
    let mut acknowledged = BTreeSet::new();
    for line in run.stdout.lines() {
        let mut words = line.trim_end().split(' ');
        let (Some(disk), Some(what), Some("ok")) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let number = |word: &str, letter| word.strip_prefix(letter)?.parse::<u64>().ok();
        let Some(disk) = number(disk, 'd') else {
            continue;
        };
        if let Some(n) = number(what, 'w') {
            acknowledged.insert((disk, n));
        } else if let Some(n) = number(what, 'l')
            && acknowledged.contains(&(disk, n))
        {
            return Err(format!("write {n} of disk {disk} is lost to the guest"));
        }
    }
    for (index, (format, path)) in (0u64..).zip(&run.folder.images) {
        let mut file = Image::open(path, *format);
        if *format == Format::Snapshot {
            let bytes = std::fs::read(path).unwrap();
            if bytes.iter().any(|byte| *byte != 0) {
                return Err("the image below a snapshot has been written to".into());
            }
            continue;
        }
        for (_, n) in acknowledged.iter().filter(|(disk, _)| *disk == index) {
            let bytes = file.sector(n * 16);
            let words = bytes
                .chunks_exact(8)
                .map(|w| u64::from_le_bytes(w.try_into().unwrap()));
            if !words.eq((0..SECTOR as u64 / 8).map(|word| pattern(index, *n, word))) {
                return Err(format!(
                    "write {n} of disk {index} ({machine:?}) is lost in its image"
                ));
            }
        }
        if *format == Format::Qcow2 && run.stdout.contains(" io") {
            checked(path)?;
        }
    }
    Ok(())
}

/// A reader of images that is nobody else's.
struct Image {
    file: File,
    format: Format,
}

impl Image {
    fn open(path: &Path, format: Format) -> Self {
        let file = File::open(path).unwrap();
        Image { file, format }
    }

    fn number(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn sector(&mut self, sector: u64) -> Vec<u8> {
        let mut at = sector * SECTOR as u64;
        let mut bytes = vec![0; SECTOR];
        if self.format == Format::Qcow2 {
            // QEMU, docs/interop/qcow2.rst: bits 9 to 55 of an entry are an offset. 64 KiB in a cluster; the disk is small
            // enough for one L2 table.
            const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
            let l2 = self.number(self.number(40)) & OFFSET;
            let cluster = match l2 {
                0 => 0,
                l2 => self.number(l2 + at / 65536 * 8) & OFFSET,
            };
            if cluster == 0 {
                return bytes;
            }
            at = cluster + at % 65536;
        }
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
}

/// QEMU finds nothing wrong with the image. Clusters that nobody uses are no damage (exit code 3).
fn checked(image: &Path) -> Result<(), String> {
    let check = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(image)
        .output();
    let check = check.expect("qemu-img (package qemu-utils) is there after `make setup`");
    match check.status.code() {
        Some(0 | 3) => Ok(()),
        _ => Err(format!("the image is damaged: {check:?}")),
    }
}
