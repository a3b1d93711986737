//! A disk on the event loop: a kick arrives, its worker runs.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::lock;
use crate::virtio::block::worker::{Turn, Worker};

/// The subscriber of one disk.
pub struct BlockIo {
    /// Readable when the driver has notified the queue.
    pub kick: EventFd,
    /// Does the work.
    pub worker: Arc<Mutex<Worker>>,
}

impl MutEventSubscriber for BlockIo {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Drain first: a kick that arrives while we work makes the fd readable again.
        let _ = self.kick.read();
        // The lock is released between turns, so that a reset gets its turn.
        if lock(&self.worker).run() == Turn::More {
            let _ = self.kick.write(1);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.kick, EventSet::IN)) {
            log::error!("cannot watch a disk's queue: {error}");
        }
    }
}
