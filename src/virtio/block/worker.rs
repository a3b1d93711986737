//! The side of a queue that works: from the avail ring to the used ring.
//!
//! ```text
//!   avail ring ─▶ Chain ─▶ Request ─▶ Job ─▶ Engine ┐
//!                                                    │ many at once
//!   used ring ◀── status byte ◀── Pending ◀── ends ◀┘
//!        └─ one interrupt for all that has ended before the next wait
//! ```
//!
//! A request allocates nothing: what belongs to those in flight is in a table whose entries, and
//! whose lists of buffers, are used again.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::request::{Operation, Request, Status};
use super::spin::{For, Spin};
use super::{QUEUE_SIZE, SERIAL_BYTES};
use crate::memory::objects;
use crate::storage::engine;
use crate::storage::{Engine, IoBuffers, Job, Work};
use crate::virtio::chain::Chain;

/// Requests taken or ended in one turn before other devices, and a vCPU that wants to reset this
/// one, get theirs.
const BATCH: usize = 256;

/// So many bytes (128 KiB) count for a request more.
const BYTES_SHIFT: u32 = 17;
/// Bytes in flight at a time; one request may be longer. It bounds what direct I/O has to copy.
const MAX_BYTES_IN_FLIGHT: u64 = 32 << 20;
/// The longest request. Descriptors may name the same RAM again and again, so nothing else bounds
/// what one request can ask for; Linux asks for a few MiB at the most.
const MAX_REQUEST_BYTES: u64 = 32 << 20;

/// So many requests a wait counts for that is spun through: a turn is bounded in time as well.
const SPIN_COST: usize = 16;
/// With more than this in flight nobody spins: while the worker sleeps, ends and requests gather, and
/// handling them together is worth as much as waking sooner, for less of the host's time.
const SPIN_IN_FLIGHT: usize = 3;

/// While somebody spins: what is waited for may need the processor, and would get it too late. A
/// thread of the engine's is let in all the time, one of the kernel's so often.
const YIELD_EVERY: Duration = Duration::from_micros(50);

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// What a turn of [`Worker::run`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do before a kick or an end.
    Idle,
    /// There is more to do: call again.
    More,
    /// The disk's rate limit allows more after this time.
    Later(Duration),
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

/// Why [`Worker::take`] took no more.
enum Stopped {
    Empty,
    /// As much in flight as there may be.
    Full,
    /// The turn has been long enough.
    Batch,
    Limited(Duration),
}

/// A request that the engine has.
#[derive(Debug, Clone, Copy)]
struct Pending {
    head: u16,
    status: GuestAddress,
    bytes: u64,
}

/// Owns a queue between DRIVER_OK and reset, and what is in flight.
pub struct Worker {
    disk: Arc<Disk>,
    event: Arc<EventFd>,
    queue: Option<Queue>,
    engine: Option<Box<dyn Engine>>,
    /// Indexed by token.
    pending: Vec<Option<Pending>>,
    free: Vec<u16>,
    spare: Vec<IoBuffers>,
    bytes_in_flight: u64,
    chain: Chain,
    request: Request,
    write_through: bool,
    spin: Spin,
    alone: bool,
}

impl Worker {
    /// A worker without a queue. Its engine makes `event` readable.
    pub(super) fn new(disk: Arc<Disk>, event: Arc<EventFd>) -> Self {
        Worker {
            spin: Spin::new(disk.poll),
            alone: false,
            disk,
            event,
            queue: None,
            engine: None,
            pending: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            bytes_in_flight: 0,
            chain: Chain::default(),
            request: Request::default(),
            write_through: false,
        }
    }

    /// `write_through`: the driver does not know FLUSH, so each write must be durable by itself.
    pub(super) fn start(&mut self, queue: Option<Queue>, write_through: bool) {
        self.stop();
        self.write_through = write_through;
        if queue.is_some() {
            let disk = &self.disk;
            let engine = engine::start(&disk.image, disk.io, QUEUE_SIZE, disk.threads, &self.event);
            self.engine = Some(engine);
        }
        self.queue = queue;
    }

