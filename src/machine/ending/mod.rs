//! Why a machine ends, and how its threads learn of it.

pub mod crash;
pub mod reset;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use vmm_sys_util::eventfd::EventFd;

use crate::board::Waiting;
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
    /// A vCPU thread of ours panicked. In a release build that ends the whole process at once.
    #[cfg(panic = "unwind")]
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
            Exit::Panicked | Exit::Crashed(_) => ExitStatus::GuestCrash,
            #[cfg(panic = "unwind")]
            Exit::Defect => ExitStatus::GuestCrash,
        }
    }
}

/// What is called at each [`ExitBox::post`].
type Alarm = Box<dyn Fn() + Send + Sync>;

/// Where the reason to end is put.
pub struct ExitBox {
    exit: Mutex<Option<Exit>>,
    stop: AtomicBool,
    wake: EventFd,
    alarm: OnceLock<Alarm>,
    /// The vCPUs that wait for a device.
    waiting: Arc<Waiting>,
}

impl fmt::Debug for ExitBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExitBox")
            .field("exit", &self.exit)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
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
            alarm: OnceLock::new(),
            waiting: Arc::default(),
        })
    }

    /// How a vCPU waits for a device: the end interrupts it.
    pub fn waiting(&self) -> Arc<Waiting> {
        self.waiting.clone()
    }

    /// Has `alarm` called at the end, on whatever thread has a reason for it, to tell those who do not
    /// watch [`ExitBox::wake_fd`]: the vCPUs, running or parked. Only the first one counts.
    pub fn set_alarm(&self, alarm: impl Fn() + Send + Sync + 'static) {
        let _ = self.alarm.set(Box::new(alarm));
        if self.stopped() {
            self.raise_alarm();
        }
    }

    fn raise_alarm(&self) {
        if let Some(alarm) = self.alarm.get() {
            alarm();
        }
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
        self.raise_alarm();
        // After the alarm: a vCPU that comes back from a wait finds that it has to end, and runs no further
        // instruction.
        self.waiting.end();
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
    fn the_alarm_is_raised_whenever_it_is_set() {
        let count = |early: bool| {
            let exit = ExitBox::new().unwrap();
            let raised = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
            let counter = raised.clone();
            let set = || {
                exit.set_alarm(move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                });
            };
            if early {
                set();
                assert_eq!(raised.load(Ordering::SeqCst), 0);
                exit.post(Exit::Quit);
            } else {
                exit.post(Exit::Quit);
                set();
            }
            raised.load(Ordering::SeqCst)
        };
        assert_eq!((count(true), count(false)), (1, 1));
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
