//! What a driver writes before DRIVER_OK, whatever registers it writes it to: features and queues.
//!
//! It is kept as it was written, and looked at as a whole when the driver says that it is ready: only
//! then are a queue's size and addresses worth checking, as a driver writes an address in two halves.

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// What the driver has written for one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Entries.
    pub size: u16,
    /// The driver wants to use it.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub desc: u64,
    /// Of the avail ring.
    pub driver: u64,
    /// Of the used ring.
    pub device: u64,
}

impl QueueSetup {
    /// Whether all three parts of a ring are RAM (sizes: virtio 1.2, 2.7).
    fn is_in_ram(&self, memory: &GuestMemoryMmap) -> bool {
        let size = usize::from(self.size);
        [
            (self.desc, size.saturating_mul(16)),
            (self.driver, size.saturating_mul(2).saturating_add(6)),
            (self.device, size.saturating_mul(8).saturating_add(6)),
        ]
        .into_iter()
        .all(|(address, len)| {
            memory.check_range(GuestAddress(address), len, Permissions::ReadWrite)
        })
    }

    /// The queue, which has at most `max` entries; `None` when it cannot work. `progress` is how far device
    /// and driver are already.
    pub fn queue(
        &self,
        max: u16,
        features: u64,
        progress: (u16, u16),
        memory: &GuestMemoryMmap,
    ) -> Option<Queue> {
        let mut queue = Queue::new(max).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(self.desc))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.driver))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(self.device))
            .ok()?;
        queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        let (next_avail, next_used) = progress;
        queue.set_next_avail(next_avail);
        queue.set_next_used(next_used);
        queue.set_ready(true);
        // is_valid writes an error to the log for each ring outside of RAM, and the guest
        // could ask for any number of them.
        (self.is_in_ram(memory) && queue.is_valid(memory)).then_some(queue)
    }
}

/// What the driver has written so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DriverSetup {
    /// The features that it wants.
    pub features: u64,
    /// Its queues.
    pub queues: Vec<QueueSetup>,
}
