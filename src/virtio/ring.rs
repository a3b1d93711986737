//! A virtqueue between DRIVER_OK and reset: chains are taken out of the avail ring and answered in the used
//! ring (virtio 1.2, 2.7). No device is in it.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::chain::{Chain, ChainError};
use super::signal::Signal;
use crate::memory::objects;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// A ring that cannot be worked with any more.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Its indices.
    #[error("{0}")]
    Queue(#[from] virtio_queue::Error),
    /// A chain of it.
    #[error("{0}")]
    Chain(#[from] ChainError),
    /// What is in a chain leaves no way to answer it.
    #[error("{0}")]
    Unanswerable(&'static str),
}

/// See the [module](self).
pub struct Ring {
    queue: Queue,
    number: u16,
    memory: Arc<GuestMemoryMmap>,
    signal: Arc<Signal>,
    /// Chains were answered of which the driver has not been told.
    unheard: bool,
}

impl Ring {
    /// Queue `number` of a device, as its driver has set it up. All of it is RAM.
    pub fn new(
        queue: Queue,
        number: u16,
        memory: Arc<GuestMemoryMmap>,
        signal: Arc<Signal>,
    ) -> Self {
        Ring {
            queue,
            number,
            memory,
            signal,
            unheard: false,
        }
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Reads the next chain into `chain`, and gives its head; `None` when the driver has added no more.
    ///
    /// # Errors
    /// When indices or the chain make no sense.
    pub fn next(&mut self, chain: &mut Chain) -> Result<Option<u16>, Broken> {
        let next = self.queue.iter(&*self.memory)?.next();
        let Some(head) = next.map(|next| next.head_index()) else {
            return Ok(None);
        };
        let (table, size) = (self.queue.desc_table(), self.queue.size());
        chain.read(&self.memory, table, size, head)?;
        Ok(Some(head))
    }

    /// Whether the driver has added something that was not taken.
    ///
    /// # Errors
    /// When its index is not in RAM.
    pub fn has_more(&self) -> Result<bool, Broken> {
        let avail = self.queue.avail_idx(&*self.memory, Ordering::Acquire)?;
        Ok(avail.0 != self.queue.next_avail())
    }

    /// Answers the chain that begins at `head`, in which `written` bytes are new.
    ///
    /// # Errors
    /// When there is no such chain.
    pub fn answer(&mut self, head: u16, written: u32) -> Result<(), Broken> {
        self.queue.add_used(&*self.memory, head, written)?;
        self.unheard = true;
        Ok(())
    }

    /// Tells the driver of what was answered since the last time, if it wants to be told.
    ///
    /// # Errors
    /// When its wish is not in RAM.
    pub fn interrupt(&mut self) -> Result<(), Broken> {
        if std::mem::take(&mut self.unheard) && self.wants_interrupt()? {
            self.signal.used(self.number);
        }
        Ok(())
    }

    /// Virtio 1.2, 2.7.7: by used_event where EVENT_IDX was agreed on, else by a flag, which
    /// virtio-queue does not look at.
    fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        if self.queue.event_idx_enabled() {
            return Ok(self.queue.needs_notification(&*self.memory)?);
        }
        // The used index is to be seen before the flag is looked at.
        fence(Ordering::SeqCst);
        let ring = GuestAddress(self.queue.avail_ring());
        let flags: Option<u16> = objects::read(&self.memory, ring);
        Ok(flags.is_none_or(|flags| u16::from_le(flags) & NO_INTERRUPT == 0))
    }

    /// The driver need not kick: somebody looks.
    ///
    /// # Errors
    /// When the used ring is not in RAM.
    pub fn disable_kicks(&mut self) -> Result<(), Broken> {
        Ok(self.queue.disable_notification(&*self.memory)?)
    }

    /// The driver is to kick. True when it has added something between the last look and now, for which it
    /// does not kick (virtio 1.2, 2.7.10).
    ///
    /// # Errors
    /// When the rings are not in RAM.
    pub fn enable_kicks(&mut self) -> Result<bool, Broken> {
        Ok(self.queue.enable_notification(&*self.memory)?)
    }

    /// How far device and driver are: the next index of the avail ring, and of the used ring.
    pub fn progress(&self) -> (u16, u16) {
        (self.queue.next_avail(), self.queue.next_used())
    }
}
