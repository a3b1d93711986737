//! Chains and tables of descriptors (virtio 1.2, 2.7.5).

use super::driver::*;
use super::shape::*;
use super::{Field, Verdict, must};
use crate::io::*;

const NOWHERE: u64 = 0xc800_0000;
const LOCAL_APIC: u64 = 0xfee0_0000;

impl Field {
    /// Offers the chain at entry 0, and wants the queue broken.
    pub fn breaks(&mut self) -> Verdict {
        match self.target.submit(self.queue, 0) {
            End::Broken => Ok(()),
            End::Used(_) => Err("it is answered"),
            End::Silence => Err("nothing happens"),
        }
    }

    /// Offers it, and wants an end of whatever kind.
    pub fn ends(&mut self) -> Verdict {
        match self.target.submit(self.queue, 0) {
            End::Silence => Err("nothing happens"),
            _ => Ok(()),
        }
    }

    fn ring(&self) -> u64 {
        self.target.queues[self.queue].desc
    }

    pub fn size(&self) -> u16 {
        self.target.queues[self.queue].size
    }

    /// A chain of `count` descriptors in the ring's own table.
    fn lay(&self, count: u16) {
        lay(&self.target, self.queue, self.ring(), count);
    }

    /// A chain in an indirect table, of which the ring is told `len` bytes.
    fn lay_indirect(&self, count: u16, len: u32) {
        lay(&self.target, self.queue, self.target.table(), count);
        desc(self.ring(), self.target.table(), len, INDIRECT, 0);
    }

    /// A request whose only buffer of data, or whose only buffer, is `len` bytes at `addr`.
    fn with_buffer(&self, addr: u64, len: u32) {
        let count = least(&self.target);
        self.lay(count);
        let at = self.ring() + if count > 1 { 16 } else { 0 };
        write_u64(at, addr);
        write_u32(at + 8, len);
    }

    /// A request with such a buffer has an end, and moves nothing: a disk says I/O error.
    fn refuses(&mut self, addr: u64, len: u32) -> Verdict {
        self.with_buffer(addr, len);
        let end = self.target.submit(self.queue, 0);
        match end {
            End::Used(1) if self.target.kind == BLOCK => {
                must(read_u8(self.target.answer()) == 1, "the disk says no I/O error")
            }
            End::Used(0) if self.target.kind != BLOCK => Ok(()),
            End::Used(_) => Err("it is said to be filled"),
            End::Broken => Err("the queue breaks"),
            End::Silence => Err("nothing happens"),
        }
    }

    fn works(&mut self, count: u16) -> Verdict {
        let end = self.target.submit(self.queue, 0);
        match end {
            End::Broken => Err("the queue breaks"),
            End::Silence => Err("nothing happens"),
            end => must(is_good(&self.target, self.queue, count, end), "the answer is wrong"),
        }
    }
}

pub fn full(field: &mut Field) -> Verdict {
    let size = field.size();
    field.lay(size);
    field.works(size)
}

pub fn longer(field: &mut Field) -> Verdict {
    // A ring of four, whose table goes on behind its end.
    field.restart_with_size(4)?;
    field.lay(5);
    field.breaks()
}

pub fn looping(field: &mut Field) -> Verdict {
    let count = least(&field.target).max(2);
    field.lay(count);
    let last = field.ring() + u64::from(count - 1) * 16;
    let first = read_u16(last + 12);
    write_word(last + 12, first | NEXT);
    write_word(last + 14, count - 1);
    field.breaks()?;
    // And by way of the first, as far as directions allow that.
    field.fresh();
    desc(field.ring(), field.target.header(), 16, NEXT, 1);
    desc(field.ring() + 16, field.target.header(), 16, NEXT, 0);
    field.breaks()
}

pub fn itself(field: &mut Field) -> Verdict {
    desc(field.ring(), field.target.header(), 16, NEXT, 0);
    field.breaks()
}

