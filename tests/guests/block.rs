//! A driver for the first virtio-blk device, by the letter of virtio 1.2, without interrupts.

use crate::check;
use crate::io::*;

pub const BASE: u64 = 0xd000_0000;
pub const DESC: u64 = 0x20_0000;
const AVAIL: u64 = 0x20_1000;
const USED: u64 = 0x20_2000;
pub const HEADER: u64 = 0x20_3000;
pub const STATUS: u64 = 0x20_3100;
const TABLE: u64 = 0x20_4000;
pub const DATA: u64 = 0x21_0000;
pub const SIZE: u64 = 8;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const EVENT_IDX: u32 = 1 << 29;

pub struct Driver {
    avail: u16,
}

pub fn reg(offset: u64) -> u32 {
    read_u32(BASE + offset)
}

fn set(offset: u64, value: u32) {
    write_u32(BASE + offset, value);
}

/// A descriptor at `at`.
pub fn desc(at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    write_u64(at, addr);
    write_u32(at + 8, len);
    write_word(at + 12, flags);
    write_word(at + 14, next);
}

pub fn initialize() -> Driver {
    set(0x070, 0);
    while reg(0x070) != 0 {}
    set(0x070, 1);
    set(0x070, 3);
    set(0x014, 0);
    let offered = reg(0x010);
    set(0x024, 0);
    set(0x020, offered & !EVENT_IDX);
    set(0x024, 1);
    set(0x020, 1);
    set(0x070, 11);
    let mut at = DESC;
    while at < HEADER {
        write_u64(at, 0);
        at += 8;
    }
    set(0x030, 0);
    set(0x038, SIZE as u32);
    set(0x080, DESC as u32);
    set(0x090, AVAIL as u32);
    set(0x0a0, USED as u32);
    set(0x044, 1);
    set(0x070, 15);
    Driver { avail: 0 }
}

impl Driver {
    /// Offers the chain at `head` and waits until it is used; the used length.
    pub fn submit(&mut self, head: u16) -> u32 {
        let slot = u64::from(self.avail) % SIZE;
        write_word(AVAIL + 4 + slot * 2, head);
        self.avail = self.avail.wrapping_add(1);
        write_word(AVAIL + 2, self.avail);
        set(0x050, 0);
        while read_u16(USED + 2) != self.avail {
            if reg(0x070) & 64 != 0 {
                return u32::MAX;
            }
        }
        read_u32(USED + 4 + slot * 8 + 4)
    }

    /// One request of header, `len` bytes of data at DATA, status.
    pub fn request(&mut self, kind: u32, sector: u64, len: u32) -> (u8, u32) {
        header(kind, sector);
        let write = if kind == 1 { 0 } else { WRITE };
        desc(DESC, HEADER, 16, NEXT, 1);
        desc(DESC + 16, DATA, len, NEXT | write, 2);
        desc(DESC + 32, STATUS, 1, WRITE, 0);
        let used = self.submit(0);
        (read_u8(STATUS), used)
    }
}

pub fn header(kind: u32, sector: u64) {
    write_u32(HEADER, kind);
    write_u32(HEADER + 4, 0);
    write_u64(HEADER + 8, sector);
    write_u8(STATUS, 0xaa);
}

