//! What a disk does with a chain: from a request to the storage, and back.
//!
//! ```text
//!   Chain ─▶ Request ─▶ Job ─▶ Engine ┐
//!                                      │ many at once
//!   status byte ◀── Pending ◀── ends ◀┘
//! ```
//!
//! What belongs to requests in flight is in a table whose entries, and whose short lists of buffers, are used
//! again. The engine is made with the device and stays over resets.
//!
//! A driver may ask for anything: so what is in flight at a time is bounded in requests, bytes, segments of memory,
//! and chunks for direct I/O. Who finds no room waits in the ring until something ends. README's figures of
//! this program's own memory rest on these bounds.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk as blk;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::request::{Operation, Request, Status, Unanswerable};
use super::{QUEUE_SIZE, SERIAL_BYTES};
use crate::board::SiteError;
use crate::memory::{BouncePool, IoBuffers, objects};
use crate::storage::{Engine, Job, Work, engine};
use crate::virtio::chain::Chain;
use crate::virtio::device::{Answer, Handler, Room, Taken};
use crate::virtio::ring::Broken;

/// So many bytes (128 KiB) count for a request more.
const BYTES_SHIFT: u32 = 17;
/// Bytes in flight at a time, and those of one request more.
const MAX_BYTES_IN_FLIGHT: u64 = 32 << 20;
/// Segments of guest memory in flight at a time, and those of one request more: as many as those bytes are
/// pages, so a driver that gives whole pages never meets this bound.
pub const MAX_SEGMENTS_IN_FLIGHT: usize = (MAX_BYTES_IN_FLIGHT >> 12) as usize;
/// Chunks for direct I/O to odd addresses: of one queue at most, and of all queues of a disk.
pub const MAX_CHUNKS: usize = 16;
/// See [`MAX_CHUNKS`].
pub const MAX_CHUNKS_OF_DISK: usize = 64;
/// The longest request. Descriptors may name the same RAM again and again, so nothing else bounds
/// what one request can ask for; Linux asks for a few MiB at the most.
const MAX_REQUEST_BYTES: u64 = 32 << 20;

/// A DISCARD counts for a request for each started stretch of this length, the longest that can be written at once.
const DISCARD_BYTES_PER_REQUEST: u64 = MAX_REQUEST_BYTES;
/// For each so many bytes that are discarded, one byte counts as written: 4 KiB for each MiB, about what
/// the host writes of its tables when it frees that in pieces of 64 KiB, the clusters of a qcow2 image.
const DISCARDED_PER_BYTE: u64 = 256;

/// What a request counts for with the limits of its disk: requests and bytes. What is refused for its length
/// counts for no more than the longest.
fn counts_for(operation: Operation, data_len: u64) -> (u64, u64) {
    let (requests, bytes) = match operation {
        // Some file systems have to write the zeros.
        Operation::Do(Work::Zero { len, .. }) => (1, len),
        Operation::Do(Work::Discard { len, .. }) => (
            len.div_ceil(DISCARD_BYTES_PER_REQUEST).max(1),
            len / DISCARDED_PER_BYTE,
        ),
        _ => (1, data_len),
    };
    (requests, bytes.min(MAX_REQUEST_BYTES))
}

impl From<Unanswerable> for Broken {
    fn from(_: Unanswerable) -> Self {
        Broken::Unanswerable("the request has no room for a header and a status")
    }
}

/// A request that the engine has.
#[derive(Debug, Clone, Copy)]
struct Pending {
    head: u16,
    status: GuestAddress,
    bytes: u64,
    segments: usize,
}

/// The requests of one queue.
pub struct Requests {
    disk: Arc<Disk>,
    engine: Box<dyn Engine>,
    /// Indexed by token.
    pending: Vec<Option<Pending>>,
    free: Vec<u16>,
    spare: Vec<IoBuffers>,
    bytes_in_flight: u64,
    segments_in_flight: usize,
    /// For direct I/O alone.
    chunks: Option<Arc<BouncePool>>,
    request: Request,
    write_through: bool,
}

