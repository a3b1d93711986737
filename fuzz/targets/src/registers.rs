//! The registers of a virtio-mmio device, as virtio 1.2, 2.1 and 4.2.2 want them: what each has to read after what was
//! written.

use crate::driver::VERSION_1;

/// What the registers of a device have to say.
#[derive(Clone)]
pub struct Registers {
    pub offered: u64,
    pub device_select: u32,
    pub driver_select: u32,
    pub features: u64,
    pub queue: u32,
    pub ready: Vec<bool>,
    pub status: u32,
}

impl Registers {
    /// After power-on, for a device with so many queues.
    pub fn new(queues: usize, offered: u64) -> Self {
        Registers {
            offered,
            device_select: 0,
            driver_select: 0,
            features: 0,
            queue: 0,
            ready: vec![false; queues],
            status: 0,
        }
    }

    /// One of the two halves of 64 bits.
    pub fn half(value: u64, select: u32) -> u32 {
        match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        }
    }

    /// The driver writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        let working = self.status & 4 != 0;
        match offset {
            0x014 => self.device_select = value,
            0x024 => self.driver_select = value,
            0x020 if self.status & 8 == 0 && self.driver_select < 2 => {
                let shift = 32 * self.driver_select;
                self.features = self.features & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            0x030 => self.queue = value,
            0x044 if !working => {
                if let Some(ready) = self.ready.get_mut(self.queue as usize) {
                    *ready = value & 1 != 0;
                }
            }
            0x070 if value == 0 => *self = Registers::new(self.ready.len(), self.offered),
            0x070 => {
                let mut added = value & 0xbf & !self.status;
                let agreed = self.features & !self.offered == 0 && self.features & VERSION_1 != 0;
                if !agreed {
                    added &= !8;
                }
                if (self.status | added) & 8 == 0 {
                    added &= !4;
                }
                self.status |= added;
            }
            _ => {}
        }
    }
}
