//! A guest for a host that fails under it: uses every device that it has, and says what it was told.
//!
//! A line `d1 w3 ok` means that write 3 of disk 1 has been written and flushed, and that the device has
//! acknowledged both: from then on it may not be lost, whatever happens to the VMM. `d1 w3 io` means that the device
//! has said that it failed. What write `n` of a disk is, and where it goes, is known to `tests/faults` as well.
//!
//! With a disk that has kept something it resets the machine once, and then reads back what it has written.

use crate::block::{NEXT, WRITE, desc};
use crate::io::*;
use crate::pause::{is_button_pressed, watch_the_button};

/// Where the virtio devices are, and how many are looked for.
const FIRST: u64 = 0xd000_0000;
const PAGES: u64 = 10;
/// Each device has its rings, and what its requests consist of, in 64 KiB of its own.
const RINGS: u64 = 0x100_0000;
const ROOM: u64 = 0x1_0000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADER: u64 = 0x3000;
const STATUS: u64 = 0x3100;
const DATA: u64 = 0x4000;
/// What is in each page, 4 bytes each.
const KINDS: u64 = 0xf0_0000;

/// Bytes in a write.
const SECTOR: u64 = 512;
/// Writes of the first life and of the second.
const WRITES: (u64, u64) = (3, 2);

const BLOCK: u32 = 2;
const ENTROPY: u32 = 4;
const EVENT_IDX: u32 = 1 << 29;

/// A device of one queue of eight.
struct Device {
    base: u64,
    room: u64,
    avail: u16,
    broken: bool,
}

impl Device {
    /// The device in page `page`, if its type is `kind`.
    fn find(page: u64, kind: u32) -> Option<Device> {
        let base = FIRST + page * 0x1000;
        if read_u32(base) != 0x7472_6976 || read_u32(base + 8) != kind {
            return None;
        }
        let device = Device { base, room: RINGS + page * ROOM, avail: 0, broken: false };
        let (set, room) = (|at: u64, value: u32| write_u32(base + at, value), device.room as u32);
        set(0x070, 0);
        while read_u32(base + 0x070) != 0 {}
        set(0x070, 3);
        set(0x014, 0);
        let offered = read_u32(base + 0x010);
        set(0x024, 0);
        set(0x020, offered & !EVENT_IDX);
        set(0x024, 1);
        set(0x020, 1);
        set(0x070, 11);
        set(0x030, 0);
        set(0x038, 8);
        set(0x080, room);
        set(0x090, room + AVAIL as u32);
        set(0x0a0, room + USED as u32);
        set(0x044, 1);
        set(0x070, 15);
        Some(device)
    }

    /// The device in page `page`, which has been found before: how far it is stands in its ring.
    fn found(page: u64) -> Device {
        let room = RINGS + page * ROOM;
        Device { base: FIRST + page * 0x1000, room, avail: read_u16(room + AVAIL + 2), broken: false }
    }

    /// Offers the chain at descriptor 0, and waits until it is used. False when the device has broken.
    fn submit(&mut self) -> bool {
        let slot = u64::from(self.avail) % 8;
        write_word(self.room + AVAIL + 4 + slot * 2, 0);
        self.avail = self.avail.wrapping_add(1);
        write_word(self.room + AVAIL + 2, self.avail);
        write_u32(self.base + 0x050, 0);
        while read_u16(self.room + USED + 2) != self.avail {
            self.broken |= read_u32(self.base + 0x070) & 64 != 0;
            if self.broken {
                return false;
            }
        }
        true
    }

    /// A request of a disk; whether the device says that it is done.
    fn request(&mut self, kind: u32, sector: u64) -> bool {
        write_u32(self.room + HEADER, kind);
        write_u64(self.room + HEADER + 8, sector);
        write_u8(self.room + STATUS, 0xaa);
        let (header, status) = (self.room + HEADER, self.room + STATUS);
        desc(self.room, header, 16, NEXT, 1);
        let mut last = self.room + 16;
        // A flush has no data.
        if kind != 4 {
            let write = if kind == 1 { 0 } else { WRITE };
            desc(last, self.room + DATA, SECTOR as u32, NEXT | write, 2);
            last += 16;
        }
        desc(last, status, 1, WRITE, 0);
        self.submit() && read_u8(status) == 0
    }
}

/// Word `word` of write `n` of disk `disk`.
fn pattern(disk: u64, n: u64, word: u64) -> u64 {
    0xfa17_0000_0000_0000 | disk << 32 | n << 16 | word
}

/// Where write `n` goes: every other page, so that qcow2 and the snapshot need a new piece for it.
fn place(n: u64) -> u64 {
    n * 16
}

fn say(disk: u64, what: u8, n: u64, good: bool) {
    put(b'd');
    print_dec(disk);
    put(b' ');
    put(what);
    print_dec(n);
    print_str(if good { " ok\n" } else { " io\n" });
}

/// Puts write `n` into the device's buffer.
fn fill(device: &Device, disk: u64, n: u64) {
    let mut word = 0;
    while word < SECTOR / 8 {
        write_u64(device.room + DATA + word * 8, pattern(disk, n, word));
        word += 1;
    }
}

/// Writes and flushes; whether the device has acknowledged both.
fn write(device: &mut Device, disk: u64, n: u64) -> bool {
    fill(device, disk, n);
    let good = device.request(1, place(n)) && device.request(4, 0);
    say(disk, b'w', n, good);
    good
}