impl Requests {
    /// None as yet. `event` becomes readable when some have ended.
    ///
    /// # Errors
    /// When the host has no room for what direct I/O may need.
    pub(super) fn new(disk: Arc<Disk>, event: &Arc<EventFd>) -> Result<Self, SiteError> {
        let chunks = match disk.image.alignment() {
            0 | 1 => None,
            _ => {
                let pool = BouncePool::new(chunks(disk.queues));
                Some(pool.map_err(SiteError::host("map memory for direct I/O"))?)
            }
        };
        let engine = engine::start(&disk.image, disk.io, QUEUE_SIZE, disk.threads, event);
        Ok(Requests {
            disk,
            engine,
            pending: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            bytes_in_flight: 0,
            segments_in_flight: 0,
            chunks,
            request: Request::default(),
            write_through: false,
        })
    }

    /// Gives the request in hand to the engine, or answers it at once.
    fn begin(&mut self, head: u16, memory: &GuestMemoryMmap) -> Option<(Status, u32)> {
        let (work, bytes) = match self.work_of_request(memory) {
            Ok(work) => work,
            Err(answer) => return Some(answer),
        };
        let io_error = Some((Status::IoError, 0));
        let spare = self.spare.pop();
        let mut buffers = spare.unwrap_or_else(|| IoBuffers::new(self.disk.memory.clone()));
        let ready = bytes == 0 || {
            buffers.reserve(self.request.data.len());
            let ranges = self.request.data.iter();
            let (alignment, fill) = (
                self.disk.image.alignment(),
                matches!(work, Work::Write { .. }),
            );
            ranges.copied().all(|(at, len)| buffers.push(at, len))
                && buffers.align(alignment, fill, self.chunks.as_ref()).is_ok()
        };
        let pending = Pending {
            head,
            status: self.request.status,
            bytes,
            segments: buffers.segments(),
        };
        let token = if ready { self.remember(pending) } else { None };
        let Some(token) = token else {
            buffers.clear();
            self.spare.push(buffers);
            return io_error;
        };
        self.bytes_in_flight = self.bytes_in_flight.saturating_add(bytes);
        self.segments_in_flight = self.segments_in_flight.saturating_add(pending.segments);
        self.engine.submit(Job {
            token,
            work,
            buffers,
        });
        None
    }

    /// What the engine has to do for the request in hand, and the bytes of guest memory that it
    /// moves; or the answer, where there is nothing to do.
    fn work_of_request(&mut self, memory: &GuestMemoryMmap) -> Result<(Work, u64), (Status, u32)> {
        let bytes = self.request.data_len;
        Ok(match self.request.operation {
            Operation::Refuse(status) => return Err((status, 0)),
            Operation::GetId => return Err(self.get_id(memory)),
            Operation::Do(Work::Discard { len: 0, .. } | Work::Zero { len: 0, .. }) => {
                return Err((Status::Ok, 0));
            }
            Operation::Do(work @ (Work::Read { .. } | Work::Write { .. })) => match bytes {
                0 => return Err((Status::Ok, 0)),
                1..=MAX_REQUEST_BYTES => (durably(work, self.write_through), bytes),
                _ => return Err((Status::IoError, 0)),
            },
            Operation::Do(work) => (work, 0),
        })
    }

    /// A token for a request, unless as many are in flight as a ring has entries.
    fn remember(&mut self, pending: Pending) -> Option<u16> {
        if let Some(token) = self.free.pop() {
            *self.pending.get_mut(usize::from(token))? = Some(pending);
            return Some(token);
        }
        let token = u16::try_from(self.pending.len()).ok()?;
        (token < QUEUE_SIZE).then(|| {
            self.pending.push(Some(pending));
            token
        })
    }

    /// Writes the status byte; how many bytes of guest memory are new with it.
    fn status(&self, at: GuestAddress, status: Status, written: u32) -> Result<u32, Broken> {
        objects::write(&self.disk.memory, status as u8, at)
            .ok_or(Broken::Unanswerable("the status byte is not in RAM"))?;
        Ok(written.saturating_add(1))
    }

