//! One queue of a device, as an event loop and the front see it: a worker under its lock, and what wakes it.
//!
//! Two parties come to the worker. The loop gives it turns; the front, on a vCPU's thread, gives it a
//! ring at DRIVER_OK. The lock lets one of them in at a time, and is free between two turns.
//!
//! A turn of a disk may wait for the host, which may take any time. So nobody but the thread that gives the turns
//! waits for one: who wants a ring to be given up, or no more chains to be taken, leaves a wish ([`Wishes`]).
//!
//! ```text
//!   vCPU: reset                                  thread of the queue
//!   ───────────                                  ───────────────────
//!   wish "stop", kick ─────────────────────────▶ sees it before the next chain, or is woken
//!   waits until it is done, or the machine ends  waits for what is in flight, forgets the ring
//!   nothing touches guest memory any more ◀───── takes the wish away, wakes who waits
//! ```

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use vmm_sys_util::eventfd::EventFd;

use super::device::{Host, MadeQueue};
use super::ring::Ring;
use super::worker::{Wishes, Worker};
use crate::board::site::event_fd;
use crate::board::{Pump, Server, SiteError, Turn, Waiting};
use crate::sync::lock;

/// See the [module](self).
pub struct VirtQueue {
    name: String,
    device: String,
    size: u16,
    kick: EventFd,
    event: Option<Arc<EventFd>>,
    limited: bool,
    server: Server,
    at_once: bool,
    worker: Mutex<Worker>,
    wishes: Arc<Wishes>,
    /// The vCPUs that wait until their wish is done.
    waiting: Arc<Waiting>,
}

impl VirtQueue {
    /// Queue `number` of the device that `host` names.
    ///
    /// # Errors
    /// When no event fd can be made.
    pub fn new(made: MadeQueue, number: u16, host: &Host) -> Result<Self, SiteError> {
        let (signal, complaints) = (host.signal.clone(), host.complaints.clone());
        let worker = Worker::new(made.handler, made.poll, signal, complaints);
        Ok(VirtQueue {
            name: format!("{}.{number}", host.name),
            device: host.name.clone(),
            size: made.size,
            kick: event_fd()?,
            event: made.event,
            limited: made.limited,
            server: made.server,
            at_once: made.at_once,
            wishes: worker.wishes().clone(),
            worker: Mutex::new(worker),
            waiting: host.waiting.clone(),
        })
    }

    /// The most entries that it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Its worker, between two turns.
    fn worker(&self) -> MutexGuard<'_, Worker> {
        lock(&self.worker)
    }

    /// Its worker, if it has no turn.
    fn resting_worker(&self) -> Option<MutexGuard<'_, Worker>> {
        match self.worker.try_lock() {
            Ok(worker) => Some(worker),
            Err(TryLockError::Poisoned(worker)) => Some(worker.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The driver is ready. The queue has been stopped before, so there is no turn to wait for.
    pub fn start(&self, ring: Option<Ring>, features: u64) {
        self.worker().start(ring, features);
        // Requests may be waiting in the ring already.
        self.wake();
    }

    /// The driver resets the device: asks for the ring to be given up. Does not wait, where a turn may;
    /// [`VirtQueue::has_stopped`] says when it is done, and [`Waiting::look`] is called then.
    pub fn ask_to_stop(&self) {
        if self.server == Server::MainLoop {
            // Its turns and its handler wait for nothing.
            return self.worker().stop();
        }
        self.wishes.set_stop(true);
        match self.resting_worker() {
            Some(mut worker) if !worker.is_busy() => {
                worker.stop();
                self.wishes.set_stop(false);
            }
            // Whoever has the lock looks at the wish before the next chain, and this has it looked at
            // again where it was the last.
            _ => self.wake(),
        }
    }

    /// Whether nothing of the guest's memory is touched any more.
    pub fn has_stopped(&self) -> bool {
        !self.wishes.stop()
    }

    /// Takes nothing more out of the ring from now on, but for a chain that is just being taken.
    pub fn quiesce(&self) {
        self.wishes.set_quiesce(true);
    }

    /// Goes on.
    pub fn resume(&self) {
        self.wishes.set_quiesce(false);
        // A kick may have been heard in between.
        self.wake();
    }

    /// Whether a turn is being taken, or something is in flight.
    pub fn is_busy(&self) -> bool {
        self.resting_worker().is_none_or(|worker| worker.is_busy())
    }

    /// How far the ring is, if there is one.
    pub fn progress(&self) -> Option<(u16, u16)> {
        self.wishes.progress()
    }

    /// Whether the vCPU that kicks takes a turn itself.
    pub fn is_at_once(&self) -> bool {
        self.at_once
    }

    /// The driver kicks, and no event fd has heard it.
    pub fn kicked(&self) {
        // What one turn has not done is the loop's affair: it has the timer, and others to think of.
        if !self.at_once || self.run(false) != Turn::Idle {
            self.wake();
        }
    }

    /// Has its loop give it a turn.
    pub fn wake(&self) {
        // Failure means a kick is pending already.
        let _ = self.kick.write(1);
    }
}

impl Pump for VirtQueue {
    fn name(&self) -> &str {
        &self.name
    }

    fn kick(&self) -> &EventFd {
        &self.kick
    }

    fn event(&self) -> Option<&EventFd> {
        self.event.as_deref()
    }

    fn is_limited(&self) -> bool {
        self.limited
    }

    fn device(&self) -> &str {
        &self.device
    }

    fn server(&self) -> Server {
        self.server
    }

    fn run(&self, alone: bool) -> Turn {
        let mut worker = self.worker();
        let turn = worker.run(alone);
        if !self.wishes.stop() {
            return turn;
        }
        worker.stop();
        drop(worker);
        self.wishes.set_stop(false);
        self.waiting.look();
        Turn::Idle
    }

    fn stop(&self) {
        self.worker().stop();
    }
}
