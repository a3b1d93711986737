//! Attacks from inside: a guest that gives devices and machine what no driver ever would.
//!
//! ```text
//!   attack ─▶ another disk, and the random bytes, work ─▶ reset ─▶ the device that was attacked works ─▶ report
//!      ▲                                                                                                  │
//!      └──────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! One group of attacks (`catalogue.rs`) is run in one boot. What has come of each is written to the second disk, as
//! `ok NAME` or `WRONG NAME: why`: the serial port and the console may be what is attacked. In the end the guest
//! does nothing, so that the test can look what the VMM does then, until the test writes a word to that disk.
//!
//! Words of the command line: `group=`, `on=` (the page of the device), `queue=`, `ram=` (bytes below 3 GiB),
//! `seed=`, `rounds=`. All runs in ring 3.

mod balloon;
#[macro_use]
mod catalogue;
mod chains;
mod disk;
mod driver;
pub mod ends;
mod machine;
mod random;
mod registers;
mod rings;
mod setup;
mod several;
mod shape;

use crate::io::*;
use crate::words::{number, value};
use driver::*;

/// Where the second disk is.
const OTHER: u64 = 1;
/// Where the random bytes are.
const RANDOM: u64 = 2;
/// Text that was reported, and where the disk has it.
const REPORT: u64 = 0x70_0000;
const REPORT_SECTOR: u64 = 1024;
const WORD_SECTOR: u64 = 2040;
/// Requests of the second disk that are no attack's: its own memory ends here.
const HEADER: u64 = 0x7f_0000;

/// What an attack has come to: it may say what is wrong.
pub type Verdict = Result<(), &'static str>;

/// Where attacks take place.
pub struct Field {
    /// What is attacked.
    pub target: Device,
    /// Which of its queues.
    pub queue: usize,
    /// The second disk, which is to notice nothing.
    pub other: Device,
    /// Nor is this, where it is not the target.
    random: Option<Device>,
    /// Where RAM below 3 GiB ends.
    pub ram: u64,
    /// How often the slow and the random attacks are tried.
    pub rounds: u64,
    pub numbers: Numbers,
    round: u64,
    reported: u64,
}

/// A generator whose numbers are the same in each run (Marsaglia's xorshift64). The seed is not 0.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or(0)
    }
}

/// In ring 0: what an attack needs that ring 3 cannot do.
pub fn prepare(line: &[u8]) {
    // Those who wait for something to do keep the host's processors busy.
    if matches!(value(line, b"group="), b"several" | b"interrupts") {
        crate::entry::start_the_others(several::other);
    }
}

/// In ring 3.
pub fn run(line: &[u8]) {
    several::open();
    let devices = (Device::find(number(line, b"on=")), Device::find(OTHER));
    let (Some(target), Some(other)) = devices else {
        print_str("WRONG: no device\n");
        return;
    };
    let mut field = Field {
        target,
        queue: number(line, b"queue=") as usize,
        other,
        random: (target.base != Device::find(RANDOM).map_or(0, |d| d.base))
            .then(|| Device::find(RANDOM))
            .flatten(),
        ram: number(line, b"ram="),
        rounds: number(line, b"rounds="),
        numbers: Numbers(number(line, b"seed=").wrapping_mul(2) | 1),
        round: 0,
        reported: 0,
    };
    field.other.start(false);
    if let Some(random) = &mut field.random {
        random.start(false);
    }
    let group = value(line, b"group=");
    for (name, attacks) in GROUPS {
        if name.as_bytes() == group {
            for (name, attack) in *attacks {
                field.stage(name, *attack);
            }
        }
    }
    field.report(&["idle\n"]);
    field.until_told();
    print_str("the end\n");
}

