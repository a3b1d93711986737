//! Several vCPUs at once: what changes while it is read, and storms.
//!
//! The other vCPUs wait in ring 3 for something to do, do it until they are stopped, and wait again.

use super::driver::*;
use super::shape::*;
use super::{Field, Numbers, Verdict, must, now};
use crate::entry::come;
use crate::io::*;

/// What the others are to do: the number of the order, what, for which device and queue, and since when it is over.
static mut ORDER: [u64; 5] = [0; 5];
/// Not 0: the first vCPU is in ring 3, and with it the page tables for all.
static mut OPEN: u64 = 0;
/// The last order that each of them is done with.
static mut DONE: [u64; 8] = [0; 8];

const NUMBER: u64 = 0;
const TASK: u64 = 1;
const DEVICE: u64 = 2;
const QUEUE: u64 = 3;
const OVER: u64 = 4;

fn order(word: u64) -> u64 {
    (&raw const ORDER) as u64 + word * 8
}

fn done(number: u64) -> u64 {
    (&raw const DONE) as u64 + number % 8 * 8
}

/// Lets the other vCPUs come to ring 3.
pub fn open() {
    write_u64((&raw const OPEN) as u64, 1);
}

/// One of the other vCPUs, in ring 0.
pub extern "C" fn other(number: u64) -> ! {
    while read_u64((&raw const OPEN) as u64) == 0 {
        core::hint::spin_loop();
    }
    crate::user::enter(number, obey, crate::command_line())
}

extern "C" fn obey(number: u64) -> ! {
    let mut last = 0;
    loop {
        let current = read_u64(order(NUMBER));
        if current == last {
            core::hint::spin_loop();
            continue;
        }
        last = current;
        let task = read_u64(order(TASK)) as usize;
        // SAFETY: `with_others` keeps the device where it is until all are done.
        let device = unsafe { &*(read_u64(order(DEVICE)) as *const Device) };
        let mut numbers = Numbers(last << 8 | number << 1 | 1);
        while read_u64(order(OVER)) != last {
            TASKS[task % TASKS.len()](device, read_u64(order(QUEUE)) as usize, &mut numbers);
        }
        write_u64(done(number), last);
    }
}

type Task = fn(&Device, usize, &mut Numbers);

static TASKS: [Task; 8] = [
    change_descriptors,
    change_table,
    change_headers,
    change_indices,
    reset,
    reset_and_start,
    any_register,
    kick,
];

/// Something to put where an address, a length, flags or an index is.
fn word(device: &Device, numbers: &mut Numbers) -> u64 {
    match numbers.below(6) {
        0 => device.data(),
        1 => device.header(),
        2 => device.table(),
        3 => numbers.below(1 << 20),
        4 => numbers.next(),
        _ => numbers.below(8) << 32 | numbers.below(4) << 48 | numbers.below(64),
    }
}

fn change_descriptors(device: &Device, queue: usize, numbers: &mut Numbers) {
    let at = device.queues[queue].desc + numbers.below(16) * 8;
    write_u64(at, word(device, numbers));
}

fn change_table(device: &Device, _queue: usize, numbers: &mut Numbers) {
    write_u64(device.table() + numbers.below(16) * 8, word(device, numbers));
}

fn change_headers(device: &Device, _queue: usize, numbers: &mut Numbers) {
    let kind = [0, 1, 4, 8, 11, 13, 99][numbers.below(7) as usize];
    match numbers.below(3) {
        0 => write_u32(device.header(), kind),
        1 => write_u64(device.header() + 8, numbers.next() >> numbers.below(64)),
        _ => write_u64(device.data() + numbers.below(4) * 8, numbers.next() >> numbers.below(64)),
    }
}

fn change_indices(device: &Device, queue: usize, numbers: &mut Numbers) {
    let it = &device.queues[queue];
    let value = numbers.next() as u16;
    match numbers.below(5) {
        0 => write_word(it.avail_ring + 2, value % it.size.max(1)),
        1 => write_word(it.avail_ring + 4 + numbers.below(8) * 2, value % 8),
        2 => write_word(it.used_ring + 2, value),
        3 => write_word(it.avail_ring, value),
        _ => write_word(it.avail_ring + 2, value),
    }
}

