//! Rings: their indices, and where they lie (virtio 1.2, 2.7).

use super::driver::*;
use super::shape::*;
use super::{Field, Verdict, must};
use crate::io::*;

const IN_A_DEVICE: u64 = 0xd000_0000;
const NOWHERE: u64 = 0xc800_0000;

impl Field {
    /// Starts the target with its queue changed. Whether it is at work then.
    pub fn start_with(&mut self, change: impl Fn(&mut Queue)) -> bool {
        self.target.start_with(false, self.queue, change) && self.wake_console()
    }

    pub fn restart_with_size(&mut self, size: u16) -> Verdict {
        must(self.start_with(|queue| queue.size = size), "the device did not start")
    }

    fn queue(&mut self) -> &mut Queue {
        &mut self.target.queues[self.queue]
    }

    /// A request whose chain begins at entry 0.
    fn lay_one(&self) {
        lay(&self.target, self.queue, self.target.queues[self.queue].desc, least(&self.target));
    }

    /// DRIVER_OK with the queue changed has the device ask for a reset.
    pub fn is_refused(&mut self, change: impl Fn(&mut Queue)) -> Verdict {
        self.target.start_with(false, self.queue, change);
        must(self.target.is_broken(), "the device is at work")?;
        // Nothing that is kicked now may do anything.
        self.target.kick(self.queue);
        must(self.target.is_broken(), "a kick mends it")
    }

    /// Offers a chain in rings that make no sense; whatever becomes of it. It may have no end, as the rings may
    /// not be able to say so.
    pub fn tries(&mut self) {
        self.lay_one();
        self.target.queues[self.queue].offer(0);
        self.target.queues[self.queue].publish();
        self.target.kick(self.queue);
        self.target.wait_for(self.queue, 20);
    }
}

fn jump(field: &mut Field, to: u16) -> Verdict {
    field.lay_one();
    field.queue().avail = to;
    let queue = *field.queue();
    queue.publish();
    field.target.kick(field.queue);
    must(field.target.breaks(), "it does not break")
}

pub fn one_too_far(field: &mut Field) -> Verdict {
    jump(field, field.size() + 1)
}

pub fn half_way(field: &mut Field) -> Verdict {
    jump(field, 0x8000)
}

pub fn back(field: &mut Field) -> Verdict {
    jump(field, 0xffff)?;
    // Not from the start either.
    field.fresh();
    must(request(&mut field.target, field.queue), "a request does not work")?;
    jump(field, 0)
}

pub fn same_head(field: &mut Field) -> Verdict {
    field.lay_one();
    let mut left = field.size();
    while left > 0 {
        field.queue().offer(0);
        left -= 1;
    }
    field.queue().publish();
    field.target.kick(field.queue);
    match field.target.wait(field.queue) {
        End::Used(_) => Ok(()),
        End::Broken => Err("the queue breaks"),
        End::Silence => Err("not all are answered"),
    }
}

pub fn wrap(field: &mut Field) -> Verdict {
    // Chains that cost nothing: of a disk, a request that it does not know; else, a buffer of no length.
    let ring = field.queue().desc;
    if field.target.kind == BLOCK {
        disk_header(&field.target, 99, 0);
        desc(ring, field.target.header(), 16, NEXT, 1);
        desc(ring + 16, field.target.answer(), 1, WRITE, 0);
    } else if field.target.kind == CONSOLE && field.queue == 0 {
        desc(ring, field.target.data(), 1, WRITE, 0);
    } else {
        let flags = if field.target.kind == RNG || field.queue == 2 { WRITE } else { 0 };
        desc(ring, field.target.data(), 0, flags, 0);
    }
    let mut done = 0u32;
    while done < 0x1_0000 {
        let mut some = field.size();
        while some > 0 {
            field.queue().offer(0);
            some -= 1;
            done += 1;
        }
        field.queue().publish();
        field.target.kick(field.queue);
        match field.target.wait(field.queue) {
            End::Used(_) => {}
            End::Broken => return Err("the queue breaks"),
            End::Silence => return Err("it stops"),
        }
    }
    must(field.queue().avail == 0, "it has not come round")?;
    must(request(&mut field.target, field.queue), "a request after it does not work")?;
    // Beyond the queue, where the index has come round.
    jump(field, field.size() + 2)
}

pub fn flags(field: &mut Field) -> Verdict {
    let queue = *field.queue();
    write_word(queue.avail_ring, 0xffff);
    write_word(queue.used_ring, 0xffff);
    write_word(queue.avail_ring + 4 + u64::from(queue.size) * 2, 0xffff);
    write_word(queue.used_ring + 4 + u64::from(queue.size) * 8, 0xffff);
    must(request(&mut field.target, field.queue), "a request does not work")
}

pub fn used_event(field: &mut Field) -> Verdict {
    must(field.fresh_with(true), "the device did not start")?;
    let mut round = 0;
    while round < 50 {
        let queue = *field.queue();
        let event = field.numbers.next() as u16;
        write_word(queue.avail_ring + 4 + u64::from(queue.size) * 2, event);
        // The device's own, which it may read back.
        write_word(queue.used_ring + 4 + u64::from(queue.size) * 8, !event);
        write_word(queue.used_ring, event);
        must(request(&mut field.target, field.queue), "a request does not work")?;
        round += 1;
    }
    Ok(())
}

