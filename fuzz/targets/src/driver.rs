//! A driver of a virtio-mmio device, as far as it is in order: features, queues, requests.

use vm_memory::{Bytes, GuestAddress};

use crate::world::World;

/// VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX (virtio 1.2, 6).
pub const VERSION_1: u64 = 1 << 32;
/// See [`VERSION_1`].
pub const EVENT_IDX: u64 = 1 << 29;

/// The offsets of registers (virtio 1.2, 4.2.2).
pub mod register {
    #![allow(missing_docs)]
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
}
use register::*;

/// DEVICE_NEEDS_RESET (virtio 1.2, 2.1).
pub const NEEDS_RESET: u32 = 64;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK.
pub const FEATURES_OK: u32 = 1 | 2 | 8;
/// The same with DRIVER_OK.
pub const DRIVER_OK: u32 = FEATURES_OK | 4;

/// Where the three parts of a ring are.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// The descriptor table.
    pub desc: u64,
    /// The avail ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

/// A descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// NEXT 1, WRITE 2, INDIRECT 4.
    pub flags: u16,
    /// The next one's index.
    pub next: u16,
}

impl Descriptor {
    /// As it stands in a table.
    pub fn bytes(&self) -> [u8; 16] {
        let value = u128::from(self.address)
            | u128::from(self.len) << 64
            | u128::from(self.flags) << 96
            | u128::from(self.next) << 112;
        value.to_le_bytes()
    }
}

/// The features that the device at `base` offers.
pub fn offered(world: &World, base: u64) -> u64 {
    [0, 1].iter().fold(0, |all, half| {
        world.set(base + DEVICE_FEATURES_SEL, *half);
        all | u64::from(world.get(base + DEVICE_FEATURES)) << (32 * half)
    })
}

/// Resets the device and agrees on `features`; true when the device does.
pub fn agree(world: &World, base: u64, features: u64) -> bool {
    world.set(base + STATUS, 0);
    world.set(base + STATUS, 1);
    world.set(base + STATUS, 3);
    for half in [0, 1] {
        world.set(base + DRIVER_FEATURES_SEL, half);
        world.set(base + DRIVER_FEATURES, (features >> (32 * half)) as u32);
    }
    world.set(base + STATUS, FEATURES_OK);
    world.get(base + STATUS) & FEATURES_OK == FEATURES_OK
}

/// Sets a queue up, and makes it ready.
pub fn set_up(world: &World, base: u64, queue: u32, size: u32, places: Places) {
    world.set(base + QUEUE_SEL, queue);
    world.set(base + QUEUE_NUM, size);
    for (register, address) in [
        (QUEUE_DESC, places.desc),
        (QUEUE_DRIVER, places.avail),
        (QUEUE_DEVICE, places.used),
    ] {
        world.set(base + register, address as u32);
        world.set(base + register + 4, (address >> 32) as u32);
    }
    world.set(base + QUEUE_READY, 1);
}

/// Adds `head` to the avail ring of a queue of `size` entries, as number `index`.
pub fn offer(world: &World, places: Places, size: u16, index: u16, head: u16) {
    let slot = places.avail + 4 + 2 * u64::from(index % size);
    world.poke(slot, &head.to_le_bytes());
    world.poke(places.avail + 2, &index.wrapping_add(1).to_le_bytes());
}

/// The used index.
pub fn used_index(world: &World, places: Places) -> u16 {
    u16::from_le_bytes(world.peek(places.used + 2))
}

/// Head and length of the used element of this number.
pub fn used(world: &World, places: Places, size: u16, index: u16) -> (u32, u32) {
    let at = places.used + 4 + 8 * u64::from(index % size);
    let number = |at| u32::from_le_bytes(world.peek(at));
    (number(at), number(at + 4))
}

/// A driver that knows its business resets the block device at `base`, asks for its serial number, and gets it: what
/// a hostile driver has done before has no consequence for it.
pub fn serial_number_is(world: &World, base: u64, serial: &[u8; 20]) {
    const PLACES: Places = Places {
        desc: 0x1000,
        avail: 0x2000,
        used: 0x3000,
    };
    world.poke(0, &[0; 0x6000]);
    assert!(agree(world, base, VERSION_1), "a reset mends every device");
    set_up(world, base, 0, 4, PLACES);
    world.set(base + STATUS, DRIVER_OK);
    assert_eq!(world.get(base + STATUS), DRIVER_OK);
    world.poke(0x4000, &8u32.to_le_bytes());
    let chain = [
        Descriptor {
            address: 0x4000,
            len: 16,
            flags: 1,
            next: 1,
        },
        Descriptor {
            address: 0x5000,
            len: 20,
            flags: 3,
            next: 2,
        },
        Descriptor {
            address: 0x5100,
            len: 1,
            flags: 2,
            next: 0,
        },
    ];
    for (at, descriptor) in (PLACES.desc..).step_by(16).zip(chain) {
        world.poke(at, &descriptor.bytes());
    }
    world.poke(0x5100, &[0xff]);
    offer(world, PLACES, 4, 0, 0);
    world.set(base + QUEUE_NOTIFY, 0);
    world.run();
    assert_eq!(used_index(world, PLACES), 1);
    assert_eq!(used(world, PLACES, 4, 0), (0, 21));
    assert_eq!(&world.peek::<20>(0x5000), serial);
    assert_eq!(
        world
            .memory
            .read_obj::<u8>(GuestAddress(0x5100))
            .expect("RAM"),
        0
    );
}
