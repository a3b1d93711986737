//! What ends a machine from outside, or has it pause: signals and the time limit. The second half of a pause is done
//! here as well, as this is who is told when the last vCPU has parked.

use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use super::ending::Exit;
use super::handle::{Machine, Reached};
use super::signals::{self, Signals};
use crate::board::{IrqLine, Watcher};

/// How long a guest has to power off after its power button was pressed.
const GRACE: Duration = Duration::from_secs(10);

/// When to look again whether what is in flight has ended, at a pause; then after twice as long each time, up
/// to the last.
const FIRST_LOOK: Duration = Duration::from_micros(200);
const LAST_LOOK: Duration = Duration::from_millis(50);

const STOP: u32 = 0;
const SIGNAL: u32 = 1;
const LIMIT: u32 = 2;
const GRACE_OVER: u32 = 3;
const PARKED: u32 = 4;
const LOOK_AGAIN: u32 = 5;

/// The subscriber.
pub struct Control {
    machine: Arc<Machine>,
    signals: Rc<Signals>,
    power_button: IrqLine,
    limit: Option<TimerFd>,
    grace: TimerFd,
    /// Set while a pause waits for what is in flight, and for how long.
    look_again: TimerFd,
    look_after: Duration,
    pressed_by: Option<&'static str>,
    listeners: Listeners,
}

/// What is called when something has happened.
pub struct Listeners {
    /// After SIGCONT.
    pub on_continue: Box<dyn Fn()>,
    /// The terminal may have another size.
    pub on_resize: Box<dyn Fn()>,
    /// The machine has come to be paused.
    pub on_paused: Box<dyn Fn()>,
}

impl Control {
    /// `power_button` is pulled at the first signal that asks for the end.
    ///
    /// # Errors
    /// When the host gives no timers.
    pub fn new(
        machine: Arc<Machine>,
        signals: Rc<Signals>,
        power_button: IrqLine,
        time_limit: Option<Duration>,
        listeners: Listeners,
    ) -> std::io::Result<Self> {
        let limit = match time_limit {
            None => None,
            Some(time) => {
                let mut timer = TimerFd::new()?;
                timer.reset(time, None)?;
                Some(timer)
            }
        };
        Ok(Control {
            machine,
            signals,
            power_button,
            limit,
            grace: TimerFd::new()?,
            look_again: TimerFd::new()?,
            look_after: FIRST_LOOK,
            pressed_by: None,
            listeners,
        })
    }

    /// Whether a signal has asked for the end, and the guest was told so.
    pub fn pressed(&self) -> bool {
        self.pressed_by.is_some()
    }

    /// All vCPUs may be parked, or a device quiet.
    fn on_parked(&mut self) {
        match self.machine.on_parked() {
            Reached::Nothing => {}
            Reached::AllParked => {
                if let Err(error) = self.look_again.reset(self.look_after, None) {
                    log::error!(
                        "cannot set a timer, so the machine does not come to be paused: {error}"
                    );
                }
                self.look_after = self.look_after.saturating_mul(2).min(LAST_LOOK);
            }
            Reached::Paused => (self.listeners.on_paused)(),
        }
    }

    fn on_signal(&mut self, signal: libc::c_int) {
        match signal {
            libc::SIGCONT => return (self.listeners.on_continue)(),
            libc::SIGWINCH => return (self.listeners.on_resize)(),
            signals::PAUSE => return self.machine.pause(),
            signals::RESUME => return self.machine.resume(),
            _ => {}
        }
        let name = signals::name(signal);
        if self.pressed_by.is_some() || self.grace.reset(GRACE, None).is_err() {
            self.machine.end(Exit::Signal(name));
            return;
        }
        // A guest that is parked cannot power off.
        self.machine.resume();
        log::info!("{name}: pressing the guest's power button; once more, or 10 s, ends it");
        self.pressed_by = Some(name);
        self.power_button.pull();
    }
}

impl MutEventSubscriber for Control {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            SIGNAL => {
                while let Some(signal) = self.signals.next() {
                    self.on_signal(signal);
                }
            }
            LIMIT => self.machine.end(Exit::TimeLimit),
            GRACE_OVER => {
                let name = self.pressed_by.unwrap_or("a signal");
                self.machine.end(Exit::Signal(name));
            }
            PARKED => {
                self.look_after = FIRST_LOOK;
                self.on_parked();
            }
            LOOK_AGAIN => {
                // Not read, which could wait for a timer that was set anew.
                let _ = self.look_again.clear();
                self.on_parked();
            }
            // The loop looks at the exit box itself. The event stays, but only this once.
            _ => {
                let _ = ops.remove(Events::empty(self.machine.exit.wake_fd()));
            }
        }
    }

    fn init(&mut self, _ops: &mut EventOps) {}
}

impl Watcher for Control {
    fn watched(&self) -> Vec<(RawFd, u32)> {
        let limit = self.limit.as_ref().map(|timer| (timer.as_raw_fd(), LIMIT));
        let watched = [
            (self.machine.exit.wake_fd().as_raw_fd(), STOP),
            (self.machine.all_parked_fd(), PARKED),
            (self.signals.as_raw_fd(), SIGNAL),
            (self.grace.as_raw_fd(), GRACE_OVER),
            (self.look_again.as_raw_fd(), LOOK_AGAIN),
        ];
        watched.into_iter().chain(limit).collect()
    }
}
