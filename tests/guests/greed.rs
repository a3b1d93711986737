//! A guest that asks every virtio device for as much at a time as can be written down: all queues full, of the
//! longest requests, at odd addresses, or of as many descriptors as there may be. What it gets for that does
//! not matter; the test looks at the memory of the VMM meanwhile.

use crate::check;
use crate::io::*;

const PAGES: u64 = 0xd000_0000;
const HEADER: u64 = 0x60_0000;
const STATUS: u64 = 0x60_0100;
const RANGE: u64 = 0x60_0200;
/// Tables of a few long pieces, of many tiny ones, of one odd piece, and of a range to discard.
const LONG: u64 = 0x61_0000;
const TINY: u64 = 0x62_0000;
const ONE: u64 = 0x63_0000;
const RANGED: u64 = 0x63_1000;
/// For devices that take any buffers.
const READABLE: u64 = 0x64_0000;
const WRITABLE: u64 = 0x65_0000;
/// Of one queue: table, avail ring, used ring, and a page for how far we are.
const QUEUES: u64 = 0x80_0000;
const QUEUE_BYTES: u64 = 0x4000;
/// An odd address with 4 MiB behind it.
const DATA: u64 = 0x200_0001;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const MAX_QUEUES: u64 = 256;

/// A queue that its driver has set up: its device's page, its number, and its memory.
#[derive(Clone, Copy)]
struct Queue {
    base: u64,
    number: u32,
    at: u64,
    size: u64,
}

static mut FOUND: [Queue; MAX_QUEUES as usize] = [Queue { base: 0, number: 0, at: 0, size: 0 }; MAX_QUEUES as usize];

fn found(index: u64) -> Queue {
    unsafe { (&raw const FOUND).cast::<Queue>().add(index as usize).read_volatile() }
}

fn desc(at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    write_u64(at, addr);
    write_u32(at + 8, len);
    write_word(at + 12, flags);
    write_word(at + 14, next);
}

/// Header, `pieces` of `bytes` each, status.
fn table(at: u64, pieces: u16, bytes: u32, write: bool) {
    desc(at, HEADER, 16, NEXT, 1);
    let mut i = 1;
    while i <= pieces {
        desc(at + 16 * i as u64, DATA, bytes, NEXT | if write { WRITE } else { 0 }, i + 1);
        i += 1;
    }
    desc(at + 16 * i as u64, STATUS, 1, WRITE, 0);
}

fn header(kind: u32, sector: u64) {
    write_u32(HEADER, kind);
    write_u32(HEADER + 4, 0);
    write_u64(HEADER + 8, sector);
}

/// All queues of the devices for which `wanted` holds; how many.
fn start(wanted: impl Fn(u32) -> bool) -> u64 {
    let mut count = 0;
    let mut page = 0;
    while page < 32 {
        let base = PAGES + page * 0x1000;
        page += 1;
        let reg = |offset: u64| read_u32(base + offset);
        let set = |offset: u64, value: u32| write_u32(base + offset, value);
        if reg(0) != 0x7472_6976 || !wanted(reg(8)) {
            continue;
        }
        set(0x070, 0);
        while reg(0x070) != 0 {}
        set(0x070, 1);
        set(0x070, 3);
        set(0x014, 0);
        let offered = reg(0x010);
        set(0x024, 0);
        // All but EVENT_IDX.
        set(0x020, offered & !(1 << 29));
        set(0x024, 1);
        set(0x020, 1);
        set(0x070, 11);
        let mut number = 0;
        loop {
            set(0x030, number);
            let size = u64::from(reg(0x034));
            if size == 0 || count == MAX_QUEUES {
                break;
            }
            let at = QUEUES + count * QUEUE_BYTES;
            let mut clear = at;
            while clear < at + QUEUE_BYTES {
                write_u64(clear, 0);
                clear += 8;
            }
            // VIRTQ_AVAIL_F_NO_INTERRUPT.
            write_word(at + 0x1000, 1);
            set(0x038, size as u32);
            set(0x080, at as u32);
            set(0x090, at as u32 + 0x1000);
            set(0x0a0, at as u32 + 0x2000);
            set(0x044, 1);
            let queue = Queue { base, number, at, size };
            unsafe { (&raw mut FOUND).cast::<Queue>().add(count as usize).write_volatile(queue) };
            count += 1;
            number += 1;
        }
        set(0x070, 15);
    }
    count
}

impl Queue {
    fn avail(&self) -> u16 {
        read_u16(self.at + 0x3000)
    }

