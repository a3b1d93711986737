//! Standard error on the event loop: lines that had no room go out when somebody reads again.

use std::os::fd::RawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::board::Watcher;
use crate::outlet::stderr;

const WAKE: u32 = 0;
const WRITABLE: u32 = 1;

/// The subscriber.
pub struct OwnLines {
    wake: RawFd,
    /// Watched until it has taken all lines.
    watched: Option<RawFd>,
}

impl OwnLines {
    /// `wake` is what [`stderr::never_wait`] has given.
    pub fn new(wake: RawFd) -> Self {
        OwnLines {
            wake,
            watched: None,
        }
    }
}

impl MutEventSubscriber for OwnLines {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == WAKE {
            let full = stderr::heard().filter(|_| self.watched.is_none());
            if let Some(fd) = full {
                let event = Events::with_data_raw(fd, WRITABLE, EventSet::OUT);
                // It cannot be watched: then the next line takes those before it along.
                self.watched = ops.add(event).is_ok().then_some(fd);
            }
        } else if stderr::flush()
            && let Some(fd) = self.watched.take()
        {
            let _ = ops.remove(Events::with_data_raw(fd, WRITABLE, EventSet::OUT));
        }
    }

    fn init(&mut self, _ops: &mut EventOps) {}
}

impl Watcher for OwnLines {
    fn watched(&self) -> Vec<(RawFd, u32)> {
        vec![(self.wake, WAKE)]
    }
}
