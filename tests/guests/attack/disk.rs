//! Requests of a disk (virtio 1.2, 5.2.6).

use super::driver::*;
use super::shape::*;
use super::{Field, Verdict, must};
use crate::io::*;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

fn status(field: &Field) -> u8 {
    read_u8(field.target.answer())
}

/// A request of three buffers, and the status that it must have.
fn says(field: &mut Field, kind: u32, sector: u64, len: u32, wanted: u8) -> Verdict {
    match disk(&mut field.target, field.queue, kind, sector, len) {
        End::Used(_) => must(status(field) == wanted, "the status is another"),
        End::Broken => Err("the queue breaks"),
        End::Silence => Err("nothing happens"),
    }
}

fn sectors_of(field: &Field) -> u64 {
    read_u64(field.target.base + CONFIG)
}

pub fn types(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 300 {
        // All that there may ever be, and then any.
        let kind = if round < 260 { round } else { field.numbers.next() as u32 };
        round += 1;
        if kind == OUT {
            continue;
        }
        fill(field.target.data(), 512, 7);
        match disk(&mut field.target, field.queue, kind, 0, 512) {
            End::Used(_) => must(status(field) <= 2, "there is no status")?,
            End::Broken => return Err("the queue breaks"),
            End::Silence => return Err("nothing happens"),
        }
        let known = matches!(kind, IN | FLUSH | 8 | DISCARD | ZEROES);
        must(known || status(field) == 2, "it is not unsupported")?;
    }
    Ok(())
}

pub fn sectors(field: &mut Field) -> Verdict {
    let end = sectors_of(field);
    for sector in [end, end + 1, 1 << 40, (1 << 55) - 1, 1 << 55, 1 << 63, u64::MAX - 1, u64::MAX] {
        for kind in [IN, OUT] {
            says(field, kind, sector, 512, 1)?;
        }
    }
    for kind in [IN, OUT] {
        says(field, kind, end - 1, 1024, 1)?;
    }
    says(field, IN, end - 1, 512, 0)
}

pub fn lengths(field: &mut Field) -> Verdict {
    for len in [1, 2, 511, 513, 1023, 4095] {
        for kind in [IN, OUT] {
            says(field, kind, 0, len, 1)?;
        }
    }
    Ok(())
}

/// One request of `pieces` times `bytes`, all of them at the same place.
fn pieces(field: &mut Field, kind: u32, at: u64, bytes: u32, pieces: u64) {
    disk_header(&field.target, kind, 0);
    let table = field.target.table();
    let write = if kind == IN { WRITE } else { 0 };
    desc(table, field.target.header(), 16, NEXT, 1);
    let mut i = 1;
    while i <= pieces {
        desc(table + i * 16, at, bytes, NEXT | write, i as u16 + 1);
        i += 1;
    }
    desc(table + i * 16, field.target.answer(), 1, WRITE, 0);
    let ring = field.target.queues[field.queue].desc;
    desc(ring, table, (pieces as u32 + 2) * 16, INDIRECT, 0);
}

pub fn long(field: &mut Field) -> Verdict {
    // The disk is shorter than that, too.
    pieces(field, IN, field.target.data(), 64 << 10, 1000);
    match field.target.submit(field.queue, 0) {
        End::Used(1) => must(status(field) == 1, "it is no I/O error"),
        _ => Err("it is not answered"),
    }
}

/// As many requests in flight as there may be, each of all of the disk, to and from the same place.
fn longest_at(field: &mut Field, at: u64) -> Verdict {
    let bytes = (sectors_of(field) * 512).min(512 << 10) as u32;
    let mut round = 0;
    while round < 3 {
        pieces(field, IN, at, bytes, sectors_of(field) * 512 / u64::from(bytes));
        let mut queue = 0;
        while queue < field.target.count {
            let ring = field.target.queues[field.queue].desc;
            let own = field.target.queues[queue].desc;
            write_u64(own, read_u64(ring));
            write_u64(own + 8, read_u64(ring + 8));
            let mut left = field.target.queues[queue].size;
            while left > 0 {
                field.target.queues[queue].offer(0);
                left -= 1;
            }
            field.target.queues[queue].publish();
            queue += 1;
        }
        queue = 0;
        while queue < field.target.count {
            field.target.kick(queue);
            queue += 1;
        }
        queue = 0;
        while queue < field.target.count {
            match field.target.wait(queue) {
                End::Used(_) => {}
                End::Broken => return Err("the queue breaks"),
                End::Silence => return Err("it stops"),
            }
            queue += 1;
        }
        must(status(field) == 0, "a request fails")?;
        round += 1;
    }
    Ok(())
}

pub fn longest(field: &mut Field) -> Verdict {
    longest_at(field, field.target.data())
}

pub fn longest_odd(field: &mut Field) -> Verdict {
    longest_at(field, field.target.data() + 7)
}

