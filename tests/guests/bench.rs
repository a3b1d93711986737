//! What `make bench` measures from inside: the cost of an exit, and of a disk request.
//!
//! Runs in ring 3 and ends in a loop: the harness ends the machine. Words of the command line:
//!
//! | word | meaning |
//! |---|---|
//! | `do=exits`, `do=disk` | what to measure |
//! | `ring=iret` | how to get to ring 3 (else SYSEXIT) |
//! | `pio=PORT` or `mmio=ADDRESS` | what to read, `count=N` times |
//! | `base=`, `step=`, `places=` | where virtio-mmio devices may be |
//! | `write`, `bytes=`, `depth=`, `count=`, `sequential` | the requests |

use core::arch::x86_64::_rdtsc;

use crate::io::*;
use crate::words::number;

const QUEUE: u64 = 0x60_0000;
const AVAIL: u64 = QUEUE + 0x4000;
const USED: u64 = QUEUE + 0x6000;
const HEADERS: u64 = QUEUE + 0x8000;
const STATUSES: u64 = QUEUE + 0x9000;
const SUBMITTED: u64 = QUEUE + 0xa000;
const HISTOGRAM: u64 = QUEUE + 0x1_0000;
const DATA: u64 = 0x100_0000;

const QUEUE_SIZE: u64 = 128;
/// Buckets of the histogram: 32 to each power of two of TSC ticks.
const BUCKETS: u64 = 64 * 32;

fn has(line: &[u8], word: &[u8]) -> bool {
    line.split(|b| *b == b' ').any(|w| w == word)
}

fn forever() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Prints "(", exits `count=` times, prints ")": the harness takes the time between.
pub fn exits(line: &[u8]) -> ! {
    let (pio, mmio, count) = (number(line, b"pio="), number(line, b"mmio="), number(line, b"count="));
    put(b'(');
    let mut i = 0;
    if mmio != 0 {
        while i < count {
            read_u32(mmio);
            i += 1;
        }
    } else {
        while i < count {
            inb(pio as u16);
            i += 1;
        }
    }
    put(b')');
    forever()
}

/// TSC ticks, some 50 to 100 ms: threads are put in their places meanwhile.
const SETTLING: u64 = 200_000_000;

struct Disk {
    base: u64,
}

impl Disk {
    fn reg(&self, offset: u64) -> u32 {
        read_u32(self.base + offset)
    }

    fn set(&self, offset: u64, value: u32) {
        write_u32(self.base + offset, value);
    }

    /// The first virtio-blk device among the places; started, with one queue.
    fn find(line: &[u8]) -> Option<Disk> {
        let (base, step, places) = (number(line, b"base="), number(line, b"step="), number(line, b"places="));
        let mut i = 0;
        while i < places {
            let disk = Disk { base: base + i * step };
            if disk.reg(0) == 0x7472_6976 && disk.reg(8) == 2 {
                return disk.start().then_some(disk);
            }
            i += 1;
        }
        None
    }

    fn start(&self) -> bool {
        self.set(0x070, 0);
        while self.reg(0x070) != 0 {}
        self.set(0x070, 1);
        self.set(0x070, 3);
        // VIRTIO_F_VERSION_1, and VIRTIO_BLK_F_FLUSH where there is one: without it, a device has
        // to flush each write (virtio 1.2, 5.2.6.2).
        self.set(0x014, 0);
        let flush = self.reg(0x010) & 1 << 9;
        self.set(0x024, 0);
        self.set(0x020, flush);
        self.set(0x024, 1);
        self.set(0x020, 1);
        self.set(0x070, 11);
        self.set(0x030, 0);
        if self.reg(0x070) & 8 == 0 || u64::from(self.reg(0x034)) < QUEUE_SIZE {
            return false;
        }
        self.set(0x038, QUEUE_SIZE as u32);
        self.set(0x080, QUEUE as u32);
        self.set(0x084, 0);
        self.set(0x090, AVAIL as u32);
        self.set(0x094, 0);
        self.set(0x0a0, USED as u32);
        self.set(0x0a4, 0);
        self.set(0x044, 1);
        self.set(0x070, 15);
        // VIRTQ_AVAIL_F_NO_INTERRUPT: the used ring is looked at all the time.
        write_word(AVAIL, 1);
        true
    }
}

/// A bucket's index: the power of two, and the 5 bits behind the first.
fn bucket(ticks: u64) -> u64 {
    let ticks = ticks.max(32);
    let power = 63 - u64::from(ticks.leading_zeros());
    power * 32 + (ticks >> (power - 5) & 31)
}

