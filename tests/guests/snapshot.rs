//! A guest that keeps a copy of its disk in memory and does to both whatever comes.
//!
//! The disk is at first what `tests/snapshot` has put there: the 8 bytes at offset n are
//! n * 0x9e37_79b9_7f4a_7c15, wrapped.

use crate::block::*;
use crate::check;
use crate::io::*;
use crate::words::number;

/// The copy.
const MODEL: u64 = 0x400_0000;

fn first_content(offset: u64) -> u64 {
    offset.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.checked_rem(end).unwrap_or(0)
    }
}

/// The disk's bytes, at DATA.
fn read(driver: &mut Driver, offset: u64, len: u64) -> bool {
    // What was there must not pass for what is read.
    let mut at = 0;
    while at < len {
        write_u64(DATA + at, 0xdead_dead_dead_dead);
        at += 8;
    }
    driver.request(0, offset / 512, len as u32) == (0, len as u32 + 1)
}

/// Whether they are the copy's; with `or_zeros` a sector may have become zeros, and then does in the
/// copy as well.
fn is_model(offset: u64, len: u64, or_zeros: bool) -> bool {
    let mut good = true;
    let mut at = 0;
    while at < len {
        let (found, wanted) = (read_u64(DATA + at), read_u64(MODEL + offset + at));
        good &= found == wanted || or_zeros && found == 0;
        write_u64(MODEL + offset + at, found);
        at += 8;
    }
    good
}

/// A request about a range: 11 is a discard, 13 are zeros.
fn range(driver: &mut Driver, kind: u32, offset: u64, len: u64, flags: u32) -> u8 {
    write_u64(DATA, offset / 512);
    write_u32(DATA + 8, (len / 512) as u32);
    write_u32(DATA + 12, flags);
    header(kind, 0);
    desc(DESC, HEADER, 16, NEXT, 1);
    desc(DESC + 16, DATA, 16, NEXT, 2);
    desc(DESC + 32, STATUS, 1, WRITE, 0);
    driver.submit(0);
    read_u8(STATUS)
}

/// What no driver should ask for; all of it is refused, and none of it done.
fn nonsense(driver: &mut Driver, what: u64, offset: u64, capacity: u64) -> bool {
    let status = match what {
        0 => driver.request(1, capacity - 1, 1024).0,
        1 => driver.request(1, u64::MAX - 1, 512).0,
        2 => driver.request(1, offset / 512, 511).0,
        3 => range(driver, 13, capacity * 512 - 512, 1024, 0),
        4 => range(driver, 11, u64::MAX / 512 * 512, 512, 0),
        5 => range(driver, 13, 0, 0xffff_ffff * 512, 1),
        6 => {
            // Half of what is to be written is not RAM.
            header(1, offset / 512);
            desc(DESC, HEADER, 16, NEXT, 1);
            desc(DESC + 16, DATA, 256, NEXT, 2);
            desc(DESC + 32, 0xc000_0000, 256, NEXT, 3);
            desc(DESC + 48, STATUS, 1, WRITE, 0);
            driver.submit(0);
            read_u8(STATUS)
        }
        _ => driver.request(77, offset / 512, 512).0,
    };
    status == 1 || status == 2
}