/// Rings in one place with each other: the device may break or answer, and others do not notice.
fn overlap(field: &mut Field, change: impl Fn(&mut Queue)) -> Verdict {
    if field.target.start_with(false, field.queue, change) {
        field.wake_console();
        let mut round = 0;
        while round < 5 {
            field.tries();
            round += 1;
        }
    }
    Ok(())
}

pub fn one_place(field: &mut Field) -> Verdict {
    overlap(field, |queue| queue.used_ring = queue.avail_ring)?;
    overlap(field, |queue| queue.used_ring = queue.avail_ring + 4)
}

pub fn descriptors_used(field: &mut Field) -> Verdict {
    overlap(field, |queue| queue.used_ring = queue.desc)?;
    overlap(field, |queue| queue.avail_ring = queue.desc)
}

pub fn all_in_one(field: &mut Field) -> Verdict {
    overlap(field, |queue| {
        queue.used_ring = queue.desc;
        queue.avail_ring = queue.desc;
    })
}

/// A request whose data is at `at`.
fn data_at(field: &mut Field, at: u64) -> Verdict {
    let mut round = 0;
    while round < 5 {
        field.fresh();
        field.lay_one();
        let data = field.queue().desc + if field.target.kind == BLOCK { 16 } else { 0 };
        write_u64(data, at);
        field.target.queues[field.queue].offer(0);
        field.target.queues[field.queue].publish();
        field.target.kick(field.queue);
        field.target.wait_for(field.queue, 20);
        field.tries();
        round += 1;
    }
    Ok(())
}

pub fn data_in_used(field: &mut Field) -> Verdict {
    data_at(field, field.target.queues[field.queue].used_ring)
}

pub fn data_in_avail(field: &mut Field) -> Verdict {
    data_at(field, field.target.queues[field.queue].avail_ring)
}

pub fn data_in_descriptors(field: &mut Field) -> Verdict {
    data_at(field, field.target.queues[field.queue].desc)
}

pub fn at_zero(field: &mut Field) -> Verdict {
    overlap(field, |queue| queue.desc = 0)?;
    overlap(field, |queue| queue.used_ring = 0)?;
    overlap(field, |queue| queue.avail_ring = 0)?;
    // All of them: a driver that says "ready" and nothing else.
    field.target.acknowledge();
    field.target.accept(false);
    field.target.set(QUEUE_SEL, field.queue as u32);
    field.target.set(QUEUE_READY, 1);
    field.target.set(STATUS, 15);
    field.target.kick(field.queue);
    Ok(())
}

pub fn in_device(field: &mut Field) -> Verdict {
    field.is_refused(|queue| queue.desc = IN_A_DEVICE)?;
    field.is_refused(|queue| queue.avail_ring = IN_A_DEVICE)?;
    field.is_refused(|queue| queue.used_ring = IN_A_DEVICE)
}

pub fn nowhere(field: &mut Field) -> Verdict {
    for place in [NOWHERE, 1 << 46, 1 << 63] {
        field.is_refused(|queue| queue.desc = place)?;
        field.is_refused(|queue| queue.avail_ring = place)?;
        field.is_refused(|queue| queue.used_ring = place)?;
    }
    Ok(())
}

pub fn across(field: &mut Field) -> Verdict {
    let end = field.ram;
    field.is_refused(|queue| queue.desc = end - 16)?;
    field.is_refused(|queue| queue.avail_ring = end - 4)?;
    field.is_refused(|queue| queue.used_ring = end - 4)?;
    // By the last two bytes, which are the event's (2.7.6, 2.7.8).
    field.is_refused(|queue| queue.avail_ring = end - 4 - 2 * u64::from(queue.size))?;
    // One that ends where RAM does works.
    let good = field.start_with(|queue| queue.avail_ring = end - 6 - 2 * u64::from(queue.size));
    must(good && request(&mut field.target, field.queue), "a ring at the end of RAM does not work")
}

pub fn overflow(field: &mut Field) -> Verdict {
    field.is_refused(|queue| queue.desc = u64::MAX - 15)?;
    field.is_refused(|queue| queue.avail_ring = u64::MAX - 1)?;
    field.is_refused(|queue| queue.used_ring = u64::MAX - 3)
}

pub fn odd(field: &mut Field) -> Verdict {
    field.is_refused(|queue| queue.desc += 8)?;
    field.is_refused(|queue| queue.avail_ring += 1)?;
    field.is_refused(|queue| queue.used_ring += 2)
}

pub fn two_queues(field: &mut Field) -> Verdict {
    if field.target.count < 2 {
        return Ok(());
    }
    let other = usize::from(field.queue == 0);
    let same = field.target.queues[other];
    if field.start_with(|queue| {
        queue.desc = same.desc;
        queue.avail_ring = same.avail_ring;
        queue.used_ring = same.used_ring;
    }) {
        let mut round = 0;
        while round < 20 {
            field.tries();
            field.target.kick(other);
            round += 1;
        }
    }
    Ok(())
}