fn fill(len: u64, seed: u64) {
    let mut at = 0;
    while at < len {
        write_u64(DATA + at, (at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        at += 8;
    }
}

fn matches(len: u64, seed: u64) -> bool {
    let mut at = 0;
    while at < len {
        if read_u64(DATA + at) != (at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) {
            return false;
        }
        at += 8;
    }
    true
}

pub fn run() {
    check("the device says virt", reg(0) == 0x7472_6976 && reg(4) == 2 && reg(8) == 2);
    let capacity = read_u64(BASE + 0x100);
    print_str("capacity ");
    print_dec(capacity);
    print_str("\n");
    let mut driver = initialize();
    check("features are accepted", reg(0x070) == 15);

    fill(4096, 1);
    check("a write is done", driver.request(1, 8, 4096) == (0, 1));
    fill(4096, 99);
    check("a read is done", driver.request(0, 8, 4096) == (0, 4097));
    check("it is what was written", matches(4096, 1));
    check("the interrupt status says used", reg(0x060) == 1);
    set(0x064, 1);
    check("and is acknowledged", reg(0x060) == 0);

    check("a flush is done", driver.request(4, 0, 0) == (0, 1));
    check("the serial number comes", driver.request(8, 0, 20) == (0, 21));
    print_str("serial ");
    let mut at = 0;
    while at < 20 && read_u8(DATA + at) != 0 {
        put(read_u8(DATA + at));
        at += 1;
    }
    print_str("\n");
    check("past the end is an error", driver.request(0, capacity, 512) == (1, 1));
    check("far past it too", driver.request(0, u64::MAX, 512) == (1, 1));
    check("odd lengths too", driver.request(0, 0, 100) == (1, 1));
    check("an unknown type is unsupported", driver.request(99, 0, 512) == (2, 1));

    // Header in two pieces, data in three, status behind data.
    header(0, 8);
    fill(1024, 5);
    desc(DESC, HEADER, 5, NEXT, 1);
    desc(DESC + 16, HEADER + 5, 11, NEXT, 2);
    desc(DESC + 32, DATA, 100, NEXT | WRITE, 3);
    desc(DESC + 48, DATA + 100, 411, NEXT | WRITE, 4);
    desc(DESC + 64, DATA + 511, 2, WRITE, 0);
    check("any cut of the bytes is legal", driver.submit(0) == 513);
    check("and gives the same data", matches(504, 1) && read_u8(DATA + 512) == 0);

    header(0, 8);
    fill(1024, 5);
    desc(TABLE, HEADER, 16, NEXT, 1);
    desc(TABLE + 16, DATA, 512, NEXT | WRITE, 2);
    desc(TABLE + 32, STATUS, 1, WRITE, 0);
    desc(DESC + 112, TABLE, 48, INDIRECT, 0);
    check("an indirect table is followed", driver.submit(7) == 513 && matches(512, 1));

    header(0, 8);
    desc(DESC, HEADER, 16, NEXT, 1);
    desc(DESC + 16, 0xc000_0000, 512, NEXT | WRITE, 2);
    desc(DESC + 32, STATUS, 1, WRITE, 0);
    check("data that is not RAM is an error", driver.submit(0) == 1 && read_u8(STATUS) == 1);

    let mut round = 0;
    let mut good = true;
    while round < 3 {
        driver = initialize();
        good &= driver.request(0, 8, 512) == (0, 513) && matches(512, 1);
        round += 1;
    }
    check("a reset device works again", good);
    set(0x070, 0);
    check("and is quiet when reset", reg(0x070) == 0 && reg(0x060) == 0);
}

/// The disk is one that may only be read, and full of zeros.
pub fn read_only() {
    /// VIRTIO_BLK_F_RO, DISCARD and WRITE_ZEROES (virtio 1.2, 5.2.3).
    const RO: u32 = 1 << 5;
    const CHANGES: u32 = 1 << 13 | 1 << 14;
    let mut driver = initialize();
    let offered = reg(0x010);
    check("the device says read-only", offered & RO != 0);
    check("and takes nothing that changes it", offered & CHANGES == 0);
    fill(4096, 1);
    check("a write is an error", driver.request(1, 8, 4096) == (1, 1));
    check("a read is done", driver.request(0, 8, 4096) == (0, 4097));
    let mut at = 0;
    let mut zeros = true;
    while at < 4096 {
        zeros &= read_u64(DATA + at) == 0;
        at += 8;
    }
    check("nothing has been written", zeros);
    check("a flush is done", driver.request(4, 0, 0) == (0, 1));
}

/// As many requests in flight as the ring has entries; request `i` moves so many `bytes` at
/// DATA + bytes * i, one after the other on the disk.
pub fn burst(driver: &mut Driver, kind: u32, sector: u64, bytes: u64) {
    scatter(driver, kind, bytes, |i| sector + i * (bytes / 512));
}

/// The same, with request `i` at any `sector`.
pub fn scatter(driver: &mut Driver, kind: u32, bytes: u64, sector: impl Fn(u64) -> u64) {
    let write = if kind == 1 { 0 } else { WRITE };
    let mut i = 0;
    while i < SIZE {
        let (header, status, table) = (HEADER + i * 16, STATUS + i, TABLE + i * 48);
        write_u32(header, kind);
        write_u32(header + 4, 0);
        write_u64(header + 8, sector(i));
        write_u8(status, 0xaa);
        desc(table, header, 16, NEXT, 1);
        desc(table + 16, DATA + i * bytes, bytes as u32, NEXT | write, 2);
        desc(table + 32, status, 1, WRITE, 0);
        desc(DESC + i * 16, table, 48, INDIRECT, 0);
        write_word(AVAIL + 4 + u64::from(driver.avail) % SIZE * 2, i as u16);
        driver.avail = driver.avail.wrapping_add(1);
        i += 1;
    }
    write_word(AVAIL + 2, driver.avail);
    set(0x050, 0);
}

/// Waits for all of a burst; whether all went well.
pub fn settled(driver: &Driver) -> bool {
    while read_u16(USED + 2) != driver.avail {}
    let mut good = true;
    let mut i = 0;
    while i < SIZE {
        good &= read_u8(STATUS + i) == 0;
        i += 1;
    }
    good
}

/// Many requests at once, discards, zeros, and resets with I/O in flight.
pub fn many() {
    let mut driver = initialize();
    fill(SIZE * 4096, 7);
    burst(&mut driver, 1, 64, 4096);
    check("a ring full of writes is done", settled(&driver));
    fill(SIZE * 4096, 1234);
    burst(&mut driver, 0, 64, 4096);
    check("a ring full of reads is done", settled(&driver));
    check("all of them are what was written", matches(SIZE * 4096, 7));

    let range = |sector: u64, sectors: u32, flags: u32| {
        write_u64(DATA, sector);
        write_u32(DATA + 8, sectors);
        write_u32(DATA + 12, flags);
    };
    let mut ask = |kind: u32, driver: &mut Driver| {
        header(kind, 0);
        desc(DESC, HEADER, 16, NEXT, 1);
        desc(DESC + 16, DATA, 16, NEXT, 2);
        desc(DESC + 32, STATUS, 1, WRITE, 0);
        driver.submit(0);
        read_u8(STATUS)
    };
    range(64, 8, 0);
    check("zeros are written", ask(13, &mut driver) == 0);
    range(72, 8, 1);
    check("and unmapped", ask(13, &mut driver) == 0);
    range(80, 8, 0);
    check("a discard is done", ask(11, &mut driver) == 0);
    range(80, 8, 1);
    check("a discard that says unmap is unsupported", ask(11, &mut driver) == 2);
    range(u64::MAX, 8, 0);
    check("a range past the end is an error", ask(13, &mut driver) == 1);
    fill(8192, 3);
    driver.request(0, 64, 8192);
    let mut zero = true;
    let mut at = 0;
    while at < 8192 {
        zero &= read_u64(DATA + at) == 0;
        at += 8;
    }
    check("zeros are read back", zero);

    let mut round = 0;
    let mut quiet = true;
    while round < 50 {
        driver = initialize();
        burst(&mut driver, 0, 64, 4096);
        set(0x070, 0);
        quiet &= reg(0x070) == 0;
        fill(SIZE * 4096, round);
        let mut wait = 0;
        while wait < 2000 {
            core::hint::spin_loop();
            wait += 1;
        }
        quiet &= matches(SIZE * 4096, round);
        round += 1;
    }
    check("after a reset nothing is written any more", quiet);
    driver = initialize();
    check("and the device works", driver.request(0, 64, 512) == (0, 513));
}

/// Uses a disk that goes bad while it does: says "at work", tries `kind` at the last page until that
/// fails, and then looks whether the first page still works.
pub fn errors(kind: u32) {
    let last = read_u64(BASE + 0x100) - 8;
    let mut driver = initialize();
    print_str("at work\n");
    while driver.request(kind, last, 4096).0 == 0 {}
    check("an I/O error comes", read_u8(STATUS) == 1);
    check("again when it is tried again", driver.request(kind, last, 4096).0 == 1);
    check("the first page is read", driver.request(0, 0, 4096) == (0, 4097));
    check("and written", driver.request(1, 0, 4096) == (0, 1));
    check("and flushed", driver.request(4, 0, 0) == (0, 1));
}

/// What the disk was on goes away: nothing can be done any more, and the machine goes on.
pub fn gone() {
    let mut driver = initialize();
    check("a page is written", driver.request(1, 0, 4096) == (0, 1));
    print_str("at work\n");
    while driver.request(0, 0, 4096).0 == 0 {}
    check("an I/O error comes", read_u8(STATUS) == 1);
    check("nothing is read", driver.request(0, 0, 4096).0 == 1);
    check("nor written", driver.request(1, 0, 4096).0 == 1);
    check("nor flushed", driver.request(4, 0, 0).0 == 1);
    let mut driver = initialize();
    check("nor is it after a reset", driver.request(0, 0, 4096).0 == 1);
}

/// Writes to a disk that stops answering at some time, eight requests at once. At 'r' the device is reset,
/// whatever it is doing then; at 'q' the disk is looked at, and that is the end.
pub fn stuck() {
    let mut driver = initialize();
    print_str("at work\n");
    loop {
        burst(&mut driver, 1, 0, 4096);
        let mut key = 0;
        while key != b'r' && read_u16(USED + 2) != driver.avail {
            if inb(0x3fd) & 1 != 0 {
                key = inb(0x3f8);
            }
        }
        match key {
            b'r' => {
                print_str("resetting\n");
                set(0x070, 0);
                print_str("it is reset\n");
                driver = initialize();
            }
            b'q' => break,
            _ => {}
        }
    }
    check("the disk is read", driver.request(0, 0, 4096) == (0, 4097));
    check("and written", driver.request(1, 0, 4096) == (0, 1));
    check("and flushed", driver.request(4, 0, 0) == (0, 1));
}

/// Writes block n of a sequence, flushes, says "n", for ever. Where it goes and what is in it
/// follows from n (`tests/durability.rs` knows the same).
pub fn journal() -> ! {
    let blocks = read_u64(BASE + 0x100) / 8;
    let mut driver = initialize();
    let mut n = 1u64;
    loop {
        let block = n.wrapping_mul(7919).checked_rem(blocks).unwrap_or(0);
        let mut at = 0;
        while at < 4096 {
            write_u64(DATA + at, n);
            at += 8;
        }
        if driver.request(1, block * 8, 4096).0 != 0 || driver.request(4, 0, 0).0 != 0 {
            print_str("WRONG: an I/O error\n");
        }
        print_dec(n);
        print_str("\n");
        n += 1;
    }
}

pub fn broken() {
    let breakages: [(&str, fn()); 5] = [
        ("a loop", || desc(DESC, HEADER, 16, NEXT, 0)),
        ("an index out of the table", || desc(DESC, HEADER, 16, NEXT, 8)),
        ("no status byte", || desc(DESC, HEADER, 16, 0, 0)),
        ("an indirect table inside another", || {
            desc(TABLE, TABLE, 16, INDIRECT, 0);
            desc(DESC, TABLE, 16, INDIRECT, 0)
        }),
        ("a table that is not RAM", || desc(DESC, 0xffff_ffff_ffff_fff0, 32, INDIRECT, 0)),
    ];
    for (name, breakage) in breakages {
        let mut driver = initialize();
        header(0, 0);
        breakage();
        let used = driver.submit(0);
        check(name, used == u32::MAX && reg(0x060) & 2 != 0);
    }
    let mut driver = initialize();
    // More entries than the ring has.
    driver.avail = 100;
    check("an avail index that jumps", driver.submit(0) == u32::MAX);
    driver = initialize();
    check("a reset mends it", driver.request(0, 0, 512) == (0, 513));
}
