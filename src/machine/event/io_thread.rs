//! A thread with an event loop of its own, for a queue that asks for one (`iothread`).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::EventLoop;
use super::queue_io::QueueIo;
use crate::board::Watcher;
use crate::limits;
use crate::machine::error::{StartError, host};

/// The thread; it ends when this is dropped.
pub struct IoThread {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

struct Stop {
    fd: EventFd,
    stopped: AtomicBool,
}

/// Wakes the loop, which then looks at the flag.
struct StopEvent(Arc<Stop>);

impl MutEventSubscriber for StopEvent {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.fd.read();
    }

    fn init(&mut self, _ops: &mut EventOps) {}
}

impl Watcher for StopEvent {
    fn watched(&self) -> Vec<(RawFd, u32)> {
        vec![(self.0.fd.as_raw_fd(), 0)]
    }
}

impl IoThread {
    /// Runs `queue` on a new thread called `name`.
    ///
    /// # Errors
    /// When the host gives no thread or file descriptor.
    pub fn start(name: String, queue: QueueIo) -> Result<Self, StartError> {
        let fd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(host("make an event fd"))?;
        let stop = Arc::new(Stop {
            fd,
            stopped: AtomicBool::new(false),
        });
        let theirs = stop.clone();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let body = move || {
            let events = match event_loop(StopEvent(theirs.clone()), queue) {
                Ok(events) => events,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            if let Err(error) = run(&theirs, events) {
                log::error!("an I/O thread has ended: {error}");
            }
        };
        let thread = limits::spawn(name, body).map_err(host("start an I/O thread"))?;
        // A disk that nobody serves would be found out by the guest alone.
        let gone = |_| StartError::Defect("an I/O thread has panicked".into());
        is_ready.recv().map_err(gone)??;
        Ok(IoThread {
            stop,
            thread: Some(thread),
        })
    }
}

fn event_loop(stop: StopEvent, queue: QueueIo) -> Result<EventLoop, StartError> {
    let mut events = EventLoop::new()?;
    events.add(Box::new(stop))?;
    events.add(Box::new(queue))?;
    Ok(events)
}

fn run(stop: &Arc<Stop>, mut events: EventLoop) -> Result<(), StartError> {
    while !stop.stopped.load(Ordering::Acquire) {
        events.run_once()?;
    }
    Ok(())
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.stop.stopped.store(true, Ordering::Release);
        let told: io::Result<()> = self.stop.fd.write(1);
        if let (Ok(()), Some(thread)) = (told, self.thread.take()) {
            // A thread that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}
