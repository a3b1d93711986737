//! A virtio driver (virtio 1.2, MMIO transport) that can do everything wrong: it keeps no invariant of its own, so
//! that an attack may write what it likes in between.
//!
//! Each device has 2 MiB of memory to itself, in which everything has its place:
//!
//! ```text
//!   + 0x00_0000  queue 0: descriptors, + 0x2000 avail ring, + 0x4000 used ring
//!   + 0x00_8000  queue 1 ...
//!   + 0x10_0000  an indirect table
//!   + 0x12_0000  headers of requests; + 0x12_8000 their status bytes
//!   + 0x13_0000  data
//! ```

use crate::io::*;

const FIRST_PAGE: u64 = 0xd000_0000;
const PAGE: u64 = 0x1000;
const MEMORY: u64 = 0x80_0000;
const MEMORY_OF_EACH: u64 = 0x20_0000;

/// Descriptor flags (virtio 1.2, 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Registers (virtio 1.2, 4.2.2).
pub const FEATURES: u64 = 0x010;
pub const FEATURES_SEL: u64 = 0x014;
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_MAX: u64 = 0x034;
pub const QUEUE_NUM: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const NOTIFY: u64 = 0x050;
pub const STATUS: u64 = 0x070;
pub const DESC_LOW: u64 = 0x080;
pub const AVAIL_LOW: u64 = 0x090;
pub const USED_LOW: u64 = 0x0a0;
pub const CONFIG: u64 = 0x100;

pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;
const EVENT_IDX: u32 = 1 << 29;

/// Types of devices.
pub const BLOCK: u32 = 2;
pub const CONSOLE: u32 = 3;
pub const RNG: u32 = 4;
pub const BALLOON: u32 = 5;

/// What has become of a request.
#[derive(Clone, Copy, PartialEq)]
pub enum End {
    /// All chains are answered, the last with this length.
    Used(u32),
    /// It wants a reset.
    Broken,
    /// Nothing.
    Silence,
}

/// One queue, as far as this driver is with it.
#[derive(Clone, Copy)]
pub struct Queue {
    pub number: u32,
    /// Entries, as the driver has set them.
    pub size: u16,
    /// Where the next head goes.
    pub avail: u16,
    pub desc: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

impl Queue {
    /// Puts a head into the avail ring, without a word to the device.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.size.max(1));
        write_word(self.avail_ring + 4 + slot * 2, head);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows the device how far the avail ring goes.
    pub fn publish(&self) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        write_word(self.avail_ring + 2, self.avail);
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }

    /// The used index.
    pub fn used(&self) -> u16 {
        read_u16(self.used_ring + 2)
    }
}

/// A device, and the memory that this driver uses for it.
#[derive(Clone, Copy)]
pub struct Device {
    pub base: u64,
    pub kind: u32,
    pub memory: u64,
    pub queues: [Queue; QUEUES],
    /// How many there are, at most `QUEUES`.
    pub count: usize,
}

/// Queues of a device that are used.
pub const QUEUES: usize = 4;

/// A descriptor at `at`.
pub fn desc(at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    write_u64(at, addr);
    write_u32(at + 8, len);
    write_word(at + 12, flags);
    write_word(at + 14, next);
}

impl Device {
    /// The device on page `page`; `None` where there is none.
    pub fn find(page: u64) -> Option<Device> {
        let base = FIRST_PAGE + page * PAGE;
        if read_u32(base) != 0x7472_6976 || read_u32(base + 4) != 2 {
            return None;
        }
        let memory = MEMORY + page * MEMORY_OF_EACH;
        let mut device = Device {
            base,
            kind: read_u32(base + 8),
            memory,
            queues: [Queue { number: 0, size: 0, avail: 0, desc: 0, avail_ring: 0, used_ring: 0 }; QUEUES],
            count: 0,
        };
        let mut number = 0;
        while (number as usize) < QUEUES {
            device.set(QUEUE_SEL, number);
            let max = device.reg(QUEUE_MAX);
            if max == 0 {
                break;
            }
            device.queues[number as usize].number = number;
            device.place(number as usize);
            device.count += 1;
            number += 1;
        }
        Some(device)
    }

    pub fn reg(&self, offset: u64) -> u32 {
        read_u32(self.base + offset)
    }

    pub fn set(&self, offset: u64, value: u32) {
        write_u32(self.base + offset, value);
    }

    pub fn status(&self) -> u32 {
        self.reg(STATUS)
    }

