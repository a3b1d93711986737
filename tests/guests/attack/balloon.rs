//! Pages that are given away (virtio 1.2, 5.5.6).

use super::driver::*;
use super::shape::*;
use super::{Field, Verdict, must};
use crate::io::*;

const INFLATE: usize = 0;
const REPORT: usize = 2;

/// Inflates by the numbers that were put to the target's data.
fn inflate(field: &mut Field, count: u64) -> Verdict {
    desc(field.target.queues[INFLATE].desc, field.target.data(), count as u32 * 4, 0, 0);
    match field.target.submit(INFLATE, 0) {
        End::Used(0) => Ok(()),
        _ => Err("page numbers are not answered"),
    }
}

pub fn beyond(field: &mut Field) -> Verdict {
    let data = field.target.data();
    let first = field.ram >> 12;
    let numbers = [first, first + 1, 0xd0000, 0xfee00, 0xfffff, 0x10_0000, 0xffff_ffff, 0x8000_0000];
    for (i, number) in numbers.iter().enumerate() {
        write_u32(data + i as u64 * 4, *number as u32);
    }
    inflate(field, numbers.len() as u64)
}

pub fn same(field: &mut Field) -> Verdict {
    let data = field.target.data();
    let mut i = 0;
    while i < 4096 {
        write_u32(data + i * 4, (SPARE >> 12) as u32);
        i += 1;
    }
    inflate(field, 4096)?;
    inflate(field, 4096)
}

pub fn rings(field: &mut Field) -> Verdict {
    let data = field.target.data();
    // All pages of its rings and tables, and those of the other disk's rings.
    let mut count = 0;
    for begin in [field.target.memory, field.target.table(), field.target.header()] {
        let mut page = begin >> 12;
        while page < (begin >> 12) + 16 {
            write_u32(data + count * 4, page as u32);
            count += 1;
            page += 1;
        }
    }
    desc(field.target.queues[INFLATE].desc, data, count as u32 * 4, 0, 0);
    // Its used ring is empty by then, and the answer is put there, or it is broken.
    field.target.queues[INFLATE].offer(0);
    field.target.queues[INFLATE].publish();
    field.target.kick(INFLATE);
    match field.target.wait(INFLATE) {
        End::Silence => Err("nothing happens"),
        _ => Ok(()),
    }
}

pub fn ranges(field: &mut Field) -> Verdict {
    let table = field.target.table();
    let mut i = 0;
    while i < 1024 {
        let more = if i < 1023 { NEXT } else { 0 };
        desc(table + i * 16, SPARE, (SPARE_PAGES * 4096) as u32, WRITE | more, i as u16 + 1);
        i += 1;
    }
    let mut round = 0;
    while round < 8 {
        desc(field.target.queues[REPORT].desc, table, 1024 * 16, INDIRECT, 0);
        must(field.target.submit(REPORT, 0) == End::Used(0), "they are not answered")?;
        round += 1;
    }
    Ok(())
}

pub fn everything_else(field: &mut Field) -> Verdict {
    let ring = field.target.queues[REPORT].desc;
    let ranges = [
        (field.ram - 4096, u32::MAX),
        (field.ram, u32::MAX),
        (0xd000_0000, u32::MAX),
        (u64::MAX - 4095, 4096),
        (u64::MAX, u32::MAX),
        (1 << 52, u32::MAX),
        (SPARE + 1, 4096),
        (SPARE, 4095),
    ];
    for (addr, len) in ranges {
        desc(ring, addr, len, WRITE, 0);
        must(field.target.submit(REPORT, 0) == End::Used(0), "they are not answered")?;
    }
    must(read_u32(field.other.base) == 0x7472_6976, "a device is gone")
}