    /// Waits for what is in flight. After it no memory of the guest is touched.
    pub(super) fn stop(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            engine.drain();
        }
        self.queue = None;
        self.pending.clear();
        self.free.clear();
        self.bytes_in_flight = 0;
    }

    /// Handles what is in the ring and what has ended, up to a batch, and interrupts the driver if
    /// it wants that. It may spin only if nobody else needs the thread: `alone`.
    pub fn run(&mut self, alone: bool) -> Turn {
        self.alone = alone;
        let Some(mut queue) = self.queue.take() else {
            return Turn::Idle;
        };
        match self.work(&mut queue) {
            Ok(turn) => {
                self.queue = Some(queue);
                turn
            }
            Err(broken) => {
                self.disk
                    .complain(&format!("{broken}; the device needs a reset"));
                self.disk.interrupt.needs_reset();
                Turn::Idle
            }
        }
    }

    fn work(&mut self, queue: &mut Queue) -> Result<Turn, Broken> {
        let disk = self.disk.clone();
        let memory = &*disk.memory;
        let mut budget = BATCH;
        let mut used = false;
        if self.spin.is_wanted() && self.has_work(queue)? {
            self.spin.end(Instant::now());
        }
        let turn = loop {
            queue.disable_notification(memory)?;
            let stopped = self.take(queue, &mut budget, &mut used)?;
            if let Some(engine) = &mut self.engine {
                engine.commit();
            }
            self.reap(queue, &mut budget, &mut used)?;
            match stopped {
                Stopped::Batch => break Turn::More,
                _ if budget == 0 => break Turn::More,
                Stopped::Limited(wait) => {
                    if !self.rearm() {
                        break Turn::Later(wait);
                    }
                }
                Stopped::Full => {
                    if self.has_room() {
                        continue;
                    }
                    if !self.rearm() {
                        break Turn::Idle;
                    }
                }
                // True when the driver has added something between our last look and now.
                Stopped::Empty => {
                    if self.spin.is_wanted() {
                        // What has ended is not to wait for what may come.
                        self.interrupt(queue, &mut used)?;
                        if self.wait_a_little(queue, &mut budget)? {
                            continue;
                        }
                    }
                    if !queue.enable_notification(memory)? && !self.rearm() {
                        break Turn::Idle;
                    }
                    self.spin.end(Instant::now());
                }
            }
        };
        self.interrupt(queue, &mut used)?;
        Ok(turn)
    }

    /// Tells the driver of what was used since the last time, if it wants to be told.
    fn interrupt(&self, queue: &mut Queue, used: &mut bool) -> Result<(), Broken> {
        if std::mem::take(used) && self.wants_interrupt(queue)? {
            self.disk.interrupt.used_buffer();
        }
        Ok(())
    }

    /// Virtio 1.2, 2.7.7: by used_event where EVENT_IDX was agreed on, else by a flag, which
    /// virtio-queue does not look at.
    fn wants_interrupt(&self, queue: &mut Queue) -> Result<bool, Broken> {
        if queue.event_idx_enabled() {
            return Ok(queue.needs_notification(&*self.disk.memory)?);
        }
        // The used index is to be seen before the flag is looked at.
        fence(Ordering::SeqCst);
        let ring = GuestAddress(queue.avail_ring());
        let flags: Option<u16> = objects::read(&self.disk.memory, ring);
        Ok(flags.is_none_or(|flags| u16::from_le(flags) & NO_INTERRUPT == 0))
    }

    /// Looks at both ends for a moment if that is expected to help; true when there is something
    /// to do. The driver need not kick meanwhile, nor the engine write its event fd.
    fn wait_a_little(&mut self, queue: &Queue, budget: &mut usize) -> Result<bool, Broken> {
        let in_flight = self.pending.len().saturating_sub(self.free.len());
        if in_flight > SPIN_IN_FLIGHT {
            return Ok(false);
        }
        let whom = match in_flight {
            0 => For::Driver,
            _ => For::Host,
        };
        let begin = Instant::now();
        if !self.spin.begin(begin, whom, self.alone) {
            return Ok(false);
        }
        *budget = budget.saturating_sub(SPIN_COST);
        let threads = self.engine.as_ref().is_some_and(|e| e.has_threads());
        let pause = match whom {
            For::Host if threads => Duration::ZERO,
            _ => YIELD_EVERY,
        };
        let mut yield_at = pause;
        loop {
            for _ in 0..16 {
                if self.has_work(queue)? {
                    self.spin.end(Instant::now());
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            let waited = begin.elapsed();
            if waited > self.spin.limit() {
                return Ok(false);
            }
            if waited > yield_at {
                std::thread::yield_now();
                yield_at = waited.saturating_add(pause);
            }
        }
    }

    /// Whether the driver has asked for something, or something has ended.
    fn has_work(&mut self, queue: &Queue) -> Result<bool, Broken> {
        let avail = queue.avail_idx(&*self.disk.memory, Ordering::Acquire)?;
        Ok(avail.0 != queue.next_avail() || self.engine.as_mut().is_some_and(|e| e.ready()))
    }

    /// Lets the engine wake us again; true when something has ended meanwhile.
    fn rearm(&mut self) -> bool {
        self.engine.as_mut().is_some_and(|engine| engine.rearm())
    }

    fn has_room(&self) -> bool {
        let in_flight = self.pending.len().saturating_sub(self.free.len());
        in_flight < usize::from(QUEUE_SIZE) && self.bytes_in_flight < MAX_BYTES_IN_FLIGHT
    }

    /// Takes requests out of the ring, and hands them to the engine.
    fn take(
        &mut self,
        queue: &mut Queue,
        budget: &mut usize,
        used: &mut bool,
    ) -> Result<Stopped, Broken> {
        let disk = self.disk.clone();
        loop {
            if *budget == 0 {
                return Ok(Stopped::Batch);
            }
            if !self.has_room() {
                return Ok(Stopped::Full);
            }
            if let Some(limiter) = &disk.limiter
                && let Err(wait) = limiter.ready(Instant::now())
            {
                return Ok(Stopped::Limited(wait));
            }
            let Some(head) = queue.iter(&*disk.memory)?.next().map(|c| c.head_index()) else {
                return Ok(Stopped::Empty);
            };
            self.chain
                .read(&disk.memory, queue.desc_table(), queue.size(), head)?;
            self.request
                .parse(&self.chain, &disk.memory, disk.geometry)?;
            let bytes = match self.request.operation {
                Operation::Do(Work::Zero { len, .. }) => len,
                _ => self.request.data_len,
            };
            // What is longer is refused, and counts for no more than the longest.
            let bytes = bytes.min(MAX_REQUEST_BYTES);
            // Some work is done at once, so a turn is bounded in bytes as well.
            *budget = budget.saturating_sub(1 + (bytes >> BYTES_SHIFT) as usize);
            if let Some(limiter) = &disk.limiter {
                limiter.take(bytes);
            }
            if let Some((status, written)) = self.begin(head) {
                self.end(queue, head, self.request.status, status, written)?;
                *used = true;
            }
        }
    }

    /// Gives the request in hand to the engine, or answers it at once.
    fn begin(&mut self, head: u16) -> Option<(Status, u32)> {
        let (work, bytes) = match self.work_of_request() {
            Ok(work) => work,
            Err(answer) => return Some(answer),
        };
        let io_error = Some((Status::IoError, 0));
        let memory = self.disk.memory.clone();
        let spare = self.spare.pop();
        let mut buffers = spare.unwrap_or_else(|| IoBuffers::new(memory));
        buffers.clear();
        let ready = bytes == 0 || {
            let ranges = self.request.data.iter();
            ranges.copied().all(|(at, len)| buffers.push(at, len))
                && buffers
                    .align(
                        self.disk.image.alignment(),
                        matches!(work, Work::Write { .. }),
                    )
                    .is_ok()
        };
        let pending = Pending {
            head,
            status: self.request.status,
            bytes,
        };
        let token = if ready { self.remember(pending) } else { None };
        let (Some(token), Some(engine)) = (token, &mut self.engine) else {
            self.spare.push(buffers);
            return io_error;
        };
        self.bytes_in_flight = self.bytes_in_flight.saturating_add(bytes);
        engine.submit(Job {
            token,
            work,
            buffers,
        });
        None
    }

    /// What the engine has to do for the request in hand, and the bytes of guest memory that it
    /// moves; or the answer, where there is nothing to do.
    fn work_of_request(&mut self) -> Result<(Work, u64), (Status, u32)> {
        let bytes = self.request.data_len;
        Ok(match self.request.operation {
            Operation::Refuse(status) => return Err((status, 0)),
            Operation::GetId => return Err(self.get_id()),
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

    /// Answers what the engine has ended.
    fn reap(
        &mut self,
        queue: &mut Queue,
        budget: &mut usize,
        used: &mut bool,
    ) -> Result<(), Broken> {
        while *budget > 0
            && let Some((mut job, mut result)) = self.engine.as_mut().and_then(|e| e.complete())
        {
            *budget = budget.saturating_sub(1);
            let slot = self.pending.get_mut(usize::from(job.token));
            let Some(pending) = slot.and_then(Option::take) else {
                continue;
            };
            self.free.push(job.token);
            self.bytes_in_flight = self.bytes_in_flight.saturating_sub(pending.bytes);
            let read = matches!(job.work, Work::Read { .. });
            job.buffers.restore(read && result.is_ok());
            self.spare.push(job.buffers);
            if let Work::Zero { .. } | Work::Discard { .. } = job.work
                && self.write_through
                && result.is_ok()
            {
                // Without FLUSH there is no later moment.
                let mut none = IoBuffers::new(self.disk.memory.clone());
                result = self.disk.image.run(Work::Flush, &mut none);
            }
            let (status, written) = match result {
                Ok(()) if read => (Status::Ok, u32::try_from(pending.bytes).unwrap_or(u32::MAX)),
                Ok(()) => (Status::Ok, 0),
                Err(error) => {
                    self.disk.complain_of(job.work, &error);
                    (Status::IoError, 0)
                }
            };
            self.end(queue, pending.head, pending.status, status, written)?;
            *used = true;
        }
        Ok(())
    }

    /// Writes the status byte and the used ring's entry.
    fn end(
        &self,
        queue: &mut Queue,
        head: u16,
        at: GuestAddress,
        status: Status,
        written: u32,
    ) -> Result<(), Broken> {
        let memory = &*self.disk.memory;
        objects::write(memory, status as u8, at).ok_or(Broken::Status)?;
        queue.add_used(memory, head, written.saturating_add(1))?;
        Ok(())
    }

    fn get_id(&self) -> (Status, u32) {
        let serial: &[u8; SERIAL_BYTES] = &self.disk.serial;
        let mut rest = serial.as_slice();
        let mut written = 0u32;
        for (addr, len) in &self.request.data {
            let take = rest.len().min(*len as usize);
            let Some((part, after)) = rest.split_at_checked(take) else {
                break;
            };
            if self.disk.memory.write_slice(part, *addr).is_err() {
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

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
