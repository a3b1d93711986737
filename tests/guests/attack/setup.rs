//! Set-up: status, features, and queues out of order (virtio 1.2, 2.1, 3.1.1).

use super::driver::*;
use super::shape::*;
use super::{Field, Verdict, must};
use crate::io::*;

impl Field {
    fn works_now(&mut self) -> Verdict {
        must(request(&mut self.target, self.queue), "a request does not work")
    }
}

pub fn one_entry(field: &mut Field) -> Verdict {
    field.restart_with_size(1)?;
    let count = least(&field.target);
    let (ring, table) = (field.target.queues[field.queue].desc, field.target.table());
    let mut round = 0;
    while round < 20 {
        lay(&field.target, field.queue, table, count);
        desc(ring, table, u32::from(count) * 16, INDIRECT, 0);
        let end = field.target.submit(field.queue, 0);
        must(is_good(&field.target, field.queue, count, end), "a request does not work")?;
        round += 1;
    }
    Ok(())
}

/// A size that the register is told, and that the device cannot have.
fn size(field: &mut Field, size: u32) -> Verdict {
    field.target.acknowledge();
    field.target.accept(false);
    let queue = field.target.queues[field.queue];
    field.target.tell(&queue);
    field.target.set(QUEUE_NUM, size);
    field.target.set(QUEUE_READY, 1);
    field.target.set(STATUS, 15);
    field.target.kick(field.queue);
    must(field.target.is_broken(), "the device is at work")
}

pub fn no_entries(field: &mut Field) -> Verdict {
    size(field, 0)
}

pub fn three_entries(field: &mut Field) -> Verdict {
    size(field, 3)?;
    size(field, 7)
}

pub fn too_large(field: &mut Field) -> Verdict {
    let largest = u32::from(field.size());
    size(field, largest * 2)?;
    size(field, largest + 1)
}

pub fn half_of_all(field: &mut Field) -> Verdict {
    size(field, 32768)
}

pub fn more_than_all(field: &mut Field) -> Verdict {
    size(field, 65536)?;
    // Its lower half would do.
    size(field, 65536 + 4)?;
    size(field, u32::MAX)
}

/// Writes nonsense to all registers of the queue.
fn nonsense(field: &mut Field) {
    let mut queue = field.target.queues[field.queue];
    queue.size = 3;
    queue.desc = u64::MAX - 7;
    queue.avail_ring = 1;
    queue.used_ring = 0xd000_0000;
    field.target.tell(&queue);
}

pub fn after_ready(field: &mut Field) -> Verdict {
    field.target.acknowledge();
    field.target.accept(false);
    let mut queue = 0;
    while queue < field.target.count {
        let it = field.target.queues[queue];
        field.target.tell(&it);
        field.target.set(QUEUE_READY, 1);
        queue += 1;
    }
    nonsense(field);
    field.target.set(STATUS, 15);
    must(field.target.status() == 15 && field.wake_console(), "the device did not start")?;
    field.works_now()
}

pub fn at_work(field: &mut Field) -> Verdict {
    nonsense(field);
    field.works_now()?;
    field.target.set(QUEUE_SEL, field.queue as u32);
    field.target.set(QUEUE_READY, 0);
    nonsense(field);
    field.works_now()?;
    must(field.target.status() == 15, "the status has changed")
}

pub fn not_ready(field: &mut Field) -> Verdict {
    field.target.acknowledge();
    field.target.accept(false);
    let queue = field.target.queues[field.queue];
    field.target.tell(&queue);
    field.target.set(STATUS, 15);
    field.tries();
    must(field.target.queues[field.queue].used() == 0, "it is answered")?;
    must(field.target.status() == 15, "the status has changed")
}

/// Has the driver want these features; whether that is accepted.
fn accepts(field: &mut Field, low: u32, high: u32) -> bool {
    let target = &field.target;
    target.acknowledge();
    target.set(DRIVER_FEATURES_SEL, 0);
    target.set(DRIVER_FEATURES, low);
    target.set(DRIVER_FEATURES_SEL, 1);
    target.set(DRIVER_FEATURES, high);
    target.set(STATUS, 3 | FEATURES_OK);
    target.status() & FEATURES_OK != 0
}

pub fn never_offered(field: &mut Field) -> Verdict {
    let half = |field: &Field, half: u32| {
        field.target.set(FEATURES_SEL, half);
        field.target.reg(FEATURES)
    };
    let offered = u64::from(half(field, 1)) << 32 | u64::from(half(field, 0));
    must(half(field, 2) == 0 && half(field, u32::MAX) == 0, "there is a third half")?;
    let mut bit = 0;
    while bit < 64 {
        let wanted = 1u64 << bit | 1 << 32;
        let is_offered = offered & 1u64 << bit != 0;
        if accepts(field, wanted as u32, (wanted >> 32) as u32) != is_offered {
            return Err("what is accepted is not what is offered");
        }
        bit += 1;
    }
    must(!accepts(field, u32::MAX, u32::MAX), "all features are accepted")?;
    // And nothing starts by them.
    field.target.set(STATUS, 15);
    must(field.target.status() & DRIVER_OK == 0, "it starts")
}

pub fn legacy(field: &mut Field) -> Verdict {
    must(!accepts(field, 0, 0), "it is accepted")?;
    field.target.set(STATUS, 15);
    must(field.target.status() & (DRIVER_OK | FEATURES_OK) == 0, "it starts")
}

