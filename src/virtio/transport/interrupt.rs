//! The interrupt of the MMIO transport: a status word that says what it is about, and a line.
//!
//! A driver that is interrupted reads InterruptStatus and writes the bits that it has seen to
//! InterruptACK (virtio 1.2, 4.2.2). The line is edge-triggered, so the bit is set first and the line is
//! pulled then: a driver that looks because of the edge finds the bit.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::board::IrqLine;
use crate::virtio::signal::Bell;

/// InterruptStatus bit 0: a used buffer notification (virtio 1.2, 4.2.2).
pub const ISR_USED_BUFFER: u32 = 1;
/// InterruptStatus bit 1: a configuration change notification.
pub const ISR_CONFIG_CHANGE: u32 = 2;

/// The InterruptStatus register of one device, and its interrupt line.
#[derive(Debug)]
pub struct Interrupt {
    isr: AtomicU32,
    line: IrqLine,
}

impl Interrupt {
    /// A device that interrupts through `line`.
    pub fn new(line: IrqLine) -> Self {
        Interrupt {
            isr: AtomicU32::new(0),
            line,
        }
    }

    /// The interrupt status register.
    pub fn isr(&self) -> u32 {
        self.isr.load(Ordering::SeqCst)
    }

    /// Sets the interrupt status register.
    pub(super) fn set_isr(&self, bits: u32) {
        self.isr.store(bits, Ordering::SeqCst);
    }

    /// The driver acknowledges `bits`.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.isr.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Pulls the line again if something is not acknowledged.
    pub(super) fn repeat(&self) {
        if self.isr() != 0 {
            self.line.pull();
        }
    }
}

impl Bell for Interrupt {
    fn used(&self, _queue: u16) {
        self.isr.fetch_or(ISR_USED_BUFFER, Ordering::SeqCst);
        self.line.pull();
    }

    fn config_changed(&self) {
        self.isr.fetch_or(ISR_CONFIG_CHANGE, Ordering::SeqCst);
        self.line.pull();
    }

    fn reset(&self) {
        self.set_isr(0);
    }
}