pub fn index(field: &mut Field) -> Verdict {
    for next in [field.size(), field.size() + 1, 0x8000, 0xffff] {
        field.fresh();
        desc(field.ring(), field.target.header(), 16, NEXT, next);
        field.breaks()?;
    }
    Ok(())
}

pub fn head(field: &mut Field) -> Verdict {
    for head in [field.size(), 0x7fff, 0xffff] {
        field.fresh();
        if field.target.submit(field.queue, head) != End::Broken {
            return Err("it does not break");
        }
    }
    Ok(())
}

pub fn order(field: &mut Field) -> Verdict {
    let data = field.target.data();
    desc(field.ring(), field.target.header(), 16, NEXT, 1);
    desc(field.ring() + 16, data, 16, NEXT | WRITE, 2);
    desc(field.ring() + 32, data, 16, NEXT, 3);
    desc(field.ring() + 48, data, 16, WRITE, 0);
    field.breaks()
}

pub fn indirect(field: &mut Field) -> Verdict {
    let count = least(&field.target);
    field.lay_indirect(count, u32::from(count) * 16);
    field.works(count)
}

pub fn indirect_long(field: &mut Field) -> Verdict {
    if field.target.kind == BALLOON {
        // It takes no more than 256 pieces; how many bytes it says to have written is the same.
        field.lay_indirect(1024, 1024 * 16);
        return field.works(1024);
    }
    field.lay_indirect(1024, 1024 * 16);
    field.works(1024)
}

pub fn indirect_too_long(field: &mut Field) -> Verdict {
    field.lay_indirect(least(&field.target), 1025 * 16);
    field.breaks()
}

pub fn indirect_nested(field: &mut Field) -> Verdict {
    let table = field.target.table();
    desc(field.ring(), table, 16, INDIRECT, 0);
    desc(table, table + 16, 16, INDIRECT, 0);
    field.breaks()
}

pub fn indirect_ring(field: &mut Field) -> Verdict {
    let (ring, size) = (field.ring(), u32::from(field.size()));
    desc(ring, ring, size * 16, INDIRECT, 0);
    field.breaks()
}

pub fn indirect_empty(field: &mut Field) -> Verdict {
    field.lay_indirect(least(&field.target), 0);
    field.breaks()
}

pub fn indirect_odd(field: &mut Field) -> Verdict {
    for len in [1, 15, 17, 16 * 3 + 8] {
        field.fresh();
        field.lay_indirect(least(&field.target), len);
        field.breaks()?;
    }
    Ok(())
}

pub fn indirect_huge(field: &mut Field) -> Verdict {
    field.lay_indirect(least(&field.target), 0xffff_fff0);
    field.breaks()
}

pub fn indirect_next(field: &mut Field) -> Verdict {
    let count = least(&field.target);
    lay(&field.target, field.queue, field.target.table(), count);
    desc(field.ring(), field.target.table(), u32::from(count) * 16, INDIRECT | NEXT, 1);
    desc(field.ring() + 16, field.target.data(), 16, WRITE, 0);
    field.breaks()
}

pub fn indirect_looping(field: &mut Field) -> Verdict {
    let table = field.target.table();
    desc(field.ring(), table, 32, INDIRECT, 0);
    desc(table, field.target.header(), 16, NEXT, 1);
    desc(table + 16, field.target.header(), 16, NEXT, 0);
    field.breaks()
}

pub fn indirect_index(field: &mut Field) -> Verdict {
    let table = field.target.table();
    desc(field.ring(), table, 32, INDIRECT, 0);
    desc(table, field.target.header(), 16, NEXT, 2);
    field.breaks()
}

pub fn indirect_at_zero(field: &mut Field) -> Verdict {
    let count = least(&field.target);
    lay(&field.target, field.queue, 0, count);
    desc(field.ring(), 0, u32::from(count) * 16, INDIRECT, 0);
    field.works(count)
}

pub fn flags(field: &mut Field) -> Verdict {
    let count = least(&field.target);
    field.lay(count);
    let mut at = field.ring();
    while at < field.ring() + u64::from(count) * 16 {
        write_word(at + 12, read_u16(at + 12) | 0xfff8);
        at += 16;
    }
    field.works(count)
}