/// An attack, by the promise that it tries.
type Attack = (&'static str, fn(&mut Field) -> Verdict);

macro_rules! table {
    ($($name:literal: $attack:path,)*) => { &[$(($name, $attack)),*] };
}

static GROUPS: &[(&str, &[Attack])] = &[
    ("chains", chains!(table)),
    ("addresses", addresses!(table)),
    ("rings", rings!(table)),
    ("set-up", set_up!(table)),
    ("registers", registers!(table)),
    ("several", several!(table)),
    ("random", random!(table)),
    ("disk", disk!(table)),
    ("balloon", balloon!(table)),
    ("ports", ports!(table)),
    ("interrupts", interrupts!(table)),
    ("memory", memory!(table)),
];

impl Field {
    /// One attack, and what it has left.
    fn stage(&mut self, name: &str, attack: fn(&mut Field) -> Verdict) {
        self.round += 1;
        let verdict = match self.fresh() {
            true => attack(self),
            false => Err("the device did not start"),
        };
        let bystanders = self.bystanders();
        let after = self.recovers();
        match verdict.and(bystanders).and(after) {
            Ok(()) => self.report(&["ok ", name, "\n"]),
            Err(why) => self.report(&["WRONG ", name, ": ", why, "\n"]),
        }
    }

    /// The target as its driver has it at the start.
    pub fn fresh(&mut self) -> bool {
        self.fresh_with(false)
    }

    pub fn fresh_with(&mut self, event_idx: bool) -> bool {
        self.target.start(event_idx) && self.wake_console()
    }

    /// What is typed goes to the console only once it has printed something.
    pub fn wake_console(&mut self) -> bool {
        self.target.kind != CONSOLE || self.queue != 0 || shape::request(&mut self.target, 1)
    }

    /// The other devices are at work, whatever has become of the target.
    pub fn bystanders(&mut self) -> Verdict {
        shape::behaves(&mut self.other, self.round).map_err(|_| "the other disk does not work")?;
        match &mut self.random {
            Some(random) => shape::behaves(random, self.round).map_err(|_| "random bytes do not come any more"),
            None => Ok(()),
        }
    }

    /// After a reset the target works, and what it says is right.
    fn recovers(&mut self) -> Verdict {
        if !self.target.start(false) {
            return Err("a reset does not mend it");
        }
        shape::behaves(&mut self.target, self.round)
    }

    /// Adds text to what the second disk has of it.
    fn report(&mut self, words: &[&str]) {
        let from = self.reported / 512 * 512;
        for word in words {
            for byte in word.bytes() {
                write_u8(REPORT + self.reported, byte);
                self.reported += 1;
            }
            if self.target.kind != CONSOLE {
                print_str(word);
            }
        }
        let len = (self.reported - from).next_multiple_of(512);
        if !self.report_disk(1, REPORT_SECTOR + from / 512, REPORT + from, len as u32) {
            print_str("WRONG: no report can be written\n");
        }
    }

    /// A request of the second disk that leaves the memory of its driver's requests alone.
    fn report_disk(&mut self, kind: u32, sector: u64, data: u64, len: u32) -> bool {
        write_u32(HEADER, kind);
        write_u32(HEADER + 4, 0);
        write_u64(HEADER + 8, sector);
        write_u8(HEADER + 16, 0xaa);
        let table = self.other.queues[0].desc;
        let write = if kind == 0 { WRITE } else { 0 };
        desc(table, HEADER, 16, NEXT, 1);
        desc(table + 16, data, len, NEXT | write, 2);
        desc(table + 32, HEADER + 16, 1, WRITE, 0);
        matches!(self.other.submit(0, 0), End::Used(_)) && read_u8(HEADER + 16) == 0
    }

    /// Does nothing until the test says so.
    fn until_told(&mut self) {
        loop {
            wait(100_000_000);
            if !self.report_disk(0, WORD_SECTOR, HEADER + 0x200, 512) || read_u8(HEADER + 0x200) != 0 {
                return;
            }
        }
    }
}

/// So many ticks of the TSC, of which there are some thousand million in a second.
pub fn wait(ticks: u64) {
    let begin = now();
    while now() - begin < ticks {
        core::hint::spin_loop();
    }
}

pub fn now() -> u64 {
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Good, or why not.
pub fn must(good: bool, why: &'static str) -> Verdict {
    if good { Ok(()) } else { Err(why) }
}
