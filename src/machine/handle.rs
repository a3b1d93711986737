//! A machine as a handle: run it, pause it, have it go on, end it, ask for its state.
//!
//! ```text
//!                pause                all vCPUs parked, devices quiesced
//!   Running ──────────────▶ Pausing ────────────────────────────────────▶ Paused
//!      ▲                       │                                             │
//!      └───────────────────────┴──────────────── resume ─────────────────────┘
//!
//!   from each of them: end ─▶ Ended
//! ```
//!
//! One thread is in [`Machine::run`](super::run); all others, and what happens on that thread's event loop, may
//! call the rest at any time, in any order. Nothing here waits for a vCPU, but for [`Machine::wait_paused`], and
//! for a short time [`Machine::state`]: the event loop itself is among the callers, and what a vCPU waits for may be on
//! that loop.
//!
//! A pause stops the guest, not the time. The guest's clocks go on, as do the time limit and the
//! ten seconds that a guest has to power off. Timers that have run out meanwhile fire when it goes on.
//! What the guest has put into the serial port before is still written, and what is typed meanwhile is
//! kept for it.

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use serde::Serialize;
use serde_json::Value;

use super::ending::{Exit, ExitBox};
use super::vcpu::{Mailboxes, Shared, VcpuState, Vcpus, state::Activity};
use crate::board::{IrqLine, Lifecycle};
use crate::devices::serial::Uart;
use crate::sync::lock;
use crate::virtio::block::Block;

/// How long [`Machine::state`] waits for all vCPUs together.
const ANSWER: Duration = Duration::from_millis(50);
/// How often [`Machine::wait_paused`] looks at what nobody tells it.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its vCPUs run, or are about to.
    Running,
    /// They have been told to park, and not all have.
    Pausing,
    /// All vCPUs are parked, and the devices take nothing new. Something may still be in flight.
    Paused,
    /// There is a reason to end, and nothing leads back.
    Ended,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Running => "running",
            Phase::Pausing => "pausing",
            Phase::Paused => "paused",
            Phase::Ended => "ended",
        })
    }
}

/// A machine that is set up. [`Machine::run`](super::run) runs it, once.
pub struct Machine {
    /// Where its end is announced.
    pub(super) exit: Arc<ExitBox>,
    vcpus: Arc<Mailboxes>,
    /// Never [`Phase::Ended`], which `exit` knows. Held while vCPUs are told to park or to go on, and
    /// while devices are quiesced or resumed: these may not happen at the same time.
    phase: Mutex<Phase>,
    changed: Condvar,
    devices: Mutex<Vec<Arc<dyn Lifecycle>>>,
    memory_bytes: u64,
    built: Instant,
    parts: Mutex<Option<Parts>>,
}

/// What a machine is made of. The run uses it up, so that whoever keeps the handle keeps no disk open.
pub(super) struct Parts {
    pub(super) uart: Arc<Uart>,
    pub(super) power_button: IrqLine,
    pub(super) disks: Vec<MachineDisk>,
    pub(super) vcpus: Vcpus,
    pub(super) shared: Arc<Shared>,
    // Dropped last: the vCPUs and event fds belong to it.
    pub(super) _vm: Arc<VmFd>,
}

/// A disk of a machine.
pub(super) struct MachineDisk {
    pub(super) block: Arc<Block>,
    /// Each queue has a thread of its own.
    pub(super) io_thread: bool,
}

impl Machine {
    /// Puts the handle on `parts`; `devices` are told of pauses.
    pub(super) fn new(
        parts: Parts,
        exit: Arc<ExitBox>,
        devices: Vec<Arc<dyn Lifecycle>>,
        memory_bytes: u64,
    ) -> Self {
        let vcpus = parts.vcpus.mailboxes();
        let alarmed = vcpus.clone();
        exit.set_alarm(move || alarmed.alarm());
        Machine {
            exit,
            vcpus,
            phase: Mutex::new(Phase::Running),
            changed: Condvar::new(),
            devices: Mutex::new(devices),
            memory_bytes,
            built: Instant::now(),
            parts: Mutex::new(Some(parts)),
        }
    }

    /// What there is to be run; `None` when somebody has it already.
    pub(super) fn take_parts(&self) -> Option<Parts> {
        lock(&self.parts).take()
    }

    /// Lets go of the devices of a machine that has ended, for they keep their images open.
    pub(super) fn forget_devices(&self) {
        lock(&self.devices).clear();
    }

    /// What it is doing now.
    pub fn phase(&self) -> Phase {
        match self.exit.stopped() {
            true => Phase::Ended,
            false => *lock(&self.phase),
        }
    }

    /// Ends the machine, whatever it is doing. The first reason stands ([`ExitBox::post`]).
    pub fn end(&self, exit: Exit) {
        self.exit.post(exit);
    }