/// What there is of lengths, with `len` in all of a chain's `count` buffers.
fn all_of_length(field: &mut Field, count: u16, len: u32) -> Verdict {
    field.lay_indirect(count, u32::from(count) * 16);
    let table = field.target.table();
    let mut i = 0;
    while i < u64::from(count) {
        write_u32(table + i * 16 + 8, len);
        i += 1;
    }
    field.ends()
}

pub fn empty(field: &mut Field) -> Verdict {
    let count = least(&field.target);
    all_of_length(field, count, 0)
}

pub fn huge(field: &mut Field) -> Verdict {
    let count = least(&field.target);
    all_of_length(field, count, u32::MAX)?;
    // Data alone: header and status are as they should be.
    field.fresh();
    field.with_buffer(field.target.data(), u32::MAX);
    field.ends()
}

pub fn thousand_huge(field: &mut Field) -> Verdict {
    all_of_length(field, 1000, u32::MAX)
}

pub fn last_bytes(field: &mut Field) -> Verdict {
    let (addr, len, count) = match (field.target.kind, field.queue) {
        (BLOCK, _) => (field.ram - 512, 512, 3),
        (BALLOON, 2) => (field.ram - 4096, 4096, 1),
        (BALLOON, _) => (field.ram - 4, 4, 1),
        (CONSOLE, 1) => (field.ram - 1, 1, 1),
        _ => (field.ram - 16, 16, 1),
    };
    if field.target.kind == BALLOON && field.queue != 2 {
        write_u32(addr, (SPARE >> 12) as u32);
    }
    if field.target.kind == CONSOLE && field.queue == 1 {
        write_u8(addr, b'.');
    }
    field.with_buffer(addr, len);
    field.works(count)
}

pub fn across_ram(field: &mut Field) -> Verdict {
    // A balloon gives back the part of a range that is RAM.
    field.refuses(field.ram - 8, 512)
}

pub fn across_hole(field: &mut Field) -> Verdict {
    field.refuses(field.ram - 8, 0x2000_0000)
}

pub fn in_device(field: &mut Field) -> Verdict {
    field.refuses(field.target.base, 512)?;
    field.fresh();
    field.refuses(field.other.base + 0x50, 512)
}

pub fn in_apic(field: &mut Field) -> Verdict {
    field.refuses(LOCAL_APIC, 512)
}

pub fn overflow(field: &mut Field) -> Verdict {
    field.refuses(u64::MAX - 10, 512)?;
    field.fresh();
    field.refuses(u64::MAX, 512)?;
    field.fresh();
    field.refuses(u64::MAX - 511, 512)
}

pub fn beyond(field: &mut Field) -> Verdict {
    for addr in [1u64 << 40, 1 << 52, 1 << 63, 0xffff_8000_0000_0000] {
        field.fresh();
        field.refuses(addr, 512)?;
    }
    Ok(())
}

fn table_at(field: &mut Field, addr: u64) -> Verdict {
    desc(field.ring(), addr, 64, INDIRECT, 0);
    field.breaks()
}

pub fn table_nowhere(field: &mut Field) -> Verdict {
    table_at(field, NOWHERE)?;
    field.fresh();
    table_at(field, 1 << 52)
}

pub fn table_across(field: &mut Field) -> Verdict {
    // The first entry is RAM, and the second is not.
    let table = field.ram - 16;
    desc(table, field.target.header(), 16, NEXT, 1);
    table_at(field, table)?;
    // Half of the first one is.
    field.fresh();
    table_at(field, field.ram - 8)
}

pub fn table_overflow(field: &mut Field) -> Verdict {
    table_at(field, u64::MAX - 15)?;
    field.fresh();
    table_at(field, u64::MAX - 3)
}

pub fn table_device(field: &mut Field) -> Verdict {
    table_at(field, field.target.base)?;
    field.fresh();
    table_at(field, LOCAL_APIC)
}
