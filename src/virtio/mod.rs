//! Virtio 1.2 devices on the MMIO transport.
//!
//! ```text
//!   vCPU thread                          event loop
//!   ───────────                          ──────────
//!   registers (mmio.rs)  ──DRIVER_OK──▶  a device's worker gets its queues
//!   QueueNotify          ──ioeventfd──▶  pops chains (chain.rs), does the work,
//!   InterruptStatus      ◀──irqfd──────  fills the used ring, interrupts
//! ```
//!
//! What a guest puts into a ring is read once, checked, and copied into types of our own before
//! anything acts on it. A request that makes no sense is answered with an error; a ring that makes
//! no sense sets DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2), and the device waits to be reset.

pub mod block;
pub mod chain;
pub mod transport;

use std::sync::Arc;

use virtio_queue::Queue;

pub use transport::interrupt::Interrupt;
pub use transport::mmio::MmioTransport;

/// The part of a device that differs from type to type, as the transport sees it.
///
/// Called from vCPU threads. None of the calls may wait for more than the requests in flight.
pub trait VirtioDevice: Send + Sync {
    /// Virtio 1.2, section 5: 2 is a block device.
    fn device_id(&self) -> u32;

    /// Feature bits offered; the transport adds VIRTIO_F_VERSION_1.
    fn features(&self) -> u64;

    /// The largest size of each queue, each a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// The configuration space, little-endian as the guest sees it.
    fn config(&self) -> &[u8];

    /// Shared with the transport: device status and interrupt status.
    fn interrupt(&self) -> &Arc<Interrupt>;

    /// The driver has set DRIVER_OK: `features` are agreed on, `queues` has an entry per queue,
    /// `None` for those that the driver left unused.
    fn activate(&self, features: u64, queues: Vec<Option<Queue>>);

    /// The driver notifies `queue` and no ioeventfd took it: forward it to the worker.
    fn notify(&self, queue: u32);

    /// Stops. On return no memory of the guest is read or written any more.
    fn reset(&self);
}
