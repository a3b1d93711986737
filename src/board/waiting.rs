//! What a vCPU's thread may wait for inside a device: that something has come about, or that the machine ends.
//!
//! A register write that resets a disk waits for what the host's storage is doing, and nobody knows how long
//! that takes. The end of the machine must not wait for it. So there is one place for all such waits of a
//! machine, and [`Waiting::end`] wakes all of them.
//!
//! They are rare, so one condition variable does for all: whoever is woken looks whether it was meant.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::sync::lock;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Waiting {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Waiting {
    /// Waits until `come` says yes. False when the machine has ended before.
    pub fn until(&self, come: impl Fn() -> bool) -> bool {
        let mut ended = lock(&self.ended);
        loop {
            // Looked at with the lock held: who makes it true calls `look` afterwards, and that waits for
            // the lock, so the wake-up is not lost.
            if come() {
                return true;
            }
            if *ended {
                return false;
            }
            let woken = self.changed.wait(ended);
            ended = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has everybody who waits look again: something may have come about.
    pub fn look(&self) {
        drop(lock(&self.ended));
        self.changed.notify_all();
    }

    /// The machine has ended: nobody waits any more.
    pub fn end(&self) {
        *lock(&self.ended) = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_waits_hears_of_what_has_come_and_of_the_end() {
        for ends in [false, true] {
            let (waiting, come) = (Waiting::default(), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let waits = scope.spawn(|| waiting.until(|| come.load(Ordering::SeqCst)));
                std::thread::sleep(Duration::from_millis(20));
                waiting.look();
                assert!(!waits.is_finished(), "nothing has come yet");
                if ends {
                    waiting.end();
                } else {
                    come.store(true, Ordering::SeqCst);
                    waiting.look();
                }
                assert_eq!(waits.join().unwrap(), !ends);
            });
            waiting.end();
            assert!(!waiting.until(|| false), "after the end nobody waits");
        }
    }
}
