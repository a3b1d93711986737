//! Any access to the registers of virtio devices, in any order, with their queues anywhere in RAM.
//!
//! A block device, an entropy source, a balloon and a console share the machine. The driver is now in order and now
//! not: it sets queues up and breaks them, writes into its rings and buffers while requests wait, resets, and reads
//! and writes registers in every width at every offset. A model of the registers (virtio 1.2, 2.1 and 4.2.2) knows
//! what each has to read. At the end a driver that is in order has to get its answer.

use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use bantam::board::Part;
use bantam::memory::Backing;
use bantam::storage::raw::Raw;
use bantam::storage::{CacheMode, IoMode};
use bantam::virtio::OnMmio;
use bantam::virtio::balloon::BalloonModel;
use bantam::virtio::block::BlockModel;
use bantam::virtio::console::ConsoleModel;
use bantam::virtio::rng::RngModel;

use crate::driver::{self, DRIVER_OK, Descriptor, NEEDS_RESET, Places, VERSION_1, register::*};
use crate::registers::Registers;
use crate::world::{RAM_END, World, file_of};

/// Kind and queues of each device, with their largest sizes.
const DEVICES: [(u32, &[u32]); 4] = [(2, &[256, 256]), (4, &[8]), (5, &[128; 3]), (3, &[16; 2])];
const SERIAL: &[u8; 20] = b"mmio-target-serial-1";

/// Operations of a guest, and of whoever runs it.
#[derive(Arbitrary, Debug)]
pub enum Op {
    /// A read of registers.
    Read {
        /// Which device.
        device: u8,
        /// Where.
        offset: Offset,
        /// How many bytes.
        width: u8,
    },
    /// A write of registers.
    Write {
        /// Which device.
        device: u8,
        /// Where.
        offset: Offset,
        /// How many bytes.
        width: u8,
        /// What.
        value: u64,
    },
    /// A write to RAM.
    Poke {
        /// Where.
        at: u16,
        /// What.
        bytes: [u8; 8],
    },
    /// A driver in order takes the device up.
    Begin {
        /// Which device.
        device: u8,
        /// What is agreed on of what is offered.
        features: u64,
        /// log2 of the sizes of the queues.
        size: u8,
        /// Where the rings are, which may be over each other.
        overlap: bool,
    },
    /// A chain is offered.
    Offer {
        /// Which device.
        device: u8,
        /// Which queue.
        queue: u8,
        /// The descriptors.
        chain: Vec<Buffer>,
        /// The first bytes of the first buffer.
        header: [u8; 16],
    },
    /// The avail index is anything.
    Index {
        /// Which device.
        device: u8,
        /// Which queue.
        queue: u8,
        /// The index.
        index: u16,
    },
    /// The event loop has its turn.
    Run,
    /// The machine is paused.
    Pause,
    /// It goes on.
    Resume,
    /// Something is typed.
    Type(Vec<u8>),
    /// What was printed is taken.
    Drain,
    /// The state is taken, and put back.
    Restore {
        /// Which device.
        device: u8,
    },
}

/// An offset in a page of registers.
#[derive(Arbitrary, Debug)]
pub enum Offset {
    /// Anywhere, now and then behind the page.
    Any(u16),
    /// A register of 32 bits.
    Register(u8),
}

/// A buffer of a chain.
#[derive(Arbitrary, Debug)]
pub struct Buffer {
    at: u16,
    far: bool,
    len: u16,
    flags: u8,
    next: i8,
}

impl Offset {
    fn value(&self) -> u64 {
        match self {
            Offset::Any(offset) => u64::from(*offset) % 0x1010,
            Offset::Register(number) => u64::from(*number) * 4,
        }
    }
}

/// Where the rings are, one queue after the other.
const RINGS: u64 = 0x8000;

/// Where the rings of a queue are when the driver is in order.
pub fn places(device: usize, queue: usize) -> Places {
    let before = DEVICES.iter().take(device).map(|device| device.1.len());
    let base = RINGS + 0x2000 * (before.sum::<usize>() + queue) as u64;
    Places {
        desc: base,
        avail: base + 0x1000,
        used: base + 0x1400,
    }
}

/// The machine under test, and its model.
pub struct Bench {
    /// The machine.
    pub world: World,
    registers: Vec<Registers>,
    config: Vec<u8>,
    avail: Vec<Vec<u16>>,
    sizes: Vec<u16>,
    paused: bool,
    unknown: bool,
}