    /// Has the machine pause; returns at once. Nothing happens where it does so already.
    ///
    /// [`Machine::all_parked_fd`] tells the event loop when the vCPUs have parked.
    pub fn pause(&self) {
        let mut phase = lock(&self.phase);
        if *phase == Phase::Running {
            *phase = Phase::Pausing;
            self.vcpus.park();
        }
    }

    /// Has the machine go on, also one whose pause has not been reached yet; returns at once.
    pub fn resume(&self) {
        let mut phase = lock(&self.phase);
        if *phase == Phase::Running {
            return;
        }
        if *phase == Phase::Paused {
            self.each_device(|device| device.resume());
        }
        log::info!("resumed");
        *phase = Phase::Running;
        self.vcpus.unpark();
        drop(phase);
        self.changed.notify_all();
    }

    /// Pauses a machine that runs, and has any other go on; whether it is to pause now.
    pub fn toggle(&self) -> bool {
        let pauses = self.phase() == Phase::Running;
        match pauses {
            true => self.pause(),
            false => self.resume(),
        }
        pauses
    }

    /// Readable when the last vCPU may have parked; the event loop then calls [`Machine::on_parked`].
    pub(super) fn all_parked_fd(&self) -> RawFd {
        self.vcpus.all_parked_fd().as_raw_fd()
    }

    /// The second half of a pause: quiesces the devices, if all vCPUs are parked and are to stay so; whether
    /// the machine has come to be paused by that.
    pub(super) fn on_parked(&self) -> bool {
        // First of all: an announcement that comes later has to be heard.
        let _ = self.vcpus.all_parked_fd().read();
        let mut phase = lock(&self.phase);
        if *phase != Phase::Pausing || !self.vcpus.all_parked() {
            return false;
        }
        self.each_device(|device| device.quiesce());
        *phase = Phase::Paused;
        log::info!("paused");
        drop(phase);
        self.changed.notify_all();
        true
    }

    fn each_device(&self, what: impl Fn(&dyn Lifecycle)) {
        for device in self.devices() {
            what(&*device);
        }
    }

    fn devices(&self) -> Vec<Arc<dyn Lifecycle>> {
        lock(&self.devices).clone()
    }

    /// Waits until the machine is paused and nothing is in flight in its devices: then its whole state
    /// stands still. False when that has not come about within `patience`, or the machine runs or ends.
    ///
    /// Not for the event loop of this machine, which has its part in the pause.
    pub fn wait_paused(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut phase = lock(&self.phase);
        loop {
            let late = Instant::now() >= deadline;
            match *phase {
                _ if self.exit.stopped() => return false,
                Phase::Paused if !self.devices().iter().any(|device| device.busy()) => return true,
                Phase::Paused | Phase::Pausing if !late => {}
                _ => return false,
            }
            let waited = self.changed.wait_timeout(phase, LOOK_AGAIN);
            (phase, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What can be seen of the machine now. Waits for 50 ms at most; a vCPU that has not answered by then, as it
    /// is in a device, is told without its registers.
    pub fn state(&self) -> MachineState {
        MachineState {
            phase: self.phase(),
            up: self.built.elapsed(),
            memory_bytes: self.memory_bytes,
            vcpus: self.vcpus.states(ANSWER),
            devices: self.devices().iter().map(|device| device.state()).collect(),
        }
    }
}

/// A machine at a moment, for people and, by serde, for programs.
#[derive(Debug, Clone, Serialize)]
pub struct MachineState {
    /// What it is doing.
    pub phase: Phase,
    /// Since it was set up, pauses included.
    pub up: Duration,
    /// RAM.
    pub memory_bytes: u64,
    /// In the order of their numbers.
    pub vcpus: Vec<VcpuState>,
    /// Each device's [`Lifecycle::state`].
    pub devices: Vec<Value>,
}

/// What Ctrl-a c shows.
impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, up for {:.1} s, {} vCPUs, {} MiB",
            self.phase,
            self.up.as_secs_f64(),
            self.vcpus.len(),
            self.memory_bytes >> 20
        )?;
        for vcpu in &self.vcpus {
            write!(
                f,
                "\nvcpu{}: exits to user space: {} port, {} MMIO; ",
                vcpu.index, vcpu.port_exits, vcpu.mmio_exits
            )?;
            let Some(registers) = &vcpu.registers else {
                write!(f, "does not tell its registers")?;
                continue;
            };
            match registers.activity {
                Activity::Uninitialized => write!(f, "not started by the guest")?,
                Activity::Halted => write!(f, "halted at {:#x}", registers.general.rip)?,
                _ => write!(f, "at {:#x}", registers.general.rip)?,
            }
        }
        Ok(())
    }
}