fn reset(device: &Device, _queue: usize, numbers: &mut Numbers) {
    device.reset();
    super::wait(numbers.below(1_000_000));
}

fn reset_and_start(device: &Device, _queue: usize, _numbers: &mut Numbers) {
    let mut mine = *device;
    mine.start(true);
    mine.kick(0);
}

fn any_register(device: &Device, _queue: usize, numbers: &mut Numbers) {
    let register = [
        FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL, QUEUE_SEL, QUEUE_NUM, QUEUE_READY, NOTIFY, STATUS,
        DESC_LOW, AVAIL_LOW, USED_LOW, CONFIG, 0x064,
    ][numbers.below(13) as usize];
    let value = match register {
        STATUS => [0, 1, 3, 11, 15, 15, 15][numbers.below(7) as usize],
        QUEUE_SEL | NOTIFY => numbers.below(4),
        _ => numbers.next() >> numbers.below(64),
    };
    device.set(register, value as u32);
}

fn kick(device: &Device, queue: usize, numbers: &mut Numbers) {
    device.kick(queue);
    device.set(NOTIFY, numbers.below(5) as u32);
}

/// Has the others do a task while `mine` is done again and again, for a while.
fn with_others(field: &mut Field, task: u64, mine: fn(&mut Field)) -> Verdict {
    must(come() > 0, "there is no other vCPU")?;
    let device = field.target;
    write_u64(order(TASK), task);
    write_u64(order(DEVICE), (&raw const device) as u64);
    write_u64(order(QUEUE), field.queue as u64);
    let number = read_u64(order(NUMBER)) + 1;
    write_u64(order(NUMBER), number);
    let begin = now();
    let mut rounds = 0;
    // Some tens of milliseconds, and at least so many rounds.
    while rounds < 20 || now() - begin < 100_000_000 * field.rounds {
        mine(field);
        rounds += 1;
    }
    write_u64(order(OVER), number);
    let mut vcpu = 1;
    while vcpu <= come() {
        let begin = now();
        while read_u64(done(vcpu)) != number {
            core::hint::spin_loop();
            if now() - begin > 100_000_000_000 {
                return Err("a vCPU does not come back");
            }
        }
        vcpu += 1;
    }
    Ok(())
}

/// Starts a broken target again, and offers a few chains, of which any may be in any state.
fn offer(field: &mut Field, indirect: bool) {
    if field.target.status() != 15 {
        field.fresh();
    }
    let count = least(&field.target);
    let ring = field.target.queues[field.queue].desc;
    let mut chains = 0;
    while chains < 4 {
        if indirect {
            lay(&field.target, field.queue, field.target.table(), count);
            desc(ring, field.target.table(), u32::from(count) * 16, INDIRECT, 0);
        } else {
            lay(&field.target, field.queue, ring, count);
        }
        field.target.queues[field.queue].offer(0);
        field.target.queues[field.queue].publish();
        field.target.kick(field.queue);
        chains += 1;
    }
    if field.target.wait_for(field.queue, 10) == End::Silence {
        // Whatever has become of the indices: from the start.
        field.fresh();
    }
}

pub fn descriptors(field: &mut Field) -> Verdict {
    with_others(field, 0, |field| offer(field, false))
}

pub fn indirect(field: &mut Field) -> Verdict {
    with_others(field, 1, |field| offer(field, true))
}

pub fn headers(field: &mut Field) -> Verdict {
    with_others(field, 2, |field| offer(field, false))
}

pub fn indices(field: &mut Field) -> Verdict {
    with_others(field, 3, |field| offer(field, false))
}

pub fn resets(field: &mut Field) -> Verdict {
    with_others(field, 4, |field| offer(field, true))
}

pub fn reset_storm(field: &mut Field) -> Verdict {
    with_others(field, 5, |field| {
        field.target.start(false);
        field.target.kick(field.queue);
    })
}

pub fn registers(field: &mut Field) -> Verdict {
    with_others(field, 6, |field| {
        let device = field.target;
        any_register(&device, field.queue, &mut field.numbers);
    })
}

pub fn kicks(field: &mut Field) -> Verdict {
    with_others(field, 7, |field| offer(field, false))
}
