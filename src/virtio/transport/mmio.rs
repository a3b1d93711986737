//! The MMIO transport: one page of registers per device (virtio 1.2, 4.2.2, "MMIO Device Register
//! Layout"; version 2, not the legacy one).
//!
//! ```text
//!   0x000 MagicValue "virt"   0x030 QueueSel        0x070 Status
//!   0x004 Version 2           0x034 QueueNumMax     0x080 QueueDescLow/High
//!   0x008 DeviceID            0x038 QueueNum        0x090 QueueDriverLow/High
//!   0x00c VendorID            0x044 QueueReady      0x0a0 QueueDeviceLow/High
//!   0x010 DeviceFeatures/Sel  0x050 QueueNotify     0x0fc ConfigGeneration
//!   0x020 DriverFeatures/Sel  0x060 Interrupt*      0x100 Config ...
//! ```
//!
//! Set-up is a state machine: ACKNOWLEDGE, DRIVER, features, FEATURES_OK, queues, DRIVER_OK. What
//! comes out of turn is ignored; what cannot work sets DEVICE_NEEDS_RESET. Only at DRIVER_OK are
//! queues made, all values checked at once, and handed to the device.

use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::interrupt::{STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET};
use crate::devices::BusDevice;
use crate::sync::lock;
use crate::virtio::VirtioDevice;

/// Bytes of guest physical address space that one device takes.
pub const MMIO_SIZE: u64 = 0x1000;
/// Offset of the register that the driver notifies a queue by.
pub const QUEUE_NOTIFY: u64 = 0x050;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"BNTM");

/// What the driver has written for one queue.
#[derive(Debug, Clone, Default)]
struct QueueSetup {
    size: u16,
    ready: bool,
    desc: u64,
    driver: u64,
    device: u64,
}

#[derive(Debug, Default)]
struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
}

impl Registers {
    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(self.queue_sel as usize)
    }

    fn queue_mut(&mut self) -> Option<&mut QueueSetup> {
        self.queues.get_mut(self.queue_sel as usize)
    }
}

/// The register page in front of one device.
pub struct MmioTransport {
    device: Arc<dyn VirtioDevice>,
    memory: Arc<GuestMemoryMmap>,
    registers: Mutex<Registers>,
}

impl MmioTransport {
    /// Puts registers in front of `device`, whose rings live in `memory`.
    pub fn new(device: Arc<dyn VirtioDevice>, memory: Arc<GuestMemoryMmap>) -> Self {
        let transport = MmioTransport {
            device,
            memory,
            registers: Mutex::default(),
        };
        transport.power_on(&mut lock(&transport.registers));
        transport
    }

    fn power_on(&self, registers: &mut Registers) {
        *registers = Registers {
            queues: self
                .device
                .queue_sizes()
                .iter()
                .map(|&size| QueueSetup {
                    size,
                    ..QueueSetup::default()
                })
                .collect(),
            ..Registers::default()
        };
    }

