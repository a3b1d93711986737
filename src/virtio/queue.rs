//! One queue of a device, as an event loop and the front see it: a worker under its lock, and what wakes it.
//!
//! Two parties come to the worker. The loop gives it turns; the front, on a vCPU's thread, gives it a
//! ring at DRIVER_OK and takes it away at a reset. The lock lets one of them in at a time, and is free
//! between two turns.

use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use super::device::{Host, MadeQueue};
use super::worker::Worker;
use crate::board::site::event_fd;
use crate::board::{Pump, Server, SiteError, Turn};
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
}

impl VirtQueue {
    /// Queue `number` of the device that `host` names.
    ///
    /// # Errors
    /// When no event fd can be made.
    pub fn new(made: MadeQueue, number: u16, host: &Host) -> Result<Self, SiteError> {
        let (signal, complaints) = (host.signal.clone(), host.complaints.clone());
        Ok(VirtQueue {
            name: format!("{}.{number}", host.name),
            device: host.name.clone(),
            size: made.size,
            kick: event_fd()?,
            event: made.event,
            limited: made.limited,
            server: made.server,
            at_once: made.at_once,
            worker: Mutex::new(Worker::new(made.handler, made.poll, signal, complaints)),
        })
    }

    /// The most entries that it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Its worker, between two turns.
    pub fn worker(&self) -> MutexGuard<'_, Worker> {
        lock(&self.worker)
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
        // The lock is released between turns, so that a reset gets its turn.
        self.worker().run(alone)
    }

    fn stop(&self) {
        self.worker().stop();
    }
}
