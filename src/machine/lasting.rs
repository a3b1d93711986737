//! What outlives a reset of the machine: signals, the terminal with the console's line, and the time
//! limit.

use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::error::{StartError, host};
use super::plan::Plan;
use super::signals::Signals;
use super::vcpu::kick;
use crate::console::endpoints::{self, Endpoints};
use crate::outlet::stderr;
use crate::sandbox::Role;

/// See the [module](self).
pub struct Lasting {
    pub(super) signals: Rc<Signals>,
    pub(super) ends: Endpoints,
    /// What the main thread is to the sandbox.
    pub(super) role: Role,
    /// Readable when lines of our own wait for somebody who reads standard error.
    pub(super) own_lines: RawFd,
    /// When the time limit is over.
    deadline: Option<Instant>,
}

impl Lasting {
    /// Takes signals and terminal over, and opens the console. What fails later is said when this is gone, on a
    /// terminal that is as it was.
    pub(super) fn open(plan: &Plan) -> Result<Self, StartError> {
        let signals = Signals::block().map_err(host("watch for signals"))?;
        kick::install_handler().map_err(host("install a signal handler"))?;
        // The threads of this, and of the console's files, inherit the blocked signals.
        let own_lines = stderr::never_wait().map_err(host("write to standard error"))?;
        let now = Instant::now();
        Ok(Lasting {
            signals: Rc::new(signals),
            role: match plan.config.reboot {
                true => Role::MainReboot,
                false => Role::Main,
            },
            ends: endpoints::open(&plan.config.console)?,
            own_lines,
            deadline: plan.config.time_limit.and_then(|t| now.checked_add(t)),
        })
    }

    /// What is left of the time limit; never nothing, which would be a timer that is off.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        Some(left.max(Duration::from_nanos(1)))
    }
}
