//! What sits on a port or a page of the machine: serial port, keyboard controller, power control.
//!
//! A device sees only what a chip sees: reads and writes at an offset, and an interrupt line to
//! pull. It does not know KVM, threads or files, so each of them runs in a plain unit test.

pub mod i8042;
pub mod last_words;
pub mod pace;
pub mod pci;
pub mod power;
pub mod pvpanic;
pub mod serial;

use vmm_sys_util::eventfd::EventFd;

/// Something that answers on a range of ports or of guest physical addresses.
///
/// Called from vCPU threads, several at a time. `offset` counts from the start of the device's own
/// range; `data` has the width of the access (1, 2, 4 or 8 bytes). Implementations answer every
/// combination: a guest may choose them all.
pub trait BusDevice: Send + Sync {
    /// The guest reads: fill `data`, little-endian.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data`, little-endian.
    fn write(&self, offset: u64, data: &[u8]);
}

/// An edge-triggered interrupt input of the machine's interrupt controller.
///
/// The machine ties the event fd to a GSI with KVM_IRQFD, so that a pull costs one `write(2)` and
/// no exit; a unit test reads the event fd instead.
#[derive(Debug)]
pub struct IrqLine(EventFd);

impl IrqLine {
    /// Wraps the event fd that KVM (or a test) listens on.
    pub fn new(fd: EventFd) -> Self {
        IrqLine(fd)
    }

    /// Pulls the line once.
    pub fn pull(&self) {
        // The only failure of an eventfd write is a counter at its maximum (EAGAIN): then an edge
        // is pending already, and that is all a second one would have said.
        let _ = self.0.write(1);
    }
}