    /// Offers the same table `count` times at once.
    fn offer(&self, table: u64, entries: u64, count: u64) {
        let mut avail = self.avail();
        let mut i = 0;
        while i < count.min(self.size) {
            desc(self.at + 16 * i, table, entries as u32 * 16, INDIRECT, 0);
            write_word(self.at + 0x1004 + (u64::from(avail) & (self.size - 1)) * 2, i as u16);
            avail = avail.wrapping_add(1);
            i += 1;
        }
        write_word(self.at + 0x3000, avail);
        write_word(self.at + 0x1002, avail);
        write_u32(self.base + 0x050, self.number);
    }

    /// Waits until all is answered; false when the device needs a reset.
    fn settled(&self) -> bool {
        while read_u16(self.at + 0x2002) != self.avail() {
            if read_u32(self.base + 0x070) & 64 != 0 {
                return false;
            }
        }
        true
    }
}

/// So many requests on each of the first `queues` queues, twice.
fn storm(name: &str, queues: u64, table: u64, entries: u64, count: u64) {
    let mut good = true;
    let mut round = 0;
    while round < 2 {
        write_u8(STATUS, 0xaa);
        let mut i = 0;
        while i < queues {
            found(i).offer(table, entries, count);
            i += 1;
        }
        i = 0;
        while i < queues {
            good &= found(i).settled();
            i += 1;
        }
        good &= read_u8(STATUS) == 0;
        round += 1;
    }
    check(name, good);
}

/// The disks.
pub fn disks() {
    let queues = start(|kind| kind == 2);
    check("there are queues", queues > 0);
    let sectors = read_u64(found(0).base + 0x100);
    // A request of 32 MiB is in eight pieces.
    header(0, 0);
    table(LONG, 8, 4 << 20, true);
    storm("long reads", queues, LONG, 10, 4);
    table(TINY, 1016, 512, true);
    storm("reads in tiny pieces", queues, TINY, 1018, 64);
    table(ONE, 1, 4096, true);
    storm("short reads", queues, ONE, 3, 256);
    header(1, 0);
    table(LONG, 8, 4 << 20, false);
    storm("long writes", queues, LONG, 10, 3);
    table(TINY, 1016, 512, false);
    storm("writes in tiny pieces", queues, TINY, 1018, 32);
    // Here and there, as far as the disk reaches: each where another table of an image says where it is.
    let (mut place, mut at) = (0, 0);
    let mut good = true;
    table(ONE, 1, 4096, false);
    while place < 300 && (place + 1) << 20 < sectors {
        header(1, place << 20 | 8);
        found(at).offer(ONE, 3, 1);
        good &= found(at).settled();
        at = if at + 1 < queues { at + 1 } else { 0 };
        place += 1;
    }
    check("writes here and there", good);
    // DISCARD of 2 GiB and WRITE_ZEROES of 32 MiB.
    desc(RANGED, HEADER, 16, NEXT, 1);
    desc(RANGED + 16, RANGE, 16, NEXT, 2);
    desc(RANGED + 32, STATUS, 1, WRITE, 0);
    write_u64(RANGE, 0);
    write_u32(RANGE + 8, 1 << 16);
    write_u32(RANGE + 12, 0);
    header(13, 0);
    storm("zeros", queues, RANGED, 3, 4);
    write_u32(RANGE + 8, 1 << 22);
    header(11, 0);
    storm("discards", queues, RANGED, 3, 16);
}

/// All other devices: every queue gets chains of everything that it may read, or write, many times over.
pub fn small() {
    let queues = start(|kind| kind != 2 && kind != 0);
    check("there are queues", queues > 0);
    let mut i = 0;
    while i < 1024u16 {
        let next = if i < 1023 { NEXT } else { 0 };
        desc(READABLE + 16 * i as u64, DATA, 1 << 20, next, i + 1);
        desc(WRITABLE + 16 * i as u64, DATA, 1 << 20, next | WRITE, i + 1);
        i += 1;
    }
    let mut round = 0;
    while round < 3 {
        let mut i = 0;
        while i < queues {
            let queue = found(i);
            let table = if round % 2 == 0 { WRITABLE } else { READABLE };
            queue.offer(table, 1024, 256);
            i += 1;
        }
        // A console that nobody types to keeps its buffers: so only a moment.
        let mut wait = 0;
        while wait < 100_000 {
            wait += 1;
            unsafe { core::arch::asm!("pause") }
        }
        round += 1;
        start(|kind| kind != 2 && kind != 0);
    }
    check("the rest of the devices", true);
}

/// Fills a MiB with one word many times over, which is nowhere else, and waits.
pub fn secret() -> ! {
    let mut at = 0x100_0000;
    while at < 0x110_0000 {
        write_u64(at, 0x7465_7263_6573_2061);
        at += 8;
    }
    print_str("at work\n");
    loop {
        unsafe { core::arch::asm!("hlt") }
    }
}
