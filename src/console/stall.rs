//! What happens to typed bytes while the guest takes none.
//!
//! ```text
//!              there is no room                  a second without a byte taken
//!   Flowing ─────────────────────▶ Waiting ───────────────────────────────────▶ Losing
//!      ▲                              │ room again                                 │
//!      └──────────────────────────────┴────────────── the guest takes a byte ◀─────┘
//! ```
//!
//! Waiting, nothing is read: a paste waits in the terminal, as input from a pipe does. But Ctrl-a x
//! has to work with a guest that never reads, so after a second the terminal is read again for the
//! sake of the escape keys, and what else comes is counted, lost, and reported.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

/// So long the terminal waits for a guest that takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Flowing,
    Waiting {
        /// The guest has taken something since the timer was set.
        progress: bool,
    },
    Losing {
        lost: u64,
    },
}

/// The state of the line from a terminal to the guest.
#[derive(Debug)]
pub struct Stall {
    timer: TimerFd,
    state: State,
}

impl Stall {
    /// A line that flows.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn new() -> io::Result<Self> {
        Ok(Stall {
            timer: TimerFd::new()?,
            state: State::Flowing,
        })
    }

    /// Readable when [`Stall::timer_expired`] is to be called.
    pub fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// True when the terminal is read although there is no room.
    pub fn is_losing(&self) -> bool {
        matches!(self.state, State::Losing { .. })
    }

    /// There is no room for more input.
    pub fn full(&mut self) {
        if self.state == State::Flowing {
            self.wait();
        }
    }

    /// The guest has taken input, and there may be room again. Returns how many bytes were lost,
    /// when that is over now.
    pub fn taken(&mut self, room: bool) -> Option<u64> {
        match self.state {
            State::Flowing => None,
            State::Waiting { .. } => {
                self.state = match room {
                    true => State::Flowing,
                    false => State::Waiting { progress: true },
                };
                None
            }
            State::Losing { lost } => {
                self.state = State::Flowing;
                Some(lost)
            }
        }
    }

    /// A byte had no room.
    pub fn lose(&mut self) {
        if let State::Losing { lost } = &mut self.state {
            *lost = lost.saturating_add(1);
        }
    }

    /// The timer was readable. True when bytes are lost from now on.
    pub fn timer_expired(&mut self) -> bool {
        // It is readable, or it will not be: nothing to wait for either way.
        let _ = self.timer.clear();
        match self.state {
            State::Waiting { progress: true } => self.wait(),
            State::Waiting { progress: false } => self.state = State::Losing { lost: 0 },
            State::Flowing | State::Losing { .. } => return false,
        }
        self.is_losing()
    }

    fn wait(&mut self) {
        self.state = match self.timer.reset(PATIENCE, None) {
            Ok(()) => State::Waiting { progress: false },
            // Without a timer the escape keys matter more than a paste.
            Err(_) => State::Losing { lost: 0 },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_takes_bytes_slowly_loses_none() {
        let mut stall = Stall::new().unwrap();
        stall.full();
        for _ in 0..3 {
            assert_eq!(stall.taken(false), None);
            assert!(!stall.timer_expired(), "something was taken in this second");
        }
        assert_eq!(stall.taken(true), None);
        assert!(!stall.timer_expired());
        assert!(!stall.is_losing());
    }

    #[test]
    fn what_a_deaf_guest_loses_is_counted() {
        let mut stall = Stall::new().unwrap();
        stall.lose();
        stall.full();
        stall.lose();
        assert!(stall.timer_expired());
        stall.lose();
        stall.lose();
        stall.full();
        assert!(stall.is_losing());
        assert_eq!(stall.taken(true), Some(2));
        assert!(!stall.is_losing());
    }
}
