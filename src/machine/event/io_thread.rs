//! A thread with an event loop of its own, for a queue that asks for one (`iothread`).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::EventLoop;
use super::queue_io::QueueIo;
use crate::limits;
use crate::machine::error::{StartError, host};
use crate::sandbox::{self, Role};

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

    fn init(&mut self, ops: &mut EventOps) {
        let event = Events::with_data_raw(self.0.fd.as_raw_fd(), 0, EventSet::IN);
        if let Err(error) = ops.add(event) {
            log::error!("cannot watch for the end of an I/O thread: {error}");
        }
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
            let mut events = match EventLoop::new() {
                Ok(events) => events,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            events.add(Box::new(StopEvent(theirs.clone())));
            events.add(Box::new(queue));
            let _ = ready.send(Ok(()));
            sandbox::enter(Role::Io);
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