    pub fn is_broken(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    pub fn table(&self) -> u64 {
        self.memory + 0x10_0000
    }

    pub fn header(&self) -> u64 {
        self.memory + 0x12_0000
    }

    pub fn answer(&self) -> u64 {
        self.memory + 0x12_8000
    }

    pub fn data(&self) -> u64 {
        self.memory + 0x13_0000
    }

    pub fn reset(&self) {
        self.set(STATUS, 0);
    }

    /// From a reset to where features can be chosen.
    pub fn acknowledge(&self) {
        self.reset();
        self.set(STATUS, 1);
        self.set(STATUS, 3);
    }

    /// Accepts what is offered, but for EVENT_IDX unless it is wanted.
    pub fn accept(&self, event_idx: bool) {
        self.set(FEATURES_SEL, 0);
        let offered = self.reg(FEATURES);
        self.set(DRIVER_FEATURES_SEL, 0);
        self.set(DRIVER_FEATURES, if event_idx { offered } else { offered & !EVENT_IDX });
        self.set(DRIVER_FEATURES_SEL, 1);
        self.set(DRIVER_FEATURES, 1);
        self.set(STATUS, 3 | FEATURES_OK);
    }

    /// Where a queue is as a rule, as large as can be, and empty.
    fn place(&mut self, queue: usize) {
        let it = &mut self.queues[queue];
        write_u32(self.base + QUEUE_SEL, it.number);
        it.size = read_u32(self.base + QUEUE_MAX) as u16;
        it.avail = 0;
        it.desc = self.memory + u64::from(it.number) * 0x8000;
        it.avail_ring = it.desc + 0x2000;
        it.used_ring = it.desc + 0x4000;
        let mut at = it.desc;
        while at < it.desc + 0x8000 {
            write_u64(at, 0);
            at += 8;
        }
    }

    /// Writes size and addresses of a queue.
    pub fn tell(&self, queue: &Queue) {
        self.set(QUEUE_SEL, queue.number);
        self.set(QUEUE_NUM, queue.size.into());
        for (register, address) in [
            (DESC_LOW, queue.desc),
            (AVAIL_LOW, queue.avail_ring),
            (USED_LOW, queue.used_ring),
        ] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
    }

    /// Resets the device and starts it, by the letter. Whether it is at work then.
    pub fn start(&mut self, event_idx: bool) -> bool {
        self.start_with(event_idx, QUEUES, |_| {})
    }

    /// The same with `queue` changed before the device is told of it.
    pub fn start_with(&mut self, event_idx: bool, queue: usize, change: impl Fn(&mut Queue)) -> bool {
        self.acknowledge();
        self.accept(event_idx);
        let mut at = 0;
        while at < self.count {
            self.place(at);
            if at == queue {
                change(&mut self.queues[at]);
            }
            self.tell(&self.queues[at]);
            self.set(QUEUE_READY, 1);
            at += 1;
        }
        self.set(STATUS, 15);
        self.status() == 15
    }

    pub fn kick(&self, queue: usize) {
        self.set(NOTIFY, self.queues[queue].number);
    }

    /// Offers the chain at `head`, and waits.
    pub fn submit(&mut self, queue: usize, head: u16) -> End {
        self.queues[queue].offer(head);
        self.queues[queue].publish();
        self.kick(queue);
        self.wait(queue)
    }

    /// Waits until all that was offered is answered, for longer than a busy host may take.
    pub fn wait(&self, queue: usize) -> End {
        let begin = super::now();
        loop {
            let end = self.wait_for(queue, 100);
            if end != End::Silence || super::now() - begin > LONG {
                return end;
            }
        }
    }

    /// Whether the device asks for a reset, for as long.
    pub fn breaks(&self) -> bool {
        let begin = super::now();
        while !self.is_broken() {
            if super::now() - begin > LONG {
                return false;
            }
        }
        true
    }

    /// Waits for so many looks at the status register: each is an exit, some microseconds.
    pub fn wait_for(&self, queue: usize, looks: u32) -> End {
        let queue = &self.queues[queue];
        let mut look = 0;
        while look < looks {
            let mut spin = 0;
            while spin < 200 {
                if queue.used() == queue.avail {
                    let last = u64::from(queue.avail.wrapping_sub(1) % queue.size.max(1));
                    return End::Used(read_u32(queue.used_ring + 4 + last * 8 + 4));
                }
                core::hint::spin_loop();
                spin += 1;
            }
            if self.is_broken() {
                return End::Broken;
            }
            look += 1;
        }
        End::Silence
    }
}

/// Ticks of the TSC after which a device counts as one that does not answer: some ten seconds.
pub const LONG: u64 = 30_000_000_000;