    fn get_id(&self, memory: &GuestMemoryMmap) -> (Status, u32) {
        let serial: &[u8; SERIAL_BYTES] = &self.disk.serial;
        let mut rest = serial.as_slice();
        let mut written = 0u32;
        for (addr, len) in &self.request.data {
            let take = rest.len().min(*len as usize);
            let Some((part, after)) = rest.split_at_checked(take) else {
                break;
            };
            // What is behind the 20 bytes is not written.
            if part.is_empty() {
                continue;
            }
            if memory.write_slice(part, *addr).is_err() {
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

/// A write that is done only when it is on stable storage, if `durable`.
fn durably(work: Work, durable: bool) -> Work {
    match work {
        Work::Write { offset, .. } => Work::Write { offset, durable },
        other => other,
    }
}

impl Handler for Requests {
    fn start(&mut self, features: u64) {
        // A driver that does not know FLUSH: each write must be durable by itself.
        self.write_through = features & 1 << blk::VIRTIO_BLK_F_FLUSH == 0;
    }

    fn room(&mut self) -> Room {
        let full = self.in_flight() >= usize::from(QUEUE_SIZE)
            || self.bytes_in_flight >= MAX_BYTES_IN_FLIGHT
            || self.segments_in_flight >= MAX_SEGMENTS_IN_FLIGHT
            || self.chunks.as_ref().is_some_and(|pool| !pool.has_room());
        if full {
            return Room::No;
        }
        Room::of(self.disk.limiter.as_ref())
    }

    fn take(
        &mut self,
        head: u16,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Taken, Broken> {
        self.request.parse(chain, memory, self.disk.geometry)?;
        let (requests, bytes) = counts_for(self.request.operation, self.request.data_len);
        if let Some(limiter) = &self.disk.limiter {
            limiter.take_as(requests, bytes);
        }
        let written = match self.begin(head, memory) {
            Some((status, written)) => Some(self.status(self.request.status, status, written)?),
            None => None,
        };
        Ok(Taken {
            // Some work is done at once, so a turn is bounded in bytes as well.
            cost: 1usize.saturating_add((bytes >> BYTES_SHIFT) as usize),
            written,
        })
    }

    fn commit(&mut self) {
        self.engine.commit();
    }

    fn ended(&mut self) -> Result<Option<Answer>, Broken> {
        while let Some((mut job, mut result)) = self.engine.complete() {
            let slot = self.pending.get_mut(usize::from(job.token));
            let Some(pending) = slot.and_then(Option::take) else {
                continue;
            };
            self.free.push(job.token);
            self.bytes_in_flight = self.bytes_in_flight.saturating_sub(pending.bytes);
            self.segments_in_flight = self.segments_in_flight.saturating_sub(pending.segments);
            let read = matches!(job.work, Work::Read { .. });
            job.buffers.clear();
            self.spare.push(job.buffers);
            if let Work::Zero { .. } | Work::Discard { .. } = job.work
                && self.write_through
                && result.is_ok()
            {
                // Without FLUSH there is no later moment.
                let mut none = IoBuffers::new(self.disk.memory.clone());
                result = self.disk.image.run(Work::Flush, &mut none);
            }
            if job.work == Work::Flush {
                result = self.disk.flushes.answered(result);
            }
            let (status, written) = match result {
                Ok(()) if read => (Status::Ok, u32::try_from(pending.bytes).unwrap_or(u32::MAX)),
                Ok(()) => (Status::Ok, 0),
                Err(error) => {
                    self.disk.complain_of(job.work, &error);
                    (Status::IoError, 0)
                }
            };
            let written = self.status(pending.status, status, written)?;
            return Ok(Some(Answer {
                head: pending.head,
                written,
            }));
        }
        Ok(None)
    }

    fn ready(&mut self) -> bool {
        self.engine.ready()
    }

    fn rearm(&mut self) -> bool {
        self.engine.rearm()
    }

    fn in_flight(&self) -> usize {
        self.pending.len().saturating_sub(self.free.len())
    }

    fn has_threads(&self) -> bool {
        self.engine.has_threads()
    }

    fn stop(&mut self) {
        self.engine.drain();
        self.pending.clear();
        self.free.clear();
        self.bytes_in_flight = 0;
        self.segments_in_flight = 0;
    }
}

/// How many chunks for direct I/O each queue has, on a disk of so many.
pub fn chunks(queues: u16) -> usize {
    (MAX_CHUNKS_OF_DISK / usize::from(queues.max(1))).clamp(1, MAX_CHUNKS)
}

#[cfg(test)]
#[path = "handler_tests.rs"]
mod tests;
