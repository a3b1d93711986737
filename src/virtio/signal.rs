//! What a device tells its driver, whatever transport is between them.
//!
//! A [`Signal`] belongs to one device. Its workers tell of used buffers, the device of a changed
//! configuration, and either of them that it cannot go on. The transport's side of it is a [`Bell`]: how
//! the driver is reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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

/// How a transport reaches the driver.
pub trait Bell: Send + Sync {
    /// "Look at the used ring of `queue`."
    fn used(&self, queue: u16);

    /// "Look at the configuration space, and at the device status."
    fn config_changed(&self);

    /// The device was reset: there is nothing left to look at.
    fn reset(&self) {}
}

/// The device status, the configuration's generation, and the bell.
pub struct Signal {
    status: AtomicU32,
    generation: AtomicU32,
    bell: Arc<dyn Bell>,
}

impl Signal {
    /// A device as after power-on, whose driver is reached by `bell`.
    pub fn new(bell: Arc<dyn Bell>) -> Self {
        Signal {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            bell,
        }
    }

    /// Buffers of `queue` were used.
    pub fn used(&self, queue: u16) {
        self.bell.used(queue);
    }

    /// The configuration space reads differently from now on (virtio 1.2, 2.5).
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.status() & STATUS_DRIVER_OK != 0 {
            self.bell.config_changed();
        }
    }

    /// The device cannot go on: say so, if the driver is far enough to be told.
    pub fn broken(&self) {
        let before = self.status.fetch_or(STATUS_NEEDS_RESET, Ordering::SeqCst);
        if before & STATUS_DRIVER_OK != 0 {
            // Virtio 1.2, 2.1.2: after DRIVER_OK the device must send a configuration change
            // notification.
            self.bell.config_changed();
        }
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// How often the configuration space has changed (virtio 1.2, 2.5.2).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Adds bits to the device status.
    pub(super) fn add_status(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    /// The device was reset.
    pub(super) fn reset(&self) {
        self.set_status(0);
        // After the status, by which a change of the configuration decides whether it rings.
        self.bell.reset();
    }

    /// Sets the device status.
    pub(super) fn set_status(&self, bits: u32) {
        self.status.store(bits, Ordering::SeqCst);
    }
}
