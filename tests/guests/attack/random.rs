//! Rings and orders of registers at random. The test says the seed.

use super::driver::*;
use super::shape::*;
use super::{Field, Verdict};
use crate::io::*;

impl Field {
    /// An address, more often than not one at which there is something.
    fn address(&mut self) -> u64 {
        let memory = self.target.memory;
        match self.numbers.below(12) {
            0..6 => memory + self.numbers.below(0x1f_0000),
            6 => self.target.data(),
            7 => self.ram - self.numbers.below(64),
            8 => self.target.base + self.numbers.below(4096),
            9 => u64::MAX - self.numbers.below(64),
            10 => self.target.queues[self.queue].desc + self.numbers.below(0x8000),
            _ => {
                let shift = self.numbers.below(64);
                // What is RAM and not the target's is not its to write.
                (self.numbers.next() >> shift) | 1 << 40
            }
        }
    }

    fn length(&mut self) -> u32 {
        match self.numbers.below(6) {
            0 => 16,
            1 => 512 * self.numbers.below(16) as u32,
            2 => 1,
            3 => self.numbers.below(5000) as u32,
            4 => 0,
            _ => {
                let shift = self.numbers.below(32);
                (self.numbers.next() as u32) >> shift
            }
        }
    }

    fn random_descriptor(&mut self, at: u64, entries: u64) {
        let mut len = self.length();
        let addr = self.address();
        // A long one that begins in RAM may end in what is not the target's, the guest's own code for one.
        if addr < self.ram {
            len = len.min((self.target.memory + 0x20_0000).saturating_sub(addr) as u32);
        }
        let flags = [0, NEXT, NEXT, NEXT | WRITE, WRITE, INDIRECT, INDIRECT | NEXT, 0xffff];
        let flags = flags[self.numbers.below(8) as usize];
        let next = self.numbers.below(entries + 2) as u16;
        let (addr, len) = match flags & INDIRECT {
            0 => (addr, len),
            _ if self.numbers.below(4) > 0 => (self.target.table(), 16 * self.numbers.below(20) as u32),
            _ => (addr, len),
        };
        desc(at, addr, len, flags, next);
    }

    /// Some of a chain that makes sense, as all nonsense is found out at once.
    fn random_chain(&mut self, sense: bool) {
        let size = self.target.queues[self.queue].size.max(1);
        let (ring, table) = (self.target.queues[self.queue].desc, self.target.table());
        let count = least(&self.target) + self.numbers.below(4) as u16;
        let entries = u64::from(size.min(16));
        let mut i = 0;
        while i < entries {
            self.random_descriptor(ring + i * 16, entries);
            self.random_descriptor(table + i * 16, entries);
            i += 1;
        }
        if sense {
            lay(&self.target, self.queue, ring, count.min(size));
            let some = self.numbers.below(u64::from(count.min(size)));
            if self.numbers.below(2) == 0 {
                self.random_descriptor(ring + some * 16, entries);
            }
            let kind = self.numbers.below(20) as u32;
            if self.target.kind == BLOCK {
                write_u32(self.target.header(), kind);
                write_u64(self.target.header() + 8, self.numbers.next() >> self.numbers.below(64));
            }
        }
    }
}

pub fn chains(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 300 * field.rounds {
        if field.target.status() != 15 {
            let event_idx = field.numbers.below(2) == 0;
            field.fresh_with(event_idx);
        }
        let sense = field.numbers.below(3) > 0;
        field.random_chain(sense);
        let head = if sense { 0 } else { field.numbers.below(17) as u16 };
        field.target.queues[field.queue].offer(head);
        field.target.queues[field.queue].publish();
        field.target.kick(field.queue);
        if field.target.wait_for(field.queue, 200) == End::Silence {
            // What was read was put over the ring, or the used index is somewhere else by now.
            field.fresh();
        }
        round += 1;
    }
    Ok(())
}

pub fn rings(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 150 * field.rounds {
        let largest = field.target.reg(QUEUE_MAX).max(1);
        let queue = field.queue;
        let (desc, avail, used) = (field.address(), field.address(), field.address());
        let what = field.numbers.below(8);
        let size = 1u16 << field.numbers.below(9).min(u64::from(largest.ilog2()));
        let started = field.target.start_with(round % 2 == 0, queue, |queue| {
            queue.size = size;
            if what & 1 != 0 {
                queue.desc = desc & !15;
            }
            if what & 2 != 0 {
                queue.avail_ring = avail & !1;
            }
            if what & 4 != 0 {
                queue.used_ring = used & !3;
            }
        });
        // The driver writes to its rings as well, and must not do so outside of its memory.
        let it = field.target.queues[queue];
        let ours = |at: u64| at >= field.target.memory && at < field.target.memory + 0x1f_0000;
        if started && ours(it.desc) && ours(it.avail_ring) && ours(it.used_ring) {
            field.random_chain(true);
            field.target.queues[queue].offer(0);
            field.target.queues[queue].publish();
            field.target.kick(queue);
            field.target.wait_for(queue, 5);
        } else {
            field.target.kick(queue);
        }
        round += 1;
    }
    Ok(())
}

/// One register, at random.
fn order(field: &mut Field) {
    let offset = match field.numbers.below(10) {
        0 => field.numbers.below(0x1000),
        1 => CONFIG + field.numbers.below(64),
        _ => 4 * field.numbers.below(0x30),
    };
    let value = match offset {
        STATUS => [0, 1, 3, 11, 15, 15, 4, 128][field.numbers.below(8) as usize],
        QUEUE_SEL | NOTIFY => field.numbers.below(5) as u32,
        QUEUE_NUM => 1 << field.numbers.below(18),
        QUEUE_READY => field.numbers.below(3) as u32,
        DESC_LOW | AVAIL_LOW | USED_LOW => {
            let at = field.address();
            // No other's memory: what a device finds in RAM as its ring, it writes to.
            if at < field.ram { at as u32 & !15 } else { (at as u32) | 0xc000_0000 }
        }
        0x084 | 0x094 | 0x0a4 => 0,
        _ => {
            let shift = field.numbers.below(32);
            (field.numbers.next() as u32) >> shift
        }
    };
    field.target.set(offset & !3, value);
}

pub fn orders(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 1500 * field.rounds {
        order(field);
        round += 1;
    }
    Ok(())
}

pub fn both(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 60 * field.rounds {
        if field.numbers.below(3) == 0 {
            field.fresh();
        }
        let mut orders = field.numbers.below(6);
        while orders > 0 {
            order(field);
            orders -= 1;
        }
        field.random_chain(true);
        field.target.queues[field.queue].offer(0);
        field.target.queues[field.queue].publish();
        field.target.kick(field.queue);
        field.target.wait_for(field.queue, 5);
        round += 1;
    }
    Ok(())
}
