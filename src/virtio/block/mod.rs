//! virtio-blk (virtio 1.2, 5.2): a disk.
//!
//! - [`request`]: what a chain asks for, parsed by one total function;
//! - [`worker`]: takes chains from the queue, moves the data, fills the used ring;
//! - here: features, configuration space, and the switch between the two sides.
//!
//! A vCPU thread that resets the device takes the worker's lock, so it waits for the requests in
//! hand and no longer: when the register write returns, the guest's memory is left alone.

pub mod request;
pub mod worker;

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_blk as blk;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, VirtioDevice};
use crate::devices::lock;
use crate::storage::{SECTOR_BYTES, Storage};
use worker::Worker;

/// Device type 2 (virtio 1.2, section 5).
const BLOCK_DEVICE: u32 = 2;
/// Entries of the request queue.
pub const QUEUE_SIZE: u16 = 256;
/// Data segments per request: the ring less the header and the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Length of the serial number that GET_ID returns (5.2.6).
pub const SERIAL_BYTES: usize = 20;

/// One disk, as the transport sees it.
pub struct Block {
    config: Vec<u8>,
    features: u64,
    interrupt: Arc<Interrupt>,
    kick: EventFd,
    worker: Arc<Mutex<Worker>>,
}

impl Block {
    /// A disk of the sectors in `storage`. `serial` is what the guest finds in
    /// `/sys/block/vda/serial`, cut to 20 bytes.
    ///
    /// # Errors
    /// When no event fd can be made.
    pub fn new(
        storage: Box<dyn Storage>,
        read_only: bool,
        serial: &str,
        memory: Arc<GuestMemoryMmap>,
        interrupt: Arc<Interrupt>,
    ) -> io::Result<Self> {
        let mut features = 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        if read_only {
            features |= 1 << blk::VIRTIO_BLK_F_RO;
        }
        Ok(Block {
            config: config_space(storage.len() / SECTOR_BYTES),
            features,
            kick: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            worker: Arc::new(Mutex::new(Worker::new(
                storage,
                read_only,
                serial,
                memory,
                interrupt.clone(),
            ))),
            interrupt,
        })
    }

    /// Becomes readable when the driver notifies the queue; KVM writes it by ioeventfd.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// The side that the event loop runs when [`Block::kick_fd`] is readable.
    pub fn worker(&self) -> &Arc<Mutex<Worker>> {
        &self.worker
    }
}

/// `struct virtio_blk_config` up to `blk_size` (5.2.4).
///
/// ```text
///   0 capacity u64 | 8 size_max u32 | 12 seg_max u32 | 16 geometry u32 | 20 blk_size u32
/// ```
fn config_space(sectors: u64) -> Vec<u8> {
    let mut config = Vec::with_capacity(24);
    config.extend(sectors.to_le_bytes());
    config.extend(0u32.to_le_bytes());
    config.extend(SEG_MAX.to_le_bytes());
    config.extend(0u32.to_le_bytes());
    config.extend((SECTOR_BYTES as u32).to_le_bytes());
    config
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        BLOCK_DEVICE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    fn activate(&self, features: u64, queues: Vec<Option<Queue>>) {
        let write_through = features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0;
        lock(&self.worker).start(queues.into_iter().next().flatten(), write_through);
        // Requests may be waiting in the ring already.
        self.notify(0);
    }

    fn notify(&self, queue: u32) {
        if queue == 0 {
            // Failure means a kick is pending already.
            let _ = self.kick.write(1);
        }
    }

    fn reset(&self) {
        lock(&self.worker).stop();
    }
}
