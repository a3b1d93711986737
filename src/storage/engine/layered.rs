//! The engine of an overlay: each job goes to the one of its two images that has all of its bytes.
//!
//! ```text
//!              ┌─ all in the top, or a discard ──▶ io_uring on the top's file
//!   a job ─────┼─ a read, all in the base ───────▶ io_uring on the base's file, if it is raw; or its helper
//!              ├─ a write of whole grains ───────▶ here: a copy into the page cache
//!              ├─ a flush ───────────────────────▶ ended at once
//!              └─ the rest ──────────────────────▶ threads, on the overlay
//! ```
//!
//! All three make the same event fd readable. Which image has a byte is decided when a job is
//! submitted. That it may be another when the job is done makes no difference: only a job in flight
//! at the same time can change it, and those have no order.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Engine, IoMode, Threads, Uring};
use crate::storage::image::{Job, Layers, Place, Work, hole};

/// See the [module](self).
pub struct Layered {
    layers: Arc<dyn Layers>,
    top: Uring,
    base: Option<Box<dyn Engine>>,
    threads: Threads,
    /// Jobs that the threads have.
    in_threads: usize,
    done: VecDeque<(Job, io::Result<()>)>,
}

impl Layered {
    /// Engines for `slots` jobs on `layers`, and at most so many `threads`.
    ///
    /// # Errors
    /// When the host has no io_uring, or not for this process.
    pub fn new(
        layers: Arc<dyn Layers>,
        slots: u16,
        threads: usize,
        event: &Arc<EventFd>,
    ) -> io::Result<Self> {
        let base = layers.base();
        let base: Option<Box<dyn Engine>> = match base.raw_file() {
            Some(_) => Some(Box::new(Uring::new(base.clone(), slots, event)?)),
            None if base.clone().helped().is_some() => {
                Some(super::start(base, IoMode::Auto, slots, threads, event))
            }
            None => None,
        };
        Ok(Layered {
            top: Uring::new(layers.top(), slots, event)?,
            base,
            threads: Threads::new(layers.clone(), threads, event.clone()),
            layers,
            in_threads: 0,
            done: VecDeque::new(),
        })
    }

    fn by_threads(&mut self, job: Job) {
        self.in_threads = self.in_threads.saturating_add(1);
        self.threads.submit(job);
    }

    fn engines(&mut self) -> impl Iterator<Item = &mut dyn Engine> {
        let base = self
            .base
            .as_mut()
            .map(|base| &mut **base as &mut dyn Engine);
        let others: [&mut dyn Engine; 2] = [&mut self.top, &mut self.threads];
        others.into_iter().chain(base)
    }
}

impl Engine for Layered {
    fn submit(&mut self, mut job: Job) {
        let in_top = |offset, len| self.layers.place(offset, len) == Place::Top;
        match job.work {
            Work::Flush => self.done.push_back((job, Ok(()))),
            Work::Discard { .. } => self.top.submit(job),
            Work::Zero { offset, len, .. } if in_top(offset, len) => {
                job.work = hole(offset, len);
                self.top.submit(job);
            }
            Work::Read { offset } => {
                let place = self.layers.place(offset, job.buffers.len());
                match (place, &mut self.base) {
                    (Place::Top, _) => self.top.submit(job),
                    (Place::Base, Some(base)) => base.submit(job),
                    _ => self.by_threads(job),
                }
            }
            Work::Write { offset, .. } => {
                if in_top(offset, job.buffers.len()) {
                    job.work = Work::Write {
                        offset,
                        durable: false,
                    };
                    return self.top.submit(job);
                }
                match self.layers.write_whole(offset, &mut job.buffers) {
                    Some(result) => self.done.push_back((job, result)),
                    None => self.by_threads(job),
                }
            }
            Work::Zero { .. } => self.by_threads(job),
        }
    }

    fn commit(&mut self) {
        self.engines().for_each(|engine| engine.commit());
    }

    fn complete(&mut self) -> Option<(Job, io::Result<()>)> {
        let done = self.done.pop_front().or_else(|| {
            let (job, result) = self.top.complete()?;
            Some((job, result.map_err(|error| self.layers.explained(error))))
        });
        let done = done.or_else(|| self.base.as_mut()?.complete());
        done.or_else(|| {
            let done = self.threads.complete();
            let ended = usize::from(done.is_some());
            self.in_threads = self.in_threads.saturating_sub(ended);
            done
        })
    }

    fn ready(&mut self) -> bool {
        !self.done.is_empty() || self.engines().any(|engine| engine.ready())
    }

    fn rearm(&mut self) -> bool {
        // Each of them is armed, also when the first has something already.
        let ended = self
            .engines()
            .filter_map(|engine| engine.rearm().then_some(()));
        ended.count() > 0 || !self.done.is_empty()
    }

    fn has_threads(&self) -> bool {
        self.in_threads > 0
    }

    fn drain(&mut self) {
        self.done.clear();
        self.in_threads = 0;
        self.engines().for_each(|engine| engine.drain());
    }
}