/// Reads; whether that is write `n`. `None` is an I/O error.
fn read(device: &mut Device, disk: u64, n: u64) -> Option<bool> {
    if !device.request(0, place(n)) {
        return None;
    }
    let mut word = 0;
    while word < SECTOR / 8 {
        if read_u64(device.room + DATA + word * 8) != pattern(disk, n, word) {
            return Some(false);
        }
        word += 1;
    }
    Some(true)
}

/// All that is needed of a disk in one life; whether something has been kept by it.
fn use_disk(device: &mut Device, disk: u64, lives: u64) -> bool {
    let second = lives > 1 && read(device, disk, 1) == Some(true);
    if second {
        // What the first life has said is compared with this by who listens.
        let mut n = 1;
        while n <= WRITES.0 {
            match read(device, disk, n) {
                Some(same) => say(disk, if same { b'r' } else { b'l' }, n, true),
                None => say(disk, b'r', n, false),
            }
            n += 1;
        }
    }
    let (first, count) = if second { (WRITES.0 + 1, WRITES.1) } else { (1, WRITES.0) };
    let (mut kept, mut n) = (false, first);
    while n < first + count && !device.broken {
        kept |= write(device, disk, n) && read(device, disk, n) == Some(true);
        n += 1;
    }
    kept && !second
}

/// See the [module](self). `lives` is 2 where the machine may be reset.
pub fn run(lives: u64) {
    print_str("at work\n");
    let (mut disk, mut page, mut kept) = (0, 0, false);
    while page < PAGES {
        if let Some(mut device) = Device::find(page, BLOCK) {
            kept |= use_disk(&mut device, disk, lives);
            disk += 1;
        }
        if let Some(mut device) = Device::find(page, ENTROPY) {
            desc(device.room, device.room + DATA, 64, WRITE, 0);
            print_str(if device.submit() { "random\n" } else { "no random\n" });
        }
        page += 1;
    }
    // Keys, and words that the terminal is slow to take.
    let mut wait = 0;
    while wait < 20 {
        if inb(0x3fd) & 1 != 0 {
            put(inb(0x3f8));
        }
        wait += 1;
    }
    if lives > 1 && kept {
        print_str("again\n");
        outb(0x602, 1);
    }
    print_str("the end\n");
}

/// One write, now and then a flush, and a look at what is there then; whether all of it is right.
fn round(device: &mut Device, disk: u64, n: u64) -> bool {
    fill(device, disk, n);
    let written = device.request(1, place(n)) && (n % 4 != 0 || device.request(4, 0));
    written && read(device, disk, n) == Some(true)
}

/// Uses every device, over and over, until the power button is pressed or 'q' is typed.
pub fn busy() {
    watch_the_button();
    let (mut page, mut count, mut wrong) = (0, 0u64, 0u64);
    while page < PAGES {
        let disk = Device::find(page, BLOCK).map(|_| BLOCK);
        let kind = disk.or_else(|| Device::find(page, ENTROPY).map(|_| ENTROPY));
        write_u32(KINDS + page * 4, kind.unwrap_or(0));
        page += 1;
    }
    print_str("at work\n");
    let mut n = 0;
    while !is_button_pressed() {
        if inb(0x3fd) & 1 != 0 && inb(0x3f8) == b'q' {
            break;
        }
        n = n % 60 + 1;
        let mut disk = 0;
        page = 0;
        while page < PAGES {
            let mut device = Device::found(page);
            match read_u32(KINDS + page * 4) {
                BLOCK => {
                    wrong += u64::from(!round(&mut device, disk, n));
                    disk += 1;
                }
                ENTROPY => {
                    desc(device.room, device.room + DATA, 64, WRITE, 0);
                    device.submit();
                }
                _ => {}
            }
            page += 1;
        }
        count += 1;
        if count % 64 == 0 {
            print_str("rounds ");
            print_dec(count);
            print_str("\n");
        }
    }
    print_str(if wrong == 0 { "ok all of it\n" } else { "WRONG\n" });
}

/// Writes and flushes, and touches a megabyte more of its memory each time, until it is stopped.
pub fn hog() {
    const FROM: u64 = 0x200_0000;
    let Some(mut device) = Device::find(0, BLOCK) else {
        return;
    };
    print_str("at work\n");
    let mut n = 0;
    loop {
        write(&mut device, 0, n % 60 + 1);
        n += 1;
        let mut page = 0;
        while page < 256 {
            write_u64(FROM + (n << 20 & 0x3fff_ffff) + page * 4096, n);
            page += 1;
        }
    }
}

/// A flush that fails is tried again, and again in the machine's next life: none succeeds.
pub fn flush_again() {
    let Some(mut device) = Device::find(0, BLOCK) else {
        return;
    };
    if read(&mut device, 0, 1) == Some(true) {
        crate::check("nor in the next life", !device.request(4, 0));
        return;
    }
    fill(&device, 0, 1);
    crate::check("a write is done", device.request(1, place(1)));
    crate::check("its flush fails", !device.request(4, 0));
    crate::check("and fails when it is tried again", !device.request(4, 0));
    crate::check("reads go on", read(&mut device, 0, 1) == Some(true));
    outb(0x602, 1);
}