/// A request about a range, with its status.
fn range(field: &mut Field, kind: u32, (sector, sectors, flags): (u64, u32, u32), wanted: u8) -> Verdict {
    let data = field.target.data();
    write_u64(data, sector);
    write_u32(data + 8, sectors);
    write_u32(data + 12, flags);
    says(field, kind, 0, 16, wanted)
}

pub fn ranges(field: &mut Field) -> Verdict {
    let end = sectors_of(field);
    for kind in [DISCARD, ZEROES] {
        for (sector, sectors) in [
            (end, 1),
            (end - 1, 2),
            (0, u32::MAX),
            (end - 8, u32::MAX),
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (1 << 55, 8),
            ((1 << 55) - 1, 1),
            (0, end as u32 + 1),
        ] {
            range(field, kind, (sector, sectors, 0), 1)?;
        }
        for flags in [2, 4, 0x8000_0000, u32::MAX] {
            range(field, kind, (0, 8, flags), 2)?;
        }
        range(field, kind, (0, 0, 0), 0)?;
        range(field, kind, (64, 8, 0), 0)?;
    }
    range(field, DISCARD, (0, 8, 1), 2)?;
    range(field, ZEROES, (64, 8, 1), 0)
}

pub fn segments(field: &mut Field) -> Verdict {
    let data = field.target.data();
    let mut at = 0;
    while at < 4096 {
        write_u64(data + at, 64);
        write_u64(data + at + 8, 8);
        at += 16;
    }
    for kind in [DISCARD, ZEROES] {
        for len in [0, 1, 15, 17, 32, 48, 16 * 256, 4095] {
            says(field, kind, 0, len, 1)?;
        }
        says(field, kind, 0, 16, 0)?;
    }
    Ok(())
}

pub fn flushes(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 4 {
        disk_header(&field.target, FLUSH, 0);
        let ring = field.target.queues[field.queue].desc;
        desc(ring, field.target.header(), 16, NEXT, 1);
        desc(ring + 16, field.target.answer(), 1, WRITE, 0);
        let mut left = field.size();
        while left > 0 {
            field.target.queues[field.queue].offer(0);
            left -= 1;
        }
        field.target.queues[field.queue].publish();
        field.target.kick(field.queue);
        match field.target.wait(field.queue) {
            End::Used(1) => must(status(field) == 0, "a flush fails")?,
            _ => return Err("they are not answered"),
        }
        round += 1;
    }
    Ok(())
}

pub fn short_header(field: &mut Field) -> Verdict {
    for len in [0, 1, 15] {
        field.fresh();
        disk_header(&field.target, IN, 0);
        let ring = field.target.queues[field.queue].desc;
        desc(ring, field.target.header(), len, NEXT, 1);
        desc(ring + 16, field.target.answer(), 1, WRITE, 0);
        field.breaks()?;
    }
    Ok(())
}

pub fn no_status(field: &mut Field) -> Verdict {
    let ring = field.target.queues[field.queue].desc;
    disk_header(&field.target, IN, 0);
    desc(ring, field.target.header(), 16, 0, 0);
    field.breaks()?;
    field.fresh();
    desc(ring, field.target.header(), 16, NEXT, 1);
    desc(ring + 16, field.target.answer(), 0, WRITE, 0);
    field.breaks()?;
    // Nothing that can be read at all.
    field.fresh();
    desc(ring, field.target.header(), 16, WRITE, 0);
    field.breaks()
}

pub fn status_nowhere(field: &mut Field) -> Verdict {
    for at in [0xc800_0000, field.target.base, u64::MAX, 1 << 52, field.ram] {
        for kind in [IN, FLUSH, 8, 99] {
            field.fresh();
            disk_header(&field.target, kind, 0);
            let ring = field.target.queues[field.queue].desc;
            desc(ring, field.target.header(), 16, NEXT, 1);
            desc(ring + 16, field.target.data(), 512, NEXT | WRITE, 2);
            desc(ring + 32, at, 1, WRITE, 0);
            field.breaks()?;
        }
    }
    // The last byte of one that begins in RAM.
    field.fresh();
    disk_header(&field.target, IN, 0);
    let ring = field.target.queues[field.queue].desc;
    desc(ring, field.target.header(), 16, NEXT, 1);
    desc(ring + 16, field.ram - 512, 513, WRITE, 0);
    field.breaks()
}

pub fn one_place(field: &mut Field) -> Verdict {
    let (header, ring) = (field.target.header(), field.target.queues[field.queue].desc);
    for kind in [IN, 8, FLUSH] {
        field.fresh();
        disk_header(&field.target, kind, 0);
        desc(ring, header, 16, NEXT, 1);
        desc(ring + 16, header, 512, NEXT | WRITE, 2);
        desc(ring + 32, header, 1, WRITE, 0);
        field.ends()?;
    }
    Ok(())
}
