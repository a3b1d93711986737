//! A disk's queue on an event loop: a kick or an end arrives, its worker runs.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::devices::lock;
use crate::virtio::block::BlockQueue;
use crate::virtio::block::worker::{Turn, Worker};

const KICK: u32 = 0;
const ENDED: u32 = 1;
const TIME: u32 = 2;

/// The subscriber of one queue.
pub struct BlockIo {
    /// Readable when the driver has notified the queue.
    kick: EventFd,
    /// Readable when requests have ended.
    event: Arc<EventFd>,
    /// Readable when the rate limit allows more.
    timer: Option<TimerFd>,
    worker: Arc<Mutex<Worker>>,
}

impl BlockIo {
    /// The subscriber of `queue`.
    ///
    /// # Errors
    /// When the host gives no more file descriptors.
    pub fn new(queue: &BlockQueue) -> std::io::Result<Self> {
        Ok(BlockIo {
            kick: queue.kick.try_clone()?,
            event: queue.event.clone(),
            timer: match queue.limited {
                true => Some(TimerFd::new()?),
                false => None,
            },
            worker: queue.worker.clone(),
        })
    }

    fn wake_after(&mut self, time: Duration) {
        if let Some(timer) = &mut self.timer
            && let Err(error) = timer.reset(time, None)
        {
            log::error!("cannot set a disk's timer: {error}");
        }
    }
}

impl MutEventSubscriber for BlockIo {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        // Drain first: what arrives while we work makes the fd readable again.
        match events.data() {
            KICK => drop(self.kick.read()),
            ENDED => drop(self.event.read()),
            _ => {
                // Not read: a turn of the same batch of events may have set it anew, and then a
                // read would wait for that. The turn below sets it again if need be.
                if let Some(timer) = &mut self.timer {
                    let _ = timer.clear();
                }
            }
        }
        // The lock is released between turns, so that a reset gets its turn.
        let turn = lock(&self.worker).run();
        match turn {
            Turn::Idle => {}
            Turn::More => drop(self.kick.write(1)),
            Turn::Later(time) => self.wake_after(time),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let timer = self.timer.as_ref().map(|timer| (timer.as_raw_fd(), TIME));
        let watched = [
            (self.kick.as_raw_fd(), KICK),
            (self.event.as_raw_fd(), ENDED),
        ];
        for (fd, data) in watched.into_iter().chain(timer) {
            if let Err(error) = ops.add(Events::with_data_raw(fd, data, EventSet::IN)) {
                log::error!("cannot watch a disk's queue: {error}");
            }
        }
    }
}
