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
//! What is behind the registers is the [`Front`]'s affair. Here are the words, which queue and which half of
//! the features are selected, and the interrupt status.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::interrupt::Interrupt;
use crate::board::device::{from_value, to_value};
use crate::board::{BusDevice, Lifecycle, StateError};
use crate::sync::lock;
use crate::virtio::front::Front;

/// Offset of the register that the driver notifies a queue by.
pub const QUEUE_NOTIFY: u64 = 0x050;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"BNTM");

/// What the driver has selected.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Selected {
    device_features: u32,
    driver_features: u32,
    queue: u32,
}

/// What belongs to this transport alone.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    selected: Selected,
    isr: u32,
    front: Value,
}

/// The register page in front of one device.
pub struct MmioTransport {
    front: Arc<Front>,
    interrupt: Arc<Interrupt>,
    selected: Mutex<Selected>,
}

impl MmioTransport {
    /// Registers for `front`, whose bell is `interrupt`.
    pub fn new(front: Arc<Front>, interrupt: Arc<Interrupt>) -> Self {
        MmioTransport {
            front,
            interrupt,
            selected: Mutex::default(),
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let selected = *lock(&self.selected);
        match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.front.kind(),
            0x00c => VENDOR,
            0x010 => half(self.front.offered(), selected.device_features),
            0x034 => self.front.queue_max(selected.queue).into(),
            0x044 => self.front.is_ready(selected.queue).into(),
            0x060 => self.interrupt.isr(),
            0x070 => self.front.status(),
            // No shared memory regions: a length of all ones (4.2.2).
            0x0b0..=0x0bc => u32::MAX,
            0x0fc => self.front.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            // Taken by an ioeventfd as a rule; without one it arrives here.
            QUEUE_NOTIFY => return self.front.notify(value),
            0x064 => return self.interrupt.acknowledge(value),
            // A reset may have to wait for the host, and this lock must not.
            0x070 if value == 0 => {
                *lock(&self.selected) = Selected::default();
                return self.front.reset();
            }
            _ => {}
        }
        // Held to the end: a driver that writes from two vCPUs finds its writes in some order.
        let mut selected = lock(&self.selected);
        let queue = selected.queue;
        match offset {
            0x014 => selected.device_features = value,
            0x024 => selected.driver_features = value,
            0x030 => selected.queue = value,
            0x070 => self.front.write_status(value),
            0x020 => {
                let select = selected.driver_features;
                self.front
                    .want_features(|features| set_half(features, select, value));
            }
            0x044 => self.front.set_ready(queue, value & 1 != 0),
            _ => self.front.set_up(queue, |queue| match offset {
                // An impossible size is kept as 0, which fails at DRIVER_OK.
                0x038 => queue.size = u16::try_from(value).unwrap_or(0),
                0x080 | 0x084 => set_half(&mut queue.desc, u32::from(offset == 0x084), value),
                0x090 | 0x094 => set_half(&mut queue.driver, u32::from(offset == 0x094), value),
                0x0a0 | 0x0a4 => set_half(&mut queue.device, u32::from(offset == 0x0a4), value),
                _ => {}
            }),
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(0x100) {
            self.front.read_config(at, data);
        } else if offset.is_multiple_of(4)
            && let Some(bytes) = data.first_chunk_mut()
        {
            *bytes = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(0x100) {
            self.front.write_config(at, data);
        // The registers are 32 bits wide (4.2.2.2).
        } else if offset.is_multiple_of(4)
            && let Ok(bytes) = data.try_into()
        {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

impl Lifecycle for MmioTransport {
    fn quiesce(&self) {
        self.front.quiesce();
    }

    fn busy(&self) -> bool {
        self.front.is_busy()
    }

    fn resume(&self) {
        self.front.resume();
    }

    fn finish(&self) {
        self.front.finish();
    }

    fn state(&self) -> Value {
        to_value(&Saved {
            selected: *lock(&self.selected),
            isr: self.interrupt.isr(),
            front: self.front.state(),
        })
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let saved: Saved = from_value(state)?;
        self.front.restore(&saved.front)?;
        *lock(&self.selected) = saved.selected;
        self.interrupt.set_isr(saved.isr);
        self.interrupt.repeat();
        Ok(())
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