/// `steps=` requests of all kinds, sizes and places, in the order of `seed=`. Runs in ring 3, where no
/// host has to emulate it.
pub fn model(line: &[u8]) {
    let capacity = read_u64(BASE + 0x100);
    let bytes = capacity * 512;
    let mut numbers = Numbers(number(line, b"seed=") + 1);
    let mut driver = initialize();
    let mut good = true;
    let mut offset = 0;
    while offset < bytes {
        let len = (bytes - offset).min(4096);
        good &= read(&mut driver, offset, len);
        let mut at = 0;
        while at < len {
            good &= read_u64(DATA + at) == first_content(offset + at);
            write_u64(MODEL + offset + at, read_u64(DATA + at));
            at += 8;
        }
        offset += len;
    }
    check("the disk is what the image is", good);
    let (mut wrong, mut harm) = (0u64, 0u64);
    let mut step = 0;
    while step < number(line, b"steps=") {
        step += 1;
        // Pages, or any sectors.
        let unit = if numbers.below(3) == 0 { 4096 } else { 512 };
        let offset = numbers.below(bytes / unit) * unit;
        let len = ((1 + numbers.below(if unit == 512 { 24 } else { 4 })) * unit).min(bytes - offset);
        let mut done = true;
        let kind = numbers.below(14);
        match kind {
            0..5 => {
                let value = numbers.below(u64::MAX);
                let mut at = 0;
                while at < len {
                    write_u64(DATA + at, value + at);
                    write_u64(MODEL + offset + at, value + at);
                    at += 8;
                }
                done = driver.request(1, offset / 512, len as u32) == (0, 1);
            }
            5 | 6 => {
                let flags = numbers.below(2) as u32;
                done = range(&mut driver, 13, offset, len, flags) == 0;
                let mut at = 0;
                while at < len {
                    write_u64(MODEL + offset + at, 0);
                    at += 8;
                }
            }
            7 => done = range(&mut driver, 11, offset, len, 0) == 0,
            8 => done = driver.request(4, 0, 0) == (0, 1),
            9 => {
                let what = numbers.below(8);
                harm += u64::from(!nonsense(&mut driver, what, offset, capacity));
            }
            // The sectors of a page, all at once; and a reset while they are written.
            10 | 11 if offset + 4096 <= bytes => {
                let value = numbers.below(u64::MAX);
                let mut at = 0;
                while at < 4096 {
                    write_u64(DATA + at, value + at);
                    at += 8;
                }
                burst(&mut driver, 1, offset / 512, 512);
                if kind == 10 {
                    done = settled(&driver);
                } else {
                    driver = initialize();
                }
                done &= read(&mut driver, offset, 4096);
                at = 0;
                while at < 4096 {
                    let found = read_u64(DATA + at);
                    let old = kind == 11 && found == read_u64(MODEL + offset + at);
                    done &= old || found == value + at;
                    write_u64(MODEL + offset + at, found);
                    at += 8;
                }
            }
            _ => {}
        }
        done &= read(&mut driver, offset, len) && is_model(offset, len, kind == 7);
        wrong += u64::from(!done);
        if numbers.below(40) == 0 {
            driver = initialize();
        }
    }
    check("each request did what it should", wrong == 0);
    check("nonsense is refused", harm == 0);
    let mut good = true;
    let mut offset = 0;
    while offset < bytes {
        let len = (bytes - offset).min(4096);
        good &= read(&mut driver, offset, len) && is_model(offset, len, false);
        offset += len;
    }
    check("and all of the disk is what was done to it", good);
}

/// Writes page after page until there is no room for another.
pub fn fill() {
    let pages = read_u64(BASE + 0x100) / 8;
    let mut driver = initialize();
    let mut write = |page: u64, driver: &mut Driver| {
        let mut at = 0;
        while at < 4096 {
            write_u64(DATA + at, page + at);
            at += 8;
        }
        driver.request(1, page * 8, 4096).0
    };
    let mut page = 0;
    while page < pages && write(page, &mut driver) == 0 {
        page += 1;
    }
    print_str("pages ");
    print_dec(page);
    print_str("\n");
    check("an I/O error comes", page > 0 && page < pages && read_u8(STATUS) == 1);
    let mut errors = 0;
    let mut more = page;
    while more < pages {
        errors += u64::from(write(more, &mut driver) == 1);
        more += 1;
    }
    check("and again for each further page", errors == pages - page);
    let mut whole = true;
    let mut last = 0;
    while last < page {
        whole &= read(&mut driver, last * 4096, 4096);
        let mut at = 0;
        while at < 4096 {
            whole &= read_u64(DATA + at) == last + at;
            at += 8;
        }
        last += 1;
    }
    check("what was written is read", whole);
    let mut untouched = read(&mut driver, (pages - 1) * 4096, 4096);
    let mut at = 0;
    while at < 4096 {
        untouched &= read_u64(DATA + at) == first_content((pages - 1) * 4096 + at);
        at += 8;
    }
    check("what could not be written is the image's", untouched);
    check("what is there can be written again", write(0, &mut driver) == 0);
    check("and flushed", driver.request(4, 0, 0) == (0, 1));
    check("a page is given back", range(&mut driver, 13, 4096, 4096, 1) == 0);
    check("and another takes its place", write(pages - 1, &mut driver) == 0);
}

/// Writes in its first life and resets the machine; reads it in its second.
pub fn two_lives() {
    let mut driver = initialize();
    check("a page is read", read(&mut driver, 8192, 4096));
    if read_u64(DATA) == first_content(8192) {
        let mut at = 0;
        while at < 4096 {
            write_u64(DATA + at, 0x1234_5678 + at);
            at += 8;
        }
        check("and written", driver.request(1, 16, 4096) == (0, 1));
        print_str("first life\n");
        outb(0x602, 1);
    }
    check("it is what the first life has written", read_u64(DATA + 8) == 0x1234_5680);
    check("the page behind it is the image's", {
        read(&mut driver, 12288, 4096) && read_u64(DATA) == first_content(12288)
    });
    print_str("second life\n");
}
