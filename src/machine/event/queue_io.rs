//! A disk's queue on an event loop: a kick or an end arrives, its worker runs.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::sync::lock;
use crate::virtio::block::BlockQueue;
use crate::virtio::block::worker::{Turn, Worker};

const KICK: u32 = 0;
const ENDED: u32 = 1;
const TIME: u32 = 2;

/// A queue that has been the only one on its loop for so long may spin.
const ALONE: Duration = Duration::from_millis(5);

/// Which queue of a loop is in use. One that spins keeps the others waiting.
#[derive(Debug, Default)]
pub struct Company {
    /// The last queue that had something to do, and when it came after another.
    last: Mutex<Option<(RawFd, Option<Instant>)>>,
}

impl Company {
    /// `queue`, by its kick, has something to do; whether no other has had for a while.
    fn is_alone(&self, queue: RawFd, now: Instant) -> bool {
        let mut last = lock(&self.last);
        let came = match *last {
            None => None,
            Some((same, came)) if same == queue => came,
            Some(_) => Some(now),
        };
        *last = Some((queue, came));
        came.is_none_or(|came| now.saturating_duration_since(came) > ALONE)
    }
}

/// The subscriber of one queue.
pub struct BlockIo {
    /// Readable when the driver has notified the queue.
    kick: EventFd,
    /// Readable when requests have ended.
    event: Arc<EventFd>,
    /// Readable when the rate limit allows more.
    timer: Option<TimerFd>,
    worker: Arc<Mutex<Worker>>,
    company: Arc<Company>,
}

impl BlockIo {
    /// The subscriber of `queue` on a loop with `company`.
    ///
    /// # Errors
    /// When the host gives no more file descriptors.
    pub fn new(queue: &BlockQueue, company: Arc<Company>) -> std::io::Result<Self> {
        Ok(BlockIo {
            kick: queue.kick.try_clone()?,
            event: queue.event.clone(),
            timer: match queue.limited {
                true => Some(TimerFd::new()?),
                false => None,
            },
            worker: queue.worker.clone(),
            company,
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
        let alone = self.company.is_alone(self.kick.as_raw_fd(), Instant::now());
        let turn = lock(&self.worker).run(alone);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_alone_when_no_other_has_been_at_work_for_a_while() {
        let company = Company::default();
        let mut now = Instant::now();
        let mut at_work = |queue, millis| {
            now += Duration::from_millis(millis);
            company.is_alone(queue, now)
        };
        assert!(at_work(1, 0));
        assert!(at_work(1, 1));
        assert!(!at_work(2, 0), "the other has been at work just now");
        assert!(!at_work(1, 3));
        assert!(!at_work(2, 3), "they take turns");
        assert!(!at_work(1, 3));
        assert!(at_work(1, 6), "the other has nothing to do any more");
    }
}