    fn offered(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    fn read_register(&self, offset: u64) -> u32 {
        let registers = lock(&self.registers);
        match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.device.device_id(),
            0x00c => VENDOR,
            0x010 => half(self.offered(), registers.device_features_sel),
            0x034 => self
                .device
                .queue_sizes()
                .get(registers.queue_sel as usize)
                .copied()
                .unwrap_or(0)
                .into(),
            0x044 => registers.queue().is_some_and(|q| q.ready).into(),
            0x060 => self.device.interrupt().isr(),
            0x070 => self.device.interrupt().status(),
            // No shared memory regions: a length of all ones (4.2.2).
            0x0b0..=0x0bc => u32::MAX,
            // The configuration never changes, so neither does its generation.
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == QUEUE_NOTIFY {
            // Taken by an ioeventfd as a rule; without one it arrives here.
            self.device.notify(value);
            return;
        }
        let interrupt = self.device.interrupt();
        if offset == 0x064 {
            interrupt.acknowledge(value);
            return;
        }
        let mut registers = lock(&self.registers);
        let status = interrupt.status();
        let live = status & STATUS_DRIVER_OK != 0;
        match offset {
            0x014 => registers.device_features_sel = value,
            0x024 => registers.driver_features_sel = value,
            0x030 => registers.queue_sel = value,
            0x070 => self.write_status(&mut registers, status, value),
            0x020 if status & STATUS_FEATURES_OK == 0 => {
                let select = registers.driver_features_sel;
                set_half(&mut registers.driver_features, select, value);
            }
            _ if live => {}
            0x044 => {
                if let Some(queue) = registers.queue_mut() {
                    queue.ready = value & 1 != 0;
                }
            }
            _ => {
                let Some(queue) = registers.queue_mut().filter(|queue| !queue.ready) else {
                    return;
                };
                match offset {
                    // An impossible size is kept as 0, which fails at DRIVER_OK.
                    0x038 => queue.size = u16::try_from(value).unwrap_or(0),
                    0x080 | 0x084 => set_half(&mut queue.desc, u32::from(offset == 0x084), value),
                    0x090 | 0x094 => set_half(&mut queue.driver, u32::from(offset == 0x094), value),
                    0x0a0 | 0x0a4 => set_half(&mut queue.device, u32::from(offset == 0x0a4), value),
                    _ => {}
                }
            }
        }
    }

    fn write_status(&self, registers: &mut Registers, status: u32, value: u32) {
        let interrupt = self.device.interrupt();
        if value == 0 {
            self.device.reset();
            interrupt.clear();
            self.power_on(registers);
            return;
        }
        // A driver only ever adds bits (2.1.1); DEVICE_NEEDS_RESET is not the driver's to set.
        let mut added = value & !status & 0xff & !STATUS_NEEDS_RESET;
        if added & STATUS_FEATURES_OK != 0 {
            let wanted = registers.driver_features;
            let accepted = wanted & !self.offered() == 0 && wanted & 1 << VIRTIO_F_VERSION_1 != 0;
            if !accepted {
                added &= !STATUS_FEATURES_OK;
            }
        }
        let starts = added & STATUS_DRIVER_OK != 0;
        if starts && (status | added) & STATUS_FEATURES_OK == 0 {
            added &= !STATUS_DRIVER_OK;
        }
        interrupt.add_status(added);
        if added & STATUS_DRIVER_OK != 0 && status & STATUS_NEEDS_RESET == 0 {
            match self.make_queues(registers) {
                Some(queues) => self.device.activate(registers.driver_features, queues),
                None => interrupt.needs_reset(),
            }
        }
    }

    /// Whether all three parts of a ring are RAM (sizes: virtio 1.2, 2.7).
    fn in_ram(&self, setup: &QueueSetup) -> bool {
        let size = usize::from(setup.size);
        [
            (setup.desc, 16 * size),
            (setup.driver, 6 + 2 * size),
            (setup.device, 6 + 8 * size),
        ]
        .into_iter()
        .all(|(address, len)| {
            self.memory
                .check_range(GuestAddress(address), len, Permissions::ReadWrite)
        })
    }

    /// The queues as the driver has set them up; `None` when one of them cannot work.
    fn make_queues(&self, registers: &Registers) -> Option<Vec<Option<Queue>>> {
        let event_idx = registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let sizes = self.device.queue_sizes().iter();
        sizes
            .zip(&registers.queues)
            .map(|(&max, setup)| {
                if !setup.ready {
                    return Some(None);
                }
                let mut queue = Queue::new(max).ok()?;
                queue.try_set_size(setup.size).ok()?;
                queue
                    .try_set_desc_table_address(GuestAddress(setup.desc))
                    .ok()?;
                queue
                    .try_set_avail_ring_address(GuestAddress(setup.driver))
                    .ok()?;
                queue
                    .try_set_used_ring_address(GuestAddress(setup.device))
                    .ok()?;
                queue.set_event_idx(event_idx);
                queue.set_ready(true);
                // is_valid writes an error to the log for each ring outside of RAM, and the guest
                // could ask for any number of them.
                (self.in_ram(setup) && queue.is_valid(&*self.memory)).then_some(Some(queue))
            })
            .collect()
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(0x100) {
            let config = usize::try_from(at)
                .ok()
                .and_then(|at| self.device.config().get(at..))
                .unwrap_or_default();
            for (to, from) in data.iter_mut().zip(config) {
                *to = *from;
            }
        } else if offset.is_multiple_of(4)
            && let Some(bytes) = data.first_chunk_mut()
        {
            *bytes = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // The registers are 32 bits wide (4.2.2.2); nothing in our configurations is writable.
        if offset < 0x100
            && offset.is_multiple_of(4)
            && let Ok(bytes) = data.try_into()
        {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
