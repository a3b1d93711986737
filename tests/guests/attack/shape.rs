//! What a well-behaved request looks like, for each type of device and each of its queues.

use super::driver::*;
use crate::io::*;

/// Where pages are that nobody minds losing: a balloon gives them away.
pub const SPARE: u64 = 0x300_0000;
pub const SPARE_PAGES: u64 = 1024;

/// One buffer of a request: address, length, whether the device writes it.
pub type Part = (u64, u32, bool);

/// The fewest buffers of a request of this device.
pub fn least(device: &Device) -> u16 {
    if device.kind == BLOCK { 3 } else { 1 }
}

/// Buffer `i` of a request in `count` buffers. Of a disk it is a read.
pub fn part(device: &Device, queue: usize, i: u16, count: u16) -> Part {
    let n = u64::from(i);
    match (device.kind, queue) {
        (BLOCK, _) if i == 0 => {
            write_u32(device.header(), 0);
            write_u32(device.header() + 4, 0);
            write_u64(device.header() + 8, 0);
            (device.header(), 16, false)
        }
        (BLOCK, _) if i + 1 == count => {
            write_u8(device.answer(), 0xaa);
            (device.answer(), 1, true)
        }
        (BLOCK, _) => (device.data() + (n - 1) * 512, 512, true),
        (RNG, _) => (device.data() + n * 16, if count > 256 { 1 } else { 16 }, true),
        (BALLOON, 2) => (SPARE + n % SPARE_PAGES * 4096, 4096, true),
        (BALLOON, _) => {
            let at = device.data() + n * 4;
            write_u32(at, ((SPARE >> 12) + n % SPARE_PAGES) as u32);
            (at, 4, false)
        }
        (CONSOLE, 0) => (device.data() + n * 16, 16, true),
        _ => {
            write_u8(device.data() + n, b'.');
            (device.data() + n, 1, false)
        }
    }
}

/// Whether `end` is how such a request ends.
pub fn is_good(device: &Device, queue: usize, count: u16, end: End) -> bool {
    let End::Used(written) = end else { return false };
    let count = u32::from(count);
    match (device.kind, queue) {
        (BLOCK, _) => written == (count - 2) * 512 + 1 && read_u8(device.answer()) == 0,
        (RNG, _) => written == count * if count > 256 { 1 } else { 16 },
        (CONSOLE, 0) => written >= 1 && written <= count * 16,
        _ => written == 0,
    }
}

/// Lays a request as a chain in the table at `table`, from entry 0 on.
pub fn lay(device: &Device, queue: usize, table: u64, count: u16) {
    let mut i = 0;
    while i < count {
        let (addr, len, write) = part(device, queue, i, count);
        let more = if i + 1 < count { NEXT } else { 0 };
        let flags = more | if write { WRITE } else { 0 };
        desc(table + u64::from(i) * 16, addr, len, flags, i + 1);
        i += 1;
    }
}

/// A request on a device that was started, and whether it ends well.
pub fn request(device: &mut Device, queue: usize) -> bool {
    let count = least(device);
    lay(device, queue, device.queues[queue].desc, count);
    let end = device.submit(queue, 0);
    is_good(device, queue, count, end)
}

/// A request on each of its queues, as a well-behaved driver makes them, with a look at what they have done.
pub fn behaves(device: &mut Device, round: u64) -> Result<(), &'static str> {
    match device.kind {
        BLOCK => {
            let mut queue = 0;
            while queue < device.count {
                let seed = round << 8 | queue as u64 | 1;
                fill(device.data(), 4096, seed);
                if disk(device, queue, 1, 64 + queue as u64 * 8, 4096) != End::Used(1) || read_u8(device.answer()) != 0 {
                    return Err("a page is not written");
                }
                fill(device.data(), 4096, !seed);
                if disk(device, queue, 0, 64 + queue as u64 * 8, 4096) != End::Used(4097) || read_u8(device.answer()) != 0 {
                    return Err("a page is not read");
                }
                if !is_filled(device.data(), 4096, seed) {
                    return Err("what is read is not what was written");
                }
                queue += 1;
            }
        }
        RNG => {
            let two = |device: &mut Device| {
                write_u64(device.data(), 0);
                (request(device, 0), read_u64(device.data()))
            };
            let (first, second) = (two(device), two(device));
            // By chance once in 2^64.
            if !first.0 || !second.0 || first.1 == second.1 || first.1 == 0 {
                return Err("random bytes do not come");
            }
        }
        BALLOON => {
            let mut queue = 0;
            while queue < device.count {
                write_u64(SPARE + 8, round | 1);
                if !request(device, queue) {
                    return Err("a page is not taken");
                }
                // The deflateq gives nothing away.
                let left = read_u64(SPARE + 8);
                if left != if queue == 1 { round | 1 } else { 0 } {
                    return Err("a page that was given away is not new");
                }
                queue += 1;
            }
        }
        _ => {
            // Nothing may have come to be received, so only what is sent can be waited for.
            let mut len = 0;
            let mut put = |byte: u8| {
                write_u8(device.data() + len, byte);
                len += 1;
            };
            b"<round ".iter().for_each(|byte| put(*byte));
            for place in [1000, 100, 10, 1] {
                put(b'0' + (round / place % 10) as u8);
            }
            b">\n".iter().for_each(|byte| put(*byte));
            desc(device.queues[1].desc, device.data(), len as u32, 0, 0);
            if device.submit(1, 0) != End::Used(0) {
                return Err("a line is not printed");
            }
        }
    }
    Ok(())
}

/// A request of a disk in three buffers: header, data, status.
pub fn disk(device: &mut Device, queue: usize, kind: u32, sector: u64, len: u32) -> End {
    disk_header(device, kind, sector);
    let table = device.queues[queue].desc;
    let write = if kind == 1 || kind == 11 || kind == 13 { 0 } else { WRITE };
    desc(table, device.header(), 16, NEXT, 1);
    desc(table + 16, device.data(), len, NEXT | write, 2);
    desc(table + 32, device.answer(), 1, WRITE, 0);
    device.submit(queue, 0)
}

pub fn disk_header(device: &Device, kind: u32, sector: u64) {
    write_u32(device.header(), kind);
    write_u32(device.header() + 4, 0);
    write_u64(device.header() + 8, sector);
    write_u8(device.answer(), 0xaa);
}

pub fn fill(at: u64, len: u64, seed: u64) {
    let mut done = 0;
    while done < len {
        write_u64(at + done, (done + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        done += 8;
    }
}

pub fn is_filled(at: u64, len: u64, seed: u64) -> bool {
    let mut done = 0;
    let mut good = true;
    while done < len {
        good &= read_u64(at + done) == (done + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        done += 8;
    }
    good
}
