//! A device's queue on an event loop: a kick or an event arrives, its worker runs.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::board::{Pump, Turn, Watcher};
use crate::sync::lock;

const KICK: u32 = 0;
const EVENT: u32 = 1;
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
pub struct QueueIo {
    pump: Arc<dyn Pump>,
    /// Readable when the rate limit allows more.
    timer: Option<TimerFd>,
    company: Arc<Company>,
}

impl QueueIo {
    /// The subscriber of `pump` on a loop with `company`.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn new(pump: Arc<dyn Pump>, company: Arc<Company>) -> std::io::Result<Self> {
        Ok(QueueIo {
            timer: match pump.is_limited() {
                true => Some(TimerFd::new()?),
                false => None,
            },
            pump,
            company,
        })
    }

    fn wake_after(&mut self, time: Duration) {
        if let Some(timer) = &mut self.timer
            && let Err(error) = timer.reset(time, None)
        {
            log::error!("cannot set the timer of {}: {error}", self.pump.name());
        }
    }
}

impl MutEventSubscriber for QueueIo {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        // Drain first: what arrives while we work makes the fd readable again.
        match events.data() {
            KICK => drop(self.pump.kick().read()),
            EVENT => drop(self.pump.event().map(EventFd::read)),
            _ => {
                // Not read: a turn of the same batch of events may have set it anew, and then a
                // read would wait for that. The turn below sets it again if need be.
                if let Some(timer) = &mut self.timer {
                    let _ = timer.clear();
                }
            }
        }
        let kick = self.pump.kick();
        let alone = self.company.is_alone(kick.as_raw_fd(), Instant::now());
        match self.pump.run(alone) {
            Turn::Idle => {}
            Turn::More => drop(kick.write(1)),
            Turn::Later(time) => self.wake_after(time),
        }
    }

    fn init(&mut self, _ops: &mut EventOps) {}
}

impl Watcher for QueueIo {
    fn watched(&self) -> Vec<(RawFd, u32)> {
        let timer = self.timer.as_ref().map(|timer| (timer.as_raw_fd(), TIME));
        let event = self.pump.event().map(|event| (event.as_raw_fd(), EVENT));
        let kick = (self.pump.kick().as_raw_fd(), KICK);
        [kick].into_iter().chain(event).chain(timer).collect()
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
