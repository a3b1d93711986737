//! An engine that is none: a job is done when it is handed in. It is there for tests, and to measure
//! what the others cost.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::Engine;
use crate::storage::image::{Image, Job};

/// See the [module](self).
pub struct Inline {
    image: Arc<dyn Image>,
    done: VecDeque<(Job, io::Result<()>)>,
}

impl Inline {
    /// An engine on the caller's thread.
    pub fn new(image: Arc<dyn Image>) -> Self {
        Inline {
            image,
            done: VecDeque::new(),
        }
    }
}

impl Engine for Inline {
    fn submit(&mut self, mut job: Job) {
        let result = self.image.run(job.work, &mut job.buffers);
        self.done.push_back((job, result));
    }

    fn commit(&mut self) {}

    fn complete(&mut self) -> Option<(Job, io::Result<()>)> {
        self.done.pop_front()
    }

    fn ready(&mut self) -> bool {
        !self.done.is_empty()
    }

    fn rearm(&mut self) -> bool {
        !self.done.is_empty()
    }

    fn drain(&mut self) {
        self.done.clear();
    }
}
