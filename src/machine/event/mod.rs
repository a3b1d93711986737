//! The event loop: epoll, and who listens on what.
//!
//! | subscriber | file descriptors |
//! |---|---|
//! | [`Control`](crate::machine::control::Control) | end of the machine, the last vCPU has parked, signals, time limit and the time to power off |
//! | [`Console`](crate::console::Console) | the serial port's wake-up and timer, stdin, stdout when it was full, the timer of a guest that takes no input |
//! | [`OwnLines`](own_lines::OwnLines) | standard error, when it was full |
//! | [`QueueIo`](queue_io::QueueIo) | the ioeventfd of a device's queue, its event fd, the timer of its rate limit |

pub mod io_threads;
pub mod own_lines;
pub mod queue_io;

use std::io;

use event_manager::{EventManager, EventSet, Events, SubscriberOps};

use crate::board::Watcher;
use crate::machine::error::{StartError, host};

/// Any subscriber of the main thread.
pub type Subscriber = Box<dyn Watcher>;

/// The loop of the main thread, or of an I/O thread.
pub struct EventLoop<S: Watcher = Subscriber>(EventManager<S>);

impl<S: Watcher> EventLoop<S> {
    /// A loop without subscribers.
    ///
    /// # Errors
    /// When the host gives no epoll instance.
    pub fn new() -> Result<Self, StartError> {
        EventManager::new()
            .map(EventLoop)
            .map_err(|error| host("make an event loop")(reason(error)))
    }

    /// Adds a subscriber, and watches its file descriptors.
    ///
    /// # Errors
    /// When the host does not let them be watched: nothing would be heard of them.
    pub fn add(&mut self, subscriber: S) -> Result<(), StartError> {
        let refused = |error| host("watch for events")(reason(error));
        let watched = subscriber.watched();
        let id = self.0.add_subscriber(subscriber);
        let mut ops = self.0.event_ops(id).map_err(refused)?;
        for (fd, data) in watched {
            let events = Events::with_data_raw(fd, data, EventSet::IN);
            ops.add(events).map_err(refused)?;
        }
        Ok(())
    }

    /// Waits for events and hands them out.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn run_once(&mut self) -> Result<(), StartError> {
        match self.0.run() {
            Ok(_) => Ok(()),
            Err(error) => Err(host("wait for events")(reason(error))),
        }
    }
}

/// The host's reason, where there is one.
fn reason(error: event_manager::Error) -> io::Error {
    match error {
        event_manager::Error::Epoll(errno) => errno.into(),
        error => io::Error::other(error.to_string()),
    }
}