impl Bench {
    /// A machine that was just switched on.
    pub fn new() -> Self {
        let disk: Vec<u8> = (0..4096u32).map(|i| (i / 512 + i) as u8).collect();
        let image = Raw::new(file_of(&disk), 4096, CacheMode::Writeback).expect("a file");
        let block = BlockModel {
            image: Arc::new(image),
            path: "fuzz".into(),
            lock: None,
            read_only: false,
            snapshot: false,
            discard: true,
            serial: String::from_utf8_lossy(SERIAL).into(),
            queues: 2,
            io: IoMode::Inline,
            limit_requests: None,
            limit_bytes: None,
            io_thread: false,
            poll: Duration::ZERO,
            flushes: Arc::default(),
        };
        let parts: Vec<Box<dyn Part>> = vec![
            Box::new(OnMmio(block)),
            Box::new(OnMmio(RngModel)),
            Box::new(OnMmio(BalloonModel {
                backing: Backing::default(),
            })),
            Box::new(OnMmio(ConsoleModel)),
        ];
        let world = World::new(parts);
        let registers = (0..DEVICES.len()).map(|device| {
            Registers::new(
                DEVICES[device].1.len(),
                driver::offered(&world, world.places[device].0),
            )
        });
        let mut bench = Bench {
            registers: registers.collect(),
            config: Vec::new(),
            avail: DEVICES
                .iter()
                .map(|device| vec![0; device.1.len()])
                .collect(),
            sizes: vec![0; DEVICES.len()],
            paused: false,
            unknown: false,
            world,
        };
        for device in 0..DEVICES.len() {
            bench.write(device, STATUS, &0u32.to_le_bytes());
        }
        bench.config = bench.block_config();
        bench
    }

    fn base(&self, device: usize) -> u64 {
        self.world.places[device].0
    }

