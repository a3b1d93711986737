//! Threads that do blocking calls, for images and hosts where io_uring cannot be had.
//!
//! All of them are made with the engine, which is before the guest runs: nothing that a guest does makes
//! a thread. A host that allows fewer has fewer; one that allows none has the work done by the caller.
//!
//! The thread that has become idle last is the first to be woken: its stack and what it has read are still
//! in the processor's cache, and with one request at a time it is always the same.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::Engine;
use crate::limits;
use crate::sandbox::{self, Role};
use crate::storage::image::{Image, Job};

/// See the [module](self).
pub struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// One for each thread: there is work for it, or none will come any more.
    bells: Vec<Condvar>,
    /// Everything has ended.
    idle: Condvar,
    image: Arc<dyn Image>,
    event: Arc<EventFd>,
    /// The length of `done`.
    ended: AtomicUsize,
}

#[derive(Default)]
struct State {
    todo: VecDeque<Job>,
    done: VecDeque<(Job, io::Result<()>)>,
    /// Jobs in the hands of threads.
    running: usize,
    /// The threads that wait to be woken, by their numbers; the last came last.
    waiting: Vec<usize>,
    /// The worker wants the event fd to tell of the next job that ends.
    armed: bool,
    quit: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of thread `number`.
    fn work(&self, number: usize) {
        let mut state = self.lock();
        loop {
            if let Some(mut job) = state.todo.pop_front() {
                state.running = state.running.saturating_add(1);
                drop(state);
                let result = self.image.run(job.work, &mut job.buffers);
                state = self.lock();
                state.running = state.running.saturating_sub(1);
                state.done.push_back((job, result));
                self.ended.fetch_add(1, Ordering::AcqRel);
                if state.armed {
                    state.armed = false;
                    // This fails only when the event fd is readable already, which is as good.
                    let _ = self.event.write(1);
                }
                if state.running == 0 && state.todo.is_empty() {
                    self.idle.notify_all();
                }
            } else if state.quit {
                return;
            } else {
                let Some(bell) = self.bells.get(number) else {
                    return;
                };
                state.waiting.push(number);
                while state.waiting.contains(&number) && !state.quit {
                    state = bell.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl Threads {
    /// An engine with `count` threads, or as many of them as the host allows.
    pub fn new(image: Arc<dyn Image>, count: usize, event: Arc<EventFd>) -> Self {
        let mut engine = Threads {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                bells: (0..count).map(|_| Condvar::new()).collect(),
                idle: Condvar::new(),
                image,
                event,
                ended: AtomicUsize::new(0),
            }),
            threads: Vec::new(),
        };
        while engine.threads.len() < count && engine.hire() {}
        engine
    }

    /// One more thread; false when there is none to be had.
    fn hire(&mut self) -> bool {
        let shared = self.shared.clone();
        let number = self.threads.len();
        let thread = limits::spawn("disk-io".into(), move || {
            sandbox::enter(Role::Pool);
            shared.work(number);
        });
        match thread {
            Ok(thread) => {
                self.threads.push(thread);
                true
            }
            Err(error) => {
                log::debug!("no thread for disk I/O: {error}");
                false
            }
        }
    }
}

impl Engine for Threads {
    fn submit(&mut self, job: Job) {
        let mut state = self.shared.lock();
        state.todo.push_back(job);
        // The worker looks for ended jobs by itself from now on, until it calls `rearm`.
        state.armed = false;
        let woken = state.waiting.pop();
        drop(state);
        if let Some(bell) = woken.and_then(|number| self.shared.bells.get(number)) {
            bell.notify_one();
        }
        if self.threads.is_empty() {
            // The host allows no thread at all: the worker does it itself.
            let job = self.shared.lock().todo.pop_front();
            if let Some(mut job) = job {
                let result = self.shared.image.run(job.work, &mut job.buffers);
                self.shared.lock().done.push_back((job, result));
                self.shared.ended.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    fn commit(&mut self) {}

    fn complete(&mut self) -> Option<(Job, io::Result<()>)> {
        // While nothing has ended, not even the lock has to be taken.
        if !self.ready() {
            return None;
        }
        let end = self.shared.lock().done.pop_front();
        if end.is_some() {
            self.shared.ended.fetch_sub(1, Ordering::AcqRel);
        }
        end
    }

    fn ready(&mut self) -> bool {
        self.shared.ended.load(Ordering::Acquire) > 0
    }

    fn has_threads(&self) -> bool {
        true
    }

    fn rearm(&mut self) -> bool {
        let mut state = self.shared.lock();
        state.armed = true;
        !state.done.is_empty()
    }

    fn drain(&mut self) {
        let mut state = self.shared.lock();
        // A job that no thread has taken yet is dropped.
        state.todo.clear();
        while state.running > 0 {
            state = self
                .shared
                .idle
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.done.clear();
        self.shared.ended.store(0, Ordering::Release);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.drain();
        self.shared.lock().quit = true;
        self.shared.bells.iter().for_each(Condvar::notify_one);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}
