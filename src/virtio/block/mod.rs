//! virtio-blk (virtio 1.2, 5.2): a disk.
//!
//! - [`request`]: what a chain asks for, parsed by one total function;
//! - [`worker`]: one for each queue; takes chains, has an engine move the data, fills the used ring;
//! - `spin`: whether a worker looks for more before it sleeps;
//! - [`disk`]: what the queues share; features and configuration space;
//! - here: the switch between the two sides.
//!
//! A vCPU thread that resets the device takes each worker's lock and waits for what is in flight:
//! when the register write returns, the guest's memory is left alone.

pub mod disk;
pub mod request;
mod spin;
pub mod worker;

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_blk as blk;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, VirtioDevice};
use crate::storage::IoBuffers;
use crate::storage::Work;
use crate::sync::lock;
pub use disk::{Disk, Setup};
use worker::Worker;

/// Device type 2 (virtio 1.2, section 5).
const BLOCK_DEVICE: u32 = 2;
/// Entries of a request queue.
pub const QUEUE_SIZE: u16 = 256;
/// Length of the serial number that GET_ID returns (5.2.6).
pub const SERIAL_BYTES: usize = 20;

/// One queue, as the event loop sees it.
pub struct BlockQueue {
    /// Becomes readable when the driver notifies the queue; KVM writes it by ioeventfd.
    pub kick: EventFd,
    /// Becomes readable when requests have ended.
    pub event: Arc<EventFd>,
    /// To be run when one of the two is readable.
    pub worker: Arc<Mutex<Worker>>,
    /// A rate limit may make it wait.
    pub limited: bool,
}

/// One disk, as the transport sees it.
pub struct Block {
    config: Vec<u8>,
    features: u64,
    sizes: Vec<u16>,
    disk: Arc<Disk>,
    queues: Vec<BlockQueue>,
}

impl Block {
    /// A disk as `setup` describes it, for a guest with this `memory`.
    ///
    /// # Errors
    /// When no event fd can be made.
    pub fn new(
        setup: Setup,
        memory: Arc<GuestMemoryMmap>,
        interrupt: Arc<Interrupt>,
    ) -> io::Result<Self> {
        let count = setup.queues.max(1);
        let disk = Arc::new(Disk::new(setup, memory, interrupt));
        let fd = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let queues = (0..count).map(|_| {
            let event = Arc::new(fd()?);
            Ok(BlockQueue {
                kick: fd()?,
                worker: Arc::new(Mutex::new(Worker::new(disk.clone(), event.clone()))),
                event,
                limited: disk.limiter.is_some(),
            })
        });
        Ok(Block {
            config: disk.config_space(count),
            features: disk.features(count),
            sizes: vec![QUEUE_SIZE; usize::from(count)],
            queues: queues.collect::<io::Result<_>>()?,
            disk,
        })
    }

    /// The queues, for the loops that run them.
    pub fn queues(&self) -> &[BlockQueue] {
        &self.queues
    }

    /// The machine has ended: nothing is in flight after this, and what an image keeps in memory
    /// is in its file.
    pub fn finish(&self) {
        self.reset();
        let mut none = IoBuffers::new(self.disk.memory.clone());
        if !self.disk.geometry.read_only
            && self.disk.image.raw_file().is_none()
            && let Err(error) = self.disk.image.run(Work::Flush, &mut none)
        {
            self.disk.complain(&format!("the last flush: {error}"));
        }
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        BLOCK_DEVICE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn interrupt(&self) -> &Arc<Interrupt> {
        &self.disk.interrupt
    }

    fn activate(&self, features: u64, queues: Vec<Option<Queue>>) {
        let write_through = features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0;
        for ((ours, queue), number) in self.queues.iter().zip(queues).zip(0..) {
            lock(&ours.worker).start(queue, write_through);
            // Requests may be waiting in the ring already.
            self.notify(number);
        }
    }

    fn notify(&self, queue: u32) {
        if let Some(queue) = self.queues.get(queue as usize) {
            // Failure means a kick is pending already.
            let _ = queue.kick.write(1);
        }
    }

    fn reset(&self) {
        for queue in &self.queues {
            lock(&queue.worker).stop();
        }
    }
}
