//! From a [`Plan`] to its end, over as many lives of the machine as there are.
//!
//! ```text
//!                                     ┌───────── a reset, with --reboot ─┐
//!                                     ▼                                  │
//!   Plan ─▶ Lasting ─▶ confine ─▶ Machine::build ─▶ Machine::run ─▶ Exit ┴─▶ the end
//! ```
//!
//! Every file is opened before the process is confined ([`sandbox`]), the console's and /dev/kvm among
//! them. A machine is built without opening any, also when it is not the first.
//!
//! A machine that starts again is a new one: new VM, new vCPUs, new devices, and kernel and boot
//! tables loaded again from the files of the plan. What stays is what the outside holds on to: the
//! console with its terminal, the disks with their locks and what a snapshot's guest has written, the
//! time limit; and the mapping of guest memory, which is emptied in between. A new machine runs, also where
//! the one before it was to pause as it was reset.

use std::sync::Arc;

use super::ending::Exit;
use super::error::{StartError, host};
use super::host as kvm;
use super::lasting::Lasting;
use super::run::{Remains, finish};
use super::{Machine, Plan};
use crate::board::Board;
use crate::memory::ram;
use crate::sandbox;

/// Runs the machine that `plan` describes to its end; with `reboot` in its configuration, the end
/// of a guest that resets it is the beginning of the next.
///
/// # Errors
/// When the machine, threads or the console cannot be had. Once the guest runs, every end is an
/// [`Exit`].
pub fn run(mut plan: Plan) -> Result<Exit, StartError> {
    ram::share_heap();
    let kvm = Arc::new(kvm::open()?);
    let memory = Arc::new(ram::map(plan.config.memory, plan.config.memory_backing)?);
    if plan.config.core {
        ram::have_in_core_dumps(&memory);
    }
    let mut lasting = Lasting::open(&plan)?;
    // All files are open, and there are no other threads yet.
    sandbox::confine()?;
    loop {
        let machine = Arc::new(Machine::build(&plan, &memory, &kvm)?);
        let mut remains = Remains::default();
        let ended = machine.run(&mut lasting, &mut remains);
        let again = match &ended {
            Ok((Exit::Reset(how), asked_to_end)) if plan.config.reboot && !asked_to_end => {
                log::info!("the guest asked for a reset ({how}): starting again");
                true
            }
            _ => false,
        };
        let held = match again {
            true => Board::default(),
            false => std::mem::take(&mut plan.board),
        };
        let quiet = finish(remains, held);
        if again && quiet {
            ram::clear(&memory, plan.config.memory_backing).map_err(host("empty guest memory"))?;
            continue;
        }
        if !quiet {
            // Its files are on a host that does not answer, and closing one of them might wait for that.
            std::mem::forget(plan);
        }
        return ended.map(|(exit, _)| exit);
    }
}
