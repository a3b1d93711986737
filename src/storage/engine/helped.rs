//! The engine of an image that a helper reads: each job goes to the image's file where its place there is known, and to
//! the helper else.
//!
//! ```text
//!              ┌─ a read or write whose place is known ──▶ io_uring on the file, or threads
//!   a job ─────┼─ a flush, if all tables are written ────▶ the same
//!              ├─ a read of zeros ───────────────────────▶ ended at once
//!              └─ the rest ──────────────────────────────▶ a slot of the helper's
//!                    └ no slot is free, or transfers of ours have to end first: it waits here
//! ```
//!
//! All make the same event fd readable.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Engine;
use crate::storage::image::{Direct, Errand, Helped as Image, Job, Work};

/// See the [module](self).
pub struct Helped {
    image: Arc<dyn Image>,
    queue: u32,
    /// For each file of the image's chain.
    direct: Vec<Box<dyn Engine>>,
    /// By token: the claim of a job that one of `direct` has, and its work as it was.
    claims: Vec<Option<(u32, Work)>>,
    /// The helper has these.
    asked: Vec<(Job, Errand)>,
    /// These have to wait.
    waiting: VecDeque<(Job, Errand)>,
    /// Reads of zeros.
    done: VecDeque<Job>,
}

impl Helped {
    /// An engine for `slots` jobs on `image`, for whose files there are the engines `direct`. `event` is that of all.
    ///
    /// # Errors
    /// When the helper is gone.
    pub fn new(
        image: Arc<dyn Image>,
        direct: Vec<Box<dyn Engine>>,
        slots: u16,
        event: &Arc<EventFd>,
    ) -> io::Result<Self> {
        Ok(Helped {
            queue: image.add_queue(event)?,
            image,
            direct,
            claims: vec![None; usize::from(slots)],
            asked: Vec::new(),
            waiting: VecDeque::new(),
            done: VecDeque::new(),
        })
    }

    fn ask(&mut self, mut job: Job, mut errand: Errand) {
        match self.image.ask(job.work, &mut job.buffers, &mut errand) {
            true => self.asked.push((job, errand)),
            false => self.waiting.push_back((job, errand)),
        }
    }

    /// Begins with what has waited, as far as that is possible now.
    fn go_on(&mut self) {
        for _ in 0..self.waiting.len() {
            if let Some((job, errand)) = self.waiting.pop_front() {
                self.ask(job, errand);
            }
        }
    }

    /// A job that `direct` has ended.
    fn by_ourselves(&mut self) -> Option<(Job, io::Result<()>)> {
        while let Some((mut job, result)) = self.direct.iter_mut().find_map(|e| e.complete()) {
            let claim = self.claims.get_mut(usize::from(job.token));
            let Some((claim, work)) = claim.and_then(Option::take) else {
                continue;
            };
            job.work = work;
            self.image.end_direct(claim);
            match result {
                Err(error) if work.is_cut(&error) => self.ask(job, Errand::of(self.queue)),
                result => return Some((job, result)),
            }
        }
        None
    }

    /// A job that the helper has ended.
    fn by_the_helper(&mut self) -> Option<(Job, io::Result<()>)> {
        let mut at = 0;
        while let Some((job, errand)) = self.asked.get_mut(at) {
            match self.image.answer(job.work, &mut job.buffers, errand) {
                Some(result) => {
                    let (job, _) = self.asked.swap_remove(at);
                    return Some((job, result));
                }
                None => at = at.saturating_add(1),
            }
        }
        None
    }
}

impl Engine for Helped {
    fn submit(&mut self, mut job: Job) {
        match self.image.direct(job.work, &mut job.buffers) {
            Some(Direct::Done) => return self.done.push_back(job),
            Some(Direct::On { file, work, claim }) => {
                let place = self.claims.get_mut(usize::from(job.token));
                if let (Some(place), Some(engine)) = (place, self.direct.get_mut(file)) {
                    *place = Some((claim, job.work));
                    job.work = work;
                    return engine.submit(job);
                }
                self.image.end_direct(claim);
            }
            None => {}
        }
        self.ask(job, Errand::of(self.queue));
    }

    fn commit(&mut self) {
        // The worker looks by itself from now on, until it calls `rearm`.
        self.image.disarm(self.queue);
        self.direct.iter_mut().for_each(|engine| engine.commit());
    }

    fn complete(&mut self) -> Option<(Job, io::Result<()>)> {
        if let Some(job) = self.done.pop_front() {
            return Some((job, Ok(())));
        }
        if !self.waiting.is_empty() {
            self.go_on();
        }
        self.by_ourselves().or_else(|| self.by_the_helper())
    }

    fn ready(&mut self) -> bool {
        !self.done.is_empty()
            || self.direct.iter_mut().any(|engine| engine.ready())
            || (self.asked.iter()).any(|(_, errand)| self.image.has_answer(errand))
    }

    fn rearm(&mut self) -> bool {
        // All are armed, also when one has something already. What waits is told of its turn in any case.
        let ended = self
            .direct
            .iter_mut()
            .filter_map(|engine| engine.rearm().then_some(()));
        let direct = ended.count() > 0;
        self.image.arm(self.queue);
        let answered = (self.asked.iter()).any(|(_, errand)| self.image.has_answer(errand));
        direct || answered || !self.done.is_empty()
    }

    fn has_threads(&self) -> bool {
        !self.asked.is_empty() || self.direct.iter().any(|engine| engine.has_threads())
    }

    fn drain(&mut self) {
        for (_, mut errand) in self.waiting.drain(..) {
            self.image.forget(&mut errand);
        }
        self.done.clear();
        self.direct.iter_mut().for_each(|engine| engine.drain());
        for (claim, _) in self.claims.iter_mut().filter_map(Option::take) {
            self.image.end_direct(claim);
        }
        for (mut job, mut errand) in self.asked.drain(..) {
            // The helper does not see the memory of the guest; but a write that it is at work on must not come after
            // what the next driver writes.
            while (self.image)
                .answer(job.work, &mut job.buffers, &mut errand)
                .is_none()
            {
                self.image.wait(&errand);
            }
        }
    }
}

impl Drop for Helped {
    fn drop(&mut self) {
        self.drain();
        self.image.remove_queue(self.queue);
    }
}
