//! Device status and interrupt status: the two registers that both sides of a device write.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::devices::IrqLine;

/// Virtio 1.2, 2.1: the driver noticed the device.
pub const STATUS_ACKNOWLEDGE: u32 = 1;
/// The driver knows how to drive it.
pub const STATUS_DRIVER: u32 = 2;
/// The driver is set up; the device may work.
pub const STATUS_DRIVER_OK: u32 = 4;
/// Feature negotiation is complete.
pub const STATUS_FEATURES_OK: u32 = 8;
/// The device has met an error that only a reset mends.
pub const STATUS_NEEDS_RESET: u32 = 64;
/// The driver gave up.
pub const STATUS_FAILED: u32 = 128;

/// InterruptStatus bit 0: a used buffer notification (virtio 1.2, 4.2.2).
pub const ISR_USED_BUFFER: u32 = 1;
/// InterruptStatus bit 1: a configuration change notification.
pub const ISR_CONFIG_CHANGE: u32 = 2;

/// The two status words and the interrupt line of one device.
#[derive(Debug)]
pub struct Interrupt {
    isr: AtomicU32,
    status: AtomicU32,
    line: IrqLine,
}

impl Interrupt {
    /// A device that interrupts through `line`.
    pub fn new(line: IrqLine) -> Self {
        Interrupt {
            isr: AtomicU32::new(0),
            status: AtomicU32::new(0),
            line,
        }
    }

    /// "Look at the used ring."
    pub fn used_buffer(&self) {
        self.isr.fetch_or(ISR_USED_BUFFER, Ordering::SeqCst);
        self.line.pull();
    }

    /// The device cannot go on: say so, if the driver is far enough to be told.
    pub fn needs_reset(&self) {
        let before = self.status.fetch_or(STATUS_NEEDS_RESET, Ordering::SeqCst);
        if before & STATUS_DRIVER_OK != 0 {
            // Virtio 1.2, 2.1.2: after DRIVER_OK the device must send a configuration change
            // notification.
            self.isr.fetch_or(ISR_CONFIG_CHANGE, Ordering::SeqCst);
            self.line.pull();
        }
    }

    /// The device status register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Adds bits to the device status.
    pub(in crate::virtio) fn add_status(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    /// The interrupt status register.
    pub fn isr(&self) -> u32 {
        self.isr.load(Ordering::SeqCst)
    }

    /// The driver acknowledges `bits`.
    pub(in crate::virtio) fn acknowledge(&self, bits: u32) {
        self.isr.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Both words as after power-on.
    pub(in crate::virtio) fn clear(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.isr.store(0, Ordering::SeqCst);
    }
}