pub fn late_features(field: &mut Field) -> Verdict {
    must(accepts(field, 0, 1), "the least features are not accepted")?;
    field.target.set(DRIVER_FEATURES_SEL, 0);
    field.target.set(DRIVER_FEATURES, u32::MAX);
    let mut queue = 0;
    while queue < field.target.count {
        let it = field.target.queues[queue];
        field.target.tell(&it);
        field.target.set(QUEUE_READY, 1);
        queue += 1;
    }
    field.target.set(STATUS, 15);
    must(field.target.status() == 15 && field.wake_console(), "the device did not start")?;
    field.works_now()
}

pub fn no_features_ok(field: &mut Field) -> Verdict {
    for status in [4, 5, 6, 7] {
        field.target.reset();
        field.target.set(STATUS, status);
        must(field.target.status() & DRIVER_OK == 0, "it starts")?;
        field.tries();
        must(field.target.queues[field.queue].used() == 0, "it is answered")?;
    }
    Ok(())
}

pub fn all_at_once(field: &mut Field) -> Verdict {
    for status in [15, 0x7f, 0xff, u32::MAX] {
        field.target.reset();
        field.target.set(STATUS, status);
        must(field.target.status() & (DRIVER_OK | FEATURES_OK | NEEDS_RESET) == 0, "it starts")?;
    }
    Ok(())
}

pub fn twice(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 10 {
        field.works_now()?;
        field.target.set(STATUS, 15);
        field.target.set(STATUS, DRIVER_OK);
        round += 1;
    }
    must(field.target.status() == 15, "the status has changed")
}

pub fn needs_reset(field: &mut Field) -> Verdict {
    field.target.set(STATUS, 15 | NEEDS_RESET);
    must(field.target.status() == 15, "a driver can set it")?;
    // Nor can it clear it.
    super::chains::itself(field)?;
    field.target.set(STATUS, 15);
    must(field.target.is_broken(), "a driver can clear it")
}

pub fn failed(field: &mut Field) -> Verdict {
    field.target.set(STATUS, 15 | 128);
    field.target.set(STATUS, 0xffff_ffff);
    field.target.set(STATUS, 0x8000_0000);
    must(!field.target.is_broken(), "it breaks")?;
    field.tries();
    Ok(())
}

pub fn bits_stay(field: &mut Field) -> Verdict {
    for status in [1, 2, 4, 8, 11] {
        field.target.set(STATUS, status);
        must(field.target.status() == 15, "a bit is gone")?;
    }
    field.works_now()
}

pub fn early_kick(field: &mut Field) -> Verdict {
    field.target.reset();
    field.tries();
    field.target.set(STATUS, 3);
    field.tries();
    field.target.acknowledge();
    field.target.accept(false);
    let queue = field.target.queues[field.queue];
    field.target.tell(&queue);
    field.target.set(QUEUE_READY, 1);
    field.tries();
    must(field.target.queues[field.queue].used() == 0, "it is answered")
}

pub fn no_such_queue(field: &mut Field) -> Verdict {
    field.target.acknowledge();
    field.target.accept(false);
    for queue in [16, 64, 256, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX] {
        let it = Queue { number: queue, ..field.target.queues[field.queue] };
        field.target.tell(&it);
        field.target.set(QUEUE_READY, 1);
        must(field.target.reg(QUEUE_MAX) == 0, "it has a size")?;
        must(field.target.reg(QUEUE_READY) == 0, "it is ready")?;
    }
    Ok(())
}

pub fn resets(field: &mut Field) -> Verdict {
    let mut steps = 0;
    while steps < 7 {
        let target = &mut field.target;
        target.reset();
        let at = [1, 3, 3, 3, 3, 3, 3];
        let mut step = 0;
        while step < steps {
            match step {
                0 | 1 => target.set(STATUS, at[step]),
                2 => target.accept(true),
                3 => {
                    let queue = target.queues[0];
                    target.tell(&queue);
                }
                4 => target.set(QUEUE_READY, 1),
                5 => target.set(STATUS, 15),
                _ => target.kick(0),
            }
            step += 1;
        }
        target.reset();
        must(target.status() == 0, "the status is not 0")?;
        must(target.reg(0x060) == 0, "the interrupt status is not 0")?;
        must(target.reg(QUEUE_READY) == 0, "a queue is ready")?;
        steps += 1;
    }
    Ok(())
}

pub fn in_flight(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 50 {
        field.fresh();
        let count = least(&field.target);
        lay(&field.target, field.queue, field.target.queues[field.queue].desc, count);
        let mut left = field.size();
        while left > 0 {
            field.target.queues[field.queue].offer(0);
            left -= 1;
        }
        field.target.queues[field.queue].publish();
        field.target.kick(field.queue);
        field.target.reset();
        let (data, used) = (field.target.data(), field.target.queues[field.queue].used_ring);
        fill(data, 512, round);
        fill(used, 512, round);
        let mut spin = 0;
        while spin < 2000 {
            core::hint::spin_loop();
            spin += 1;
        }
        must(is_filled(data, 512, round), "data is written after a reset")?;
        must(is_filled(used, 512, round), "the used ring is written after a reset")?;
        round += 1;
    }
    must(read_u32(field.target.base) == 0x7472_6976, "the device is gone")
}