    fn block_config(&self) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        self.world.pages.read(self.base(0) + 0x100, &mut bytes);
        bytes
    }

    fn write(&mut self, device: usize, offset: u64, bytes: &[u8]) {
        self.world.pages.write(self.base(device) + offset, bytes);
        if let Ok(bytes) = bytes.try_into()
            && offset % 4 == 0
            && offset < 0x100
        {
            self.registers[device].write(offset, u32::from_le_bytes(bytes));
        }
        self.check(device);
    }

    fn register(&mut self, device: usize, offset: u64, value: u32) {
        self.write(device, offset, &value.to_le_bytes());
    }

    /// The model does not know what is in the registers, until each device is reset.
    pub fn forget_registers(&mut self) {
        self.unknown = true;
    }

    /// The registers are as the model has them.
    fn check(&mut self, device: usize) {
        if self.unknown {
            return;
        }
        let (world, base) = (&self.world, self.base(device));
        let model = &mut self.registers[device];
        let status = world.get(base + STATUS);
        // That a device needs a reset comes from its queues, and goes with a reset only.
        assert_eq!(status & !NEEDS_RESET, model.status & !NEEDS_RESET);
        assert!(status & NEEDS_RESET >= model.status & NEEDS_RESET);
        model.status = status;
        assert_eq!(world.get(base), 0x7472_6976);
        assert_eq!(world.get(base + 4), 2);
        assert_eq!(world.get(base + 8), DEVICES[device].0);
        assert_eq!(
            world.get(base + DEVICE_FEATURES),
            Registers::half(model.offered, model.device_select)
        );
        let queues = DEVICES[device].1;
        let max = queues.get(model.queue as usize).copied().unwrap_or(0);
        assert_eq!(world.get(base + QUEUE_NUM_MAX), max);
        let ready = model
            .ready
            .get(model.queue as usize)
            .copied()
            .unwrap_or(false);
        assert_eq!(world.get(base + QUEUE_READY), u32::from(ready));
        assert_eq!(world.get(base + INTERRUPT_STATUS) & !3, 0);
    }

    fn begin(&mut self, device: usize, features: u64, size: u8, overlap: bool) {
        let offered = self.registers[device].offered;
        self.register(device, STATUS, 0);
        self.register(device, STATUS, 3);
        let features = features & offered | VERSION_1;
        for half in [0, 1] {
            self.register(device, DRIVER_FEATURES_SEL, half);
            self.register(device, DRIVER_FEATURES, Registers::half(features, half));
        }
        self.register(device, STATUS, driver::FEATURES_OK);
        let queues = DEVICES[device].1;
        self.sizes[device] = 1 << (size % 9).min(queues[0].trailing_zeros() as u8);
        for queue in 0..queues.len() {
            let at = places(device, if overlap { 0 } else { queue });
            self.world.poke(at.avail, &[0; 4]);
            self.world.poke(at.used, &[0; 4]);
            self.register(device, QUEUE_SEL, queue as u32);
            self.register(device, QUEUE_NUM, self.sizes[device].into());
            self.register(device, QUEUE_DESC, at.desc as u32);
            self.register(device, QUEUE_DRIVER, at.avail as u32);
            self.register(device, QUEUE_DEVICE, at.used as u32);
            self.register(device, QUEUE_READY, 1);
        }
        self.avail[device].fill(0);
        self.register(device, STATUS, DRIVER_OK);
        let in_order = self.registers[device].status & NEEDS_RESET == 0;
        assert!(in_order || self.unknown, "the rings are in order");
    }

    fn offer(&mut self, device: usize, queue: usize, chain: &[Buffer], header: &[u8]) {
        let size = self.sizes[device];
        if size == 0 || chain.is_empty() {
            return;
        }
        let at = places(device, queue);
        let index = self.avail[device][queue];
        let head = index.wrapping_mul(7) % size;
        for (number, buffer) in (0u16..).zip(chain.iter().take(16)) {
            let slot = head.wrapping_add(number) % size;
            let address = match buffer.far {
                false => u64::from(buffer.at),
                true => RAM_END
                    .wrapping_sub(0x800)
                    .wrapping_add(u64::from(buffer.at)),
            };
            if number == 0 {
                self.world.poke(address, header);
            }
            // Links to the next one, as a rule.
            let more = usize::from(number) + 1 < chain.len().min(16);
            let next = (slot + 1).wrapping_add_signed(match buffer.flags {
                0..=239 => 0,
                _ => buffer.next.into(),
            });
            let flags = u16::from(buffer.flags) & 2
                | u16::from(more)
                | if buffer.flags > 250 { 4 } else { 0 };
            let descriptor = Descriptor {
                address,
                len: buffer.len.into(),
                flags,
                next: if buffer.flags < 240 {
                    next % size
                } else {
                    next
                },
            };
            self.world
                .poke(at.desc + 16 * u64::from(slot), &descriptor.bytes());
        }
        driver::offer(&self.world, at, size, index, head);
        self.avail[device][queue] = index.wrapping_add(1);
        self.register(device, QUEUE_NOTIFY, queue as u32);
    }

    /// Does it.
    pub fn act(&mut self, op: &Op) {
        let which = |device: u8| usize::from(device) % DEVICES.len();
        let queue_of = |device: usize, queue: u8| usize::from(queue) % DEVICES[device].1.len();
        match op {
            Op::Read {
                device,
                offset,
                width,
            } => {
                let device = which(*device);
                let mut bytes = vec![0xee; usize::from(width % 9)];
                self.world
                    .pages
                    .read(self.base(device) + offset.value(), &mut bytes);
                if offset.value() < 0x100 && (bytes.len() < 4 || offset.value() % 4 != 0) {
                    assert!(
                        bytes.iter().all(|byte| *byte == 0),
                        "no register is read in part"
                    );
                }
                self.check(device);
            }
            Op::Write {
                device,
                offset,
                width,
                value,
            } => {
                let bytes = &value.to_le_bytes()[..usize::from(width % 9)];
                let last = DEVICES.len() - 1;
                // What is behind the last page is nobody's; behind another it is the next device's.
                let device = if offset.value() >= 0x1000 {
                    last
                } else {
                    which(*device)
                };
                self.write(device, offset.value(), bytes);
            }
            Op::Poke { at, bytes } => self.world.poke(RINGS + u64::from(*at), bytes),
            Op::Begin {
                device,
                features,
                size,
                overlap,
            } => {
                self.begin(which(*device), *features, *size, *overlap);
            }
            Op::Offer {
                device,
                queue,
                chain,
                header,
            } => {
                let device = which(*device);
                self.offer(device, queue_of(device, *queue), chain, header);
            }
            Op::Index {
                device,
                queue,
                index,
            } => {
                let device = which(*device);
                let queue = queue_of(device, *queue);
                self.world
                    .poke(places(device, queue).avail + 2, &index.to_le_bytes());
                self.avail[device][queue] = *index;
                self.register(device, QUEUE_NOTIFY, queue as u32);
            }
            Op::Run => self.world.run(),
            Op::Pause => {
                self.paused = true;
                self.world
                    .devices
                    .iter()
                    .for_each(|built| built.device.quiesce());
                self.world.run();
                assert!(!self.world.devices.iter().any(|built| built.device.busy()));
            }
            Op::Resume => self.resume(),
            Op::Type(bytes) => {
                self.world.chars[0].receive(bytes);
            }
            Op::Drain => {
                let mut bytes = [0; 300];
                let count = self.world.chars[0].peek_output(&mut bytes);
                self.world.chars[0].consume_output(count);
            }
            Op::Restore { device } => {
                let device = which(*device);
                let state = self.world.device(device).state();
                self.world.device(device).quiesce();
                self.world
                    .device(device)
                    .restore(&state)
                    .expect("its own state");
                assert_eq!(self.world.device(device).state(), state);
                if !self.paused {
                    self.world.device(device).resume();
                }
                self.check(device);
            }
        }
    }

    fn resume(&mut self) {
        self.paused = false;
        self.world
            .devices
            .iter()
            .for_each(|built| built.device.resume());
    }

    /// Everything goes on, and whoever is in order is served.
    pub fn end(mut self) {
        self.resume();
        self.world.run();
        for device in 0..DEVICES.len() {
            self.check(device);
            self.register(device, STATUS, 0);
        }
        self.world.run();
        assert_eq!(
            self.block_config(),
            self.config,
            "nobody has changed the disk"
        );
        driver::serial_number_is(&self.world, self.base(0), SERIAL);
    }
}

impl Default for Bench {
    fn default() -> Self {
        Bench::new()
    }
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let Ok(ops) = Vec::<Op>::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let mut bench = Bench::new();
    for op in ops.iter().take(200) {
        bench.act(op);
    }
    bench.end();
}
