//! From a [`Plan`] to its end, over as many lives of the machine as there are.
//!
//! ```text
//!            ┌─────────────────────────────────── a reset, with --reboot ─┐
//!            ▼                                                            │
//!   Plan ─▶ Machine::build ─▶ Machine::run ─▶ Exit ───────────────────────┴─▶ the end
//! ```
//!
//! A machine that starts again is a new one: new VM, new vCPUs, new devices, and kernel and boot
//! tables loaded again from the files of the plan. What stays is what the outside holds on to: the
//! console with its terminal, the disks with their locks and what a snapshot's guest has written, the
//! time limit; and the mapping of guest memory, which is emptied in between.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::endpoints::{self, Endpoints};
use super::error::{StartError, host};
use super::exit::Exit;
use super::run::{Remains, finish};
use super::signals::Signals;
use super::{Machine, Plan, memory, vcpu};

/// What outlives a reset.
pub struct Session {
    pub(super) signals: Rc<Signals>,
    pub(super) ends: Endpoints,
    /// When the time limit is over.
    deadline: Option<Instant>,
}

impl Session {
    /// Takes signals and terminal over. This comes after all that can fail, so that errors are
    /// printed on a terminal that nobody has changed.
    fn open(plan: &Plan) -> Result<Self, StartError> {
        let signals = Signals::block().map_err(host("watch for signals"))?;
        vcpu::install_kick_handler().map_err(host("install a signal handler"))?;
        let now = Instant::now();
        Ok(Session {
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

/// Runs the machine that `plan` describes to its end; with `reboot` in its configuration, the end
/// of a guest that resets it is the beginning of the next.
///
/// # Errors
/// When the machine, threads or the console cannot be had. Once the guest runs, every end is an
/// [`Exit`].
pub fn run(mut plan: Plan) -> Result<Exit, StartError> {
    memory::share_heap();
    let memory = Arc::new(memory::map(plan.config.memory, plan.config.memory_backing)?);
    let mut session = None;
    loop {
        let machine = Machine::build(&plan, &memory)?;
        let session = match &mut session {
            Some(session) => session,
            None => session.insert(Session::open(&plan)?),
        };
        let mut remains = Remains::default();
        let ended = machine.run(session, &mut remains);
        let again = match &ended {
            Ok((Exit::Reset(how), asked_to_end)) if plan.config.reboot && !asked_to_end => {
                log::info!("the guest asked for a reset ({how}): starting again");
                true
            }
            _ => false,
        };
        let disks = match again {
            true => Vec::new(),
            false => std::mem::take(&mut plan.disks),
        };
        let quiet = finish(remains, disks);
        if again && quiet {
            memory::clear(&memory, plan.config.memory_backing)
                .map_err(host("empty guest memory"))?;
            continue;
        }
        return ended.map(|(exit, _)| exit);
    }
}