/// Prints "<place>" when there is a disk and waits for the harness to put threads where it wants them,
/// prints "(", keeps `depth=` requests in flight until `count=` are done, prints
/// `ticks=N failed=N` and the histogram of latencies as `bucket:count` words, then `)`.
pub fn disk(line: &[u8]) -> ! {
    let Some(disk) = Disk::find(line) else {
        print_str("no disk)");
        forever()
    };
    let (count, depth, bytes) = (number(line, b"count="), number(line, b"depth="), number(line, b"bytes="));
    let (write, sequential) = (has(line, b"write"), has(line, b"sequential"));
    let sectors = read_u64(disk.base + 0x100);
    let blocks = (sectors * 512).checked_div(bytes).unwrap_or(0);
    let mut at = 0;
    while at < BUCKETS {
        write_u64(HISTOGRAM + at * 8, 0);
        at += 1;
    }
    // Three descriptors for each request: header, data, status. They stay as they are.
    let mut slot = 0;
    while slot < depth {
        let table = QUEUE + slot * 48;
        descriptor(table, HEADERS + slot * 16, 16, 1, slot * 3 + 1);
        descriptor(table + 16, DATA + slot * bytes, bytes as u32, if write { 1 } else { 3 }, slot * 3 + 2);
        descriptor(table + 32, STATUSES + slot, 1, 2, 0);
        write_u32(HEADERS + slot * 16, write as u32);
        write_u32(HEADERS + slot * 16 + 4, 0);
        slot += 1;
    }
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let (mut submitted, mut done, mut failed) = (0u64, 0u64, 0u64);
    let mut next = 0;
    print_str("<place>");
    let seen = unsafe { _rdtsc() };
    while unsafe { _rdtsc() } - seen < SETTLING {
        core::hint::spin_loop();
    }
    put(b'(');
    let start = unsafe { _rdtsc() };
    slot = 0;
    // At first all slots are free, then each one that comes back.
    while slot < depth && submitted < count {
        submit(slot, &mut submitted, block(&mut random, &mut next, blocks, sequential), bytes);
        slot += 1;
    }
    publish(&disk, submitted);
    while done < count {
        let used = u64::from(read_u16(USED + 2));
        if used == done & 0xffff {
            core::hint::spin_loop();
            continue;
        }
        let mut more = false;
        while done & 0xffff != used {
            let head = u64::from(read_u32(USED + 4 + done % QUEUE_SIZE * 8));
            let slot = head / 3;
            let ticks = unsafe { _rdtsc() } - read_u64(SUBMITTED + slot * 8);
            let counter = HISTOGRAM + bucket(ticks) * 8;
            write_u64(counter, read_u64(counter) + 1);
            failed += u64::from(read_u8(STATUSES + slot) != 0);
            done += 1;
            if submitted < count {
                submit(slot, &mut submitted, block(&mut random, &mut next, blocks, sequential), bytes);
                more = true;
            }
        }
        if more {
            publish(&disk, submitted);
        }
    }
    let ticks = unsafe { _rdtsc() } - start;
    print_str("ticks=");
    print_dec(ticks);
    print_str(" failed=");
    print_dec(failed);
    at = 0;
    while at < BUCKETS {
        let count = read_u64(HISTOGRAM + at * 8);
        if count > 0 {
            put(b' ');
            print_dec(at);
            put(b':');
            print_dec(count);
        }
        at += 1;
    }
    put(b')');
    forever()
}

fn block(random: &mut u64, next: &mut u64, blocks: u64, sequential: bool) -> u64 {
    if sequential {
        *next += 1;
        return (*next - 1).checked_rem(blocks).unwrap_or(0);
    }
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    random.checked_rem(blocks).unwrap_or(0)
}

fn submit(slot: u64, submitted: &mut u64, block: u64, bytes: u64) {
    write_u64(HEADERS + slot * 16 + 8, block * (bytes / 512));
    write_u8(STATUSES + slot, 0xff);
    write_word(AVAIL + 4 + *submitted % QUEUE_SIZE * 2, (slot * 3) as u16);
    *submitted += 1;
    write_u64(SUBMITTED + slot * 8, unsafe { _rdtsc() });
}

/// Shows the device the new index, and kicks it unless it says that it looks by itself.
fn publish(disk: &Disk, submitted: u64) {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    write_word(AVAIL + 2, submitted as u16);
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    if read_u16(USED) & 1 == 0 {
        disk.set(0x050, 0);
    }
}

fn descriptor(at: u64, address: u64, len: u32, flags: u16, next: u64) {
    write_u64(at, address);
    write_u32(at + 8, len);
    write_word(at + 12, flags);
    write_word(at + 14, next as u16);
}
