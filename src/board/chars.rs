//! A character device of the guest: bytes out, bytes in.
//!
//! The console ([`console`](crate::console)) moves bytes between such a device and the outside, and does
//! not know which device it is. No call waits: where there is nothing to take, or no room, the device
//! makes its wake-up readable when that has changed.

use std::os::fd::RawFd;

/// A serial port, or another device that the console is tied to. Called from the event loop.
pub trait CharDevice: Send + Sync {
    /// Readable when there is output to take now, or room for input.
    fn wake_fd(&self) -> RawFd;

    /// [`CharDevice::wake_fd`] was readable.
    fn heard(&self);

    /// Makes [`CharDevice::wake_fd`] readable: there is more to do.
    fn wake(&self);

    /// Readable when output that lingered is to be taken, for a device that makes small pieces wait.
    fn timer_fd(&self) -> Option<RawFd> {
        None
    }

    /// [`CharDevice::timer_fd`] was readable.
    fn timer_expired(&self) {}

    /// Copies waiting output into `buf` without removing it; returns how many bytes.
    fn peek_output(&self, buf: &mut [u8]) -> usize;

    /// Removes `count` bytes of output that have reached their reader.
    fn consume_output(&self, count: usize);

    /// Hands bytes to the guest; returns how many were taken.
    fn receive(&self, bytes: &[u8]) -> usize;

    /// Whether the guest's kernel has said that it has panicked, and since then nothing of a restart.
    fn told_of_panic(&self) -> bool {
        false
    }

    /// The terminal at the other end has a new size, in characters.
    fn resize(&self, _columns: u16, _rows: u16) {}

    /// Whether the guest has taken this device into use, for one that stands in for another.
    fn in_use(&self) -> bool {
        true
    }
}
