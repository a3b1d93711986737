//! Why a machine ends, and how its threads learn of it.

pub mod crash;
pub mod reset;

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::error::ExitStatus;
use crate::sync::lock;
use crash::Crash;

/// Why the machine has ended.
#[derive(Debug)]
pub enum Exit {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset, by this way.
    Reset(&'static str),
    /// The user typed Ctrl-a x.
    Quit,
    /// A signal of this name, and the guest did not power off by itself in time.
    Signal(&'static str),
    /// The time limit.
    TimeLimit,
    /// The guest's kernel said that it has panicked.
    Panicked,
    /// A vCPU thread of ours panicked.
    Defect,
    /// A vCPU cannot go on.
    Crashed(Box<Crash>),
}

impl Exit {
    /// The process's exit code.
    pub fn status(&self) -> ExitStatus {
        match self {
            Exit::PoweredOff | Exit::Reset(_) | Exit::Quit => ExitStatus::Success,
            Exit::Signal(_) => ExitStatus::Signal,
            Exit::TimeLimit => ExitStatus::TimeLimit,
            Exit::Panicked | Exit::Defect | Exit::Crashed(_) => ExitStatus::GuestCrash,
        }
    }
}

/// Where the reason to end is put.
#[derive(Debug)]
pub struct ExitBox {
    exit: Mutex<Option<Exit>>,
    stop: AtomicBool,
    wake: EventFd,
}

impl ExitBox {
    /// An empty box.
    ///
    /// # Errors
    /// When no event fd can be made.
    pub fn new() -> io::Result<Self> {
        Ok(ExitBox {
            exit: Mutex::new(None),
            stop: AtomicBool::new(false),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Ends the machine for this reason. The first one stands; but whoever ends the machine from
    /// outside ends it for good, also when the guest has just asked for a reset.
    pub fn post(&self, exit: Exit) {
        let mut reason = lock(&self.exit);
        let from_outside = matches!(exit, Exit::Quit | Exit::Signal(_) | Exit::TimeLimit);
        if reason.is_none() || from_outside && matches!(*reason, Some(Exit::Reset(_))) {
            *reason = Some(exit);
        }
        drop(reason);
        self.stop.store(true, Ordering::SeqCst);
        // Failure means that a wake-up is pending already.
        let _ = self.wake.write(1);
    }

    /// True from the first [`ExitBox::post`] on.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Becomes readable with the first [`ExitBox::post`].
    pub fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    /// The reason.
    pub fn take(&self) -> Option<Exit> {
        lock(&self.exit).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stands() {
        let exit = ExitBox::new().unwrap();
        assert!(!exit.stopped());
        exit.post(Exit::Quit);
        exit.post(Exit::TimeLimit);
        assert!(exit.stopped());
        assert!(matches!(exit.take(), Some(Exit::Quit)));
    }

    #[test]
    fn a_reset_gives_way_to_whoever_ends_the_machine() {
        let exit = ExitBox::new().unwrap();
        exit.post(Exit::Reset("x"));
        exit.post(Exit::Panicked);
        exit.post(Exit::Quit);
        exit.post(Exit::TimeLimit);
        assert!(matches!(exit.take(), Some(Exit::Quit)));
    }
}
