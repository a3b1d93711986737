//! The side of a disk that works: from the avail ring to the used ring.

use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::SERIAL_BYTES;
use super::request::{Geometry, Operation, Request, Status};
use crate::error::io_reason;
use crate::storage::{IoBuffers, Storage};
use crate::virtio::Interrupt;
use crate::virtio::chain::Chain;

/// Requests taken in one turn before other devices, and a vCPU that wants to reset this one, get
/// theirs.
const BATCH: usize = 128;

/// Bytes moved in one turn, for the same reason.
const BATCH_BYTES: u64 = 16 << 20;
/// The longest request. Descriptors may name the same RAM again and again, so nothing else bounds
/// what one request can ask for; Linux asks for a few MiB at the most.
const MAX_REQUEST_BYTES: u64 = 32 << 20;

/// Complaints about one disk that reach the log: a guest can cause them without end.
const MAX_COMPLAINTS: u32 = 10;

/// What a turn of [`Worker::run`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The ring is empty; the driver will kick.
    Idle,
    /// There is more to do: call again.
    More,
}

/// A ring that cannot be worked with any more.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Queue(#[from] virtio_queue::Error),
    #[error("{0}")]
    Chain(#[from] crate::virtio::chain::ChainError),
    #[error("{0}")]
    Request(#[from] super::request::Unanswerable),
    #[error("the status byte is not in RAM")]
    Status,
}

/// Owns the storage and, between DRIVER_OK and reset, the queue.
pub struct Worker {
    storage: Box<dyn Storage>,
    geometry: Geometry,
    serial: [u8; SERIAL_BYTES],
    memory: Arc<GuestMemoryMmap>,
    interrupt: Arc<Interrupt>,
    queue: Option<Queue>,
    // Kept from request to request, so that none allocates.
    chain: Chain,
    request: Request,
    buffers: IoBuffers,
    complaints: u32,
    write_through: bool,
}

impl Worker {
    pub(super) fn new(
        storage: Box<dyn Storage>,
        read_only: bool,
        serial: &str,
        memory: Arc<GuestMemoryMmap>,
        interrupt: Arc<Interrupt>,
    ) -> Self {
        let mut id = [0; SERIAL_BYTES];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Worker {
            geometry: Geometry {
                len: storage.len(),
                read_only,
            },
            storage,
            serial: id,
            buffers: IoBuffers::new(memory.clone()),
            memory,
            interrupt,
            queue: None,
            chain: Chain::default(),
            request: Request::default(),
            complaints: 0,
            write_through: false,
        }
    }

    /// `write_through`: the driver does not know FLUSH, so each write must be durable by itself.
    pub(super) fn start(&mut self, queue: Option<Queue>, write_through: bool) {
        self.write_through = write_through;
        self.queue = queue;
    }

    pub(super) fn stop(&mut self) {
        self.queue = None;
    }

    /// Handles what is in the ring, up to a batch, and interrupts the driver if it wants that.
    pub fn run(&mut self) -> Turn {
        let Some(mut queue) = self.queue.take() else {
            return Turn::Idle;
        };
        match self.work(&mut queue) {
            Ok(turn) => {
                self.queue = Some(queue);
                turn
            }
            Err(broken) => {
                self.complain(&format!("{broken}; the device needs a reset"));
                self.interrupt.needs_reset();
                Turn::Idle
            }
        }
    }

    fn work(&mut self, queue: &mut Queue) -> Result<Turn, Broken> {
        let memory = self.memory.clone();
        let mut handled = 0usize;
        let mut bytes = 0u64;
        let turn = loop {
            queue.disable_notification(&*memory)?;
            let mut drained = false;
            while handled < BATCH && bytes < BATCH_BYTES {
                let Some(head) = queue.iter(&*memory)?.next().map(|c| c.head_index()) else {
                    drained = true;
                    break;
                };
                handled = handled.saturating_add(1);
                self.chain
                    .read(&memory, queue.desc_table(), queue.size(), head)?;
                let written = self.handle()?;
                bytes = bytes.saturating_add(self.request.data_len);
                queue.add_used(&*memory, head, written)?;
            }
            if !drained {
                break Turn::More;
            }
            // True when the driver has added something between our last look and now.
            if !queue.enable_notification(&*memory)? {
                break Turn::Idle;
            }
        };
        if handled > 0 && queue.needs_notification(&*memory)? {
            self.interrupt.used_buffer();
        }
        Ok(turn)
    }

    /// Does what the chain in hand asks for; returns the bytes written to guest memory.
    fn handle(&mut self) -> Result<u32, Broken> {
        self.request
            .parse(&self.chain, &self.memory, self.geometry)?;
        let (status, data) = self.execute();
        self.memory
            .write_obj(status as u8, self.request.status)
            .map_err(|_| Broken::Status)?;
        Ok(data.saturating_add(1))
    }

    fn execute(&mut self) -> (Status, u32) {
        let request = &self.request;
        let result = match request.operation {
            Operation::Refuse(status) => return (status, 0),
            Operation::GetId => return self.get_id(),
            Operation::Flush => self.storage.flush().map(|()| 0),
            Operation::Read { .. } | Operation::Write { .. }
                if request.data_len > MAX_REQUEST_BYTES =>
            {
                return (Status::IoError, 0);
            }
            Operation::Read { offset } | Operation::Write { offset } => {
                self.buffers.clear();
                for (addr, len) in &request.data {
                    if !self.buffers.push(*addr, *len) {
                        return (Status::IoError, 0);
                    }
                }
                if matches!(request.operation, Operation::Read { .. }) {
                    self.storage
                        .read_at(&mut self.buffers, offset)
                        .map(|()| u32::try_from(request.data_len).unwrap_or(u32::MAX))
                } else {
                    self.storage
                        .write_at(&mut self.buffers, offset)
                        .and_then(|()| match self.write_through {
                            true => self.storage.flush(),
                            false => Ok(()),
                        })
                        .map(|()| 0)
                }
            }
        };
        match result {
            Ok(written) => (Status::Ok, written),
            Err(error) => {
                let what = format!("{:?}: {}", request.operation, io_reason(&error));
                self.complain(&what);
                (Status::IoError, 0)
            }
        }
    }

    fn complain(&mut self, what: &str) {
        self.complaints = self.complaints.saturating_add(1);
        match self.complaints {
            ..MAX_COMPLAINTS => log::warn!("virtio-blk: {what}"),
            MAX_COMPLAINTS => log::warn!("virtio-blk: {what}; more of this is not shown"),
            _ => {}
        }
    }

    fn get_id(&self) -> (Status, u32) {
        let mut rest = self.serial.as_slice();
        let mut written = 0u32;
        for (addr, len) in &self.request.data {
            let take = rest.len().min(*len as usize);
            let Some((part, after)) = rest.split_at_checked(take) else {
                break;
            };
            if self.memory.write_slice(part, *addr).is_err() {
                return (Status::IoError, written);
            }
            written = written.saturating_add(take as u32);
            rest = after;
        }
        if rest.is_empty() {
            (Status::Ok, written)
        } else {
            // The driver must offer 20 bytes (5.2.6.1).
            (Status::IoError, written)
        }
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
