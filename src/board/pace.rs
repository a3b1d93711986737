//! When the event loop is told of output: at once, or in a moment together with what follows.
//!
//! A guest prints byte by byte, or in small pieces. To wake the loop for each of them would cost two context switches
//! a byte; to wait for more would make a key's echo late. So the first byte after a pause goes at
//! once, a line goes when it is complete, and everything else waits for half a millisecond at most.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// The longest a byte waits.
const LINGER: Duration = Duration::from_micros(500);
/// After this time without output, the next byte goes at once.
const PAUSE: Duration = Duration::from_millis(2);
/// So many bytes go although no line has ended.
const ENOUGH: usize = 256;

/// Decides, and wakes.
#[derive(Debug)]
pub struct Pace {
    wake: Arc<EventFd>,
    timer: TimerFd,
    armed: bool,
    last: Option<Instant>,
}

impl Pace {
    /// Wakes through `wake`, now, or through [`Pace::timer`], in a moment.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn new(wake: Arc<EventFd>) -> io::Result<Self> {
        Ok(Pace {
            wake,
            timer: TimerFd::new()?,
            armed: false,
            last: None,
        })
    }

    /// Readable when lingering bytes are due.
    pub fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// The timer has been heard.
    pub fn expired(&mut self) {
        if self.armed {
            // It is readable, or it will not be: nothing to wait for either way.
            let _ = self.timer.clear();
            self.armed = false;
        }
    }

    /// `bytes` have joined others, so that `waiting` are there.
    pub fn output(&mut self, bytes: &[u8], waiting: usize) {
        let before = waiting.saturating_sub(bytes.len());
        let whole = bytes.contains(&b'\n') || before < ENOUGH && waiting >= ENOUGH;
        if !whole && before != 0 {
            return;
        }
        let now = Instant::now();
        let paused = self
            .last
            .is_none_or(|last| now.duration_since(last) > PAUSE);
        if whole || paused {
            self.last = Some(now);
            // Failure means a wake-up is pending already.
            let _ = self.wake.write(1);
        } else if !self.armed {
            self.armed = self.timer.reset(LINGER, None).is_ok();
            if !self.armed {
                let _ = self.wake.write(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> (Pace, Arc<EventFd>) {
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        (Pace::new(wake.clone()).unwrap(), wake)
    }

    #[test]
    fn the_first_byte_goes_at_once_and_the_next_line_as_a_whole() {
        let (mut pace, wake) = pace();
        pace.output(b"a", 1);
        assert_eq!(wake.read().unwrap(), 1);
        // Drained at once; the next bytes come within the pause.
        pace.last = Some(Instant::now() + PAUSE);
        pace.output(b"b", 1);
        pace.output(b"c", 2);
        assert!(wake.read().is_err(), "they linger");
        assert!(pace.armed);
        pace.output(b"d\n", 4);
        assert_eq!(wake.read().unwrap(), 1);
    }

    #[test]
    fn bytes_without_an_end_go_after_a_moment_or_when_they_are_many() {
        let (mut pace, wake) = pace();
        pace.last = Some(Instant::now() + PAUSE);
        pace.output(b"$", 1);
        let mut poll = libc::pollfd {
            fd: pace.timer(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, for the call.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
        pace.expired();
        assert!(!pace.armed);
        pace.output(b"xy", ENOUGH + 1);
        assert_eq!(wake.read().unwrap(), 1);
    }
}
