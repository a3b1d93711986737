//! What outlives a reset of the machine: signals, the terminal with the console's line, and the time
//! limit.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::error::{StartError, host};
use super::plan::Plan;
use super::signals::Signals;
use super::vcpu::kick;
use crate::console::endpoints::{self, Endpoints};

/// See the [module](self).
pub struct Lasting {
    pub(super) signals: Rc<Signals>,
    pub(super) ends: Endpoints,
    /// When the time limit is over.
    deadline: Option<Instant>,
}

impl Lasting {
    /// Takes signals and terminal over. This comes after all that can fail, so that errors are
    /// printed on a terminal that nobody has changed.
    pub(super) fn open(plan: &Plan) -> Result<Self, StartError> {
        let signals = Signals::block().map_err(host("watch for signals"))?;
        kick::install_handler().map_err(host("install a signal handler"))?;
        let now = Instant::now();
        Ok(Lasting {
            signals: Rc::new(signals),
            ends: endpoints::open(&plan.config.console)?,
            deadline: plan.config.time_limit.and_then(|t| now.checked_add(t)),
        })
    }

    /// What is left of the time limit; never nothing, which would be a timer that is off.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        Some(left.max(Duration::from_nanos(1)))
    }
}
