//! A machine as a handle: run it, pause it, have it go on, end it, ask for its state.
//!
//! ```text
//!                pause            all vCPUs parked, devices quiesced, nothing in flight
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

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;

use super::ending::{Exit, ExitBox};
use super::state::{DeviceState, MachineState, Phase};
use super::vcpu::{Mailboxes, Shared, Vcpus};
use crate::board::site::Built;
use crate::board::{CharDevice, IrqLine, Lifecycle, Pump};
use crate::sandbox;
use crate::sync::lock;

/// How long [`Machine::state`] waits for all vCPUs together.
const ANSWER: Duration = Duration::from_millis(50);
/// How often [`Machine::wait_paused`] looks whether the machine has ended, of which nobody tells it.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What has become of a pause that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// Nothing: it was taken back, or a vCPU has not parked yet.
    Nothing,
    /// All vCPUs are parked and the devices quiesced, but something is still in flight in one of them.
    AllParked,
    /// The machine has come to be paused.
    Paused,
}

/// What the machine is to do, and how far that is.
#[derive(Debug)]
struct Progress {
    /// Never [`Phase::Ended`], which `exit` knows.
    phase: Phase,
    /// The devices are quiesced: in a pause, from the moment when all vCPUs are parked.
    quiesced: bool,
}

/// A machine that is set up. [`Machine::run`](super::run) runs it, once.
pub struct Machine {
    /// Where its end is announced.
    pub(super) exit: Arc<ExitBox>,
    vcpus: Arc<Mailboxes>,
    /// Held while vCPUs are told to park or to go on, and while devices are quiesced or resumed: these may
    /// not happen at the same time.
    progress: Mutex<Progress>,
    changed: Condvar,
    devices: Mutex<Vec<Built>>,
    memory_bytes: u64,
    built: Instant,
    parts: Mutex<Option<Parts>>,
}

/// What a machine is made of. The run uses it up, so that whoever keeps the handle keeps no disk open.
pub(super) struct Parts {
    /// What the console can be tied to.
    pub(super) chars: Vec<Arc<dyn CharDevice>>,
    pub(super) power_button: IrqLine,
    /// The queues that somebody has to work at.
    pub(super) pumps: Vec<Arc<dyn Pump>>,
    pub(super) vcpus: Vcpus,
    pub(super) shared: Arc<Shared>,
    // Dropped last: the vCPUs and event fds belong to it.
    pub(super) _vm: Arc<VmFd>,
}

impl Machine {
    /// Puts the handle on `parts`; `devices` are told of pauses.
    pub(super) fn new(
        parts: Parts,
        exit: Arc<ExitBox>,
        devices: Vec<Built>,
        memory_bytes: u64,
    ) -> Self {
        let mut machine = Machine::of(parts.vcpus.mailboxes(), exit, devices, memory_bytes);
        machine.parts = Mutex::new(Some(parts));
        machine
    }

    /// A handle on `vcpus` that somebody else runs.
    fn of(
        vcpus: Arc<Mailboxes>,
        exit: Arc<ExitBox>,
        devices: Vec<Built>,
        memory_bytes: u64,
    ) -> Self {
        let alarmed = vcpus.clone();
        exit.set_alarm(move || alarmed.alarm());
        Machine {
            exit,
            vcpus,
            progress: Mutex::new(Progress {
                phase: Phase::Running,
                quiesced: false,
            }),
            changed: Condvar::new(),
            devices: Mutex::new(devices),
            memory_bytes,
            built: Instant::now(),
            parts: Mutex::new(None),
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
            false => lock(&self.progress).phase,
        }
    }

    /// Ends the machine, whatever it is doing. The first reason stands ([`ExitBox::post`]).
    pub fn end(&self, exit: Exit) {
        self.exit.post(exit);
    }

    /// Has the machine pause; returns at once. Nothing happens where it does so already.
    ///
    /// The second half is done on the event loop that is in [`Machine::run`](super::run), once the last
    /// vCPU has parked.
    pub fn pause(&self) {
        let mut progress = lock(&self.progress);
        if progress.phase == Phase::Running {
            progress.phase = Phase::Pausing;
            self.vcpus.park();
        }
    }

    /// Has the machine go on, also one whose pause has not been reached yet; returns at once.
    pub fn resume(&self) {
        let mut progress = lock(&self.progress);
        if progress.phase == Phase::Running {
            return;
        }
        if progress.quiesced {
            self.each_device(|device| device.resume());
        }
        *progress = Progress {
            phase: Phase::Running,
            quiesced: false,
        };
        self.vcpus.unpark();
        drop(progress);
        self.changed.notify_all();
        log::info!("resumed");
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

    /// The second half of a pause: quiesces the devices, if all vCPUs are parked and are to stay so, and looks
    /// whether something is in flight. It waits for nothing; after [`Reached::AllParked`] it is to be called
    /// again in a while.
    pub(super) fn on_parked(&self) -> Reached {
        // First of all: an announcement that comes later has to be heard.
        let _ = self.vcpus.all_parked_fd().read();
        let mut progress = lock(&self.progress);
        let ended = self.exit.stopped();
        if ended || progress.phase != Phase::Pausing || !self.vcpus.all_parked() {
            return Reached::Nothing;
        }
        if !progress.quiesced {
            self.each_device(|device| device.quiesce());
            progress.quiesced = true;
        }
        if self.devices().iter().any(|built| built.device.busy()) {
            return Reached::AllParked;
        }
        progress.phase = Phase::Paused;
        drop(progress);
        self.changed.notify_all();
        log::info!("paused");
        Reached::Paused
    }

    fn each_device(&self, what: impl Fn(&dyn Lifecycle)) {
        for built in self.devices() {
            what(&*built.device);
        }
    }

    /// Its devices, as long as it has them.
    pub(super) fn devices(&self) -> Vec<Built> {
        lock(&self.devices).clone()
    }

    /// Waits until the machine is paused and nothing is in flight in its devices: then its whole state
    /// stands still. False when that has not come about within `patience`, or the machine runs or ends.
    ///
    /// Not for the event loop of this machine, which has its part in the pause.
    pub fn wait_paused(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut progress = lock(&self.progress);
        loop {
            let late = Instant::now() >= deadline;
            match progress.phase {
                _ if self.exit.stopped() => return false,
                Phase::Paused => return true,
                Phase::Pausing if !late => {}
                _ => return false,
            }
            let waited = self.changed.wait_timeout(progress, LOOK_AGAIN);
            (progress, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What can be seen of the machine now. Waits for 50 ms at most; a vCPU that has not answered by then, as it
    /// is in a device, is told without its registers.
    pub fn state(&self) -> MachineState {
        MachineState {
            phase: self.phase(),
            uptime_ms: u64::try_from(self.built.elapsed().as_millis()).unwrap_or(u64::MAX),
            memory_bytes: self.memory_bytes,
            sandbox: sandbox::status(),
            vcpus: self.vcpus.states(ANSWER),
            devices: self.devices().iter().map(DeviceState::of).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread::JoinHandle;

    use serde_json::Value;

    use super::super::vcpu::mailbox::{Mailbox, Resident};
    use super::super::vcpu::state::Registers;
    use super::*;
    use crate::board::StateError;

    const SOON: Duration = Duration::from_secs(20);

    struct Nobody;

    impl Resident for Nobody {
        fn settle(&mut self) {}
        fn registers(&mut self) -> Option<Registers> {
            None
        }
        fn before_parking(&mut self) {}
    }

    /// A device that complains when it is told something while a vCPU runs, or in the wrong order.
    #[derive(Default)]
    struct Device {
        vcpus_running: Arc<AtomicU32>,
        quiet: AtomicBool,
        busy_for: AtomicU32,
        complaints: AtomicU32,
    }

    impl Device {
        fn told(&self, quiet: bool) {
            let running = self.vcpus_running.load(Ordering::SeqCst) != 0;
            let twice = self.quiet.swap(quiet, Ordering::SeqCst) == quiet;
            if running || twice {
                self.complaints.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    impl Lifecycle for Device {
        fn quiesce(&self) {
            self.told(true);
            self.busy_for.store(3, Ordering::SeqCst);
        }
        fn busy(&self) -> bool {
            let left = self.busy_for.load(Ordering::SeqCst);
            self.busy_for
                .store(left.saturating_sub(1), Ordering::SeqCst);
            left > 0
        }
        fn resume(&self) {
            self.told(false);
        }
        fn state(&self) -> Value {
            self.quiet.load(Ordering::SeqCst).into()
        }
        fn restore(&self, _state: &Value) -> Result<(), StateError> {
            Ok(())
        }
    }

    /// A machine without KVM, with threads for its vCPUs and its event loop.
    struct Running {
        machine: Arc<Machine>,
        device: Arc<Device>,
        threads: Vec<JoinHandle<()>>,
    }

    fn vcpu(mailbox: &Mailbox, machine: &Machine, running: &AtomicU32) {
        let ended = || machine.exit.stopped();
        loop {
            if mailbox.wants_attention() && !mailbox.attend(&ended, &mut Nobody) {
                return;
            }
            running.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            running.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn start() -> Running {
        let mailboxes = Arc::new(Mailboxes::new(3).unwrap());
        let device = Arc::new(Device::default());
        let exit = Arc::new(ExitBox::new().unwrap());
        let devices = vec![Built {
            name: "fake".into(),
            device: device.clone(),
        }];
        let machine = Arc::new(Machine::of(mailboxes.clone(), exit, devices, 1 << 20));
        let mut threads = Vec::new();
        for mailbox in mailboxes.iter() {
            let (mailbox, machine) = (mailbox.clone(), machine.clone());
            let running = device.vcpus_running.clone();
            threads.push(std::thread::spawn(move || {
                vcpu(&mailbox, &machine, &running);
            }));
        }
        let events = machine.clone();
        threads.push(std::thread::spawn(move || {
            let mut again = false;
            while !events.exit.stopped() {
                let mut poll = libc::pollfd {
                    fd: events.all_parked_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one pollfd, valid for the call.
                if unsafe { libc::poll(&raw mut poll, 1, 1) } == 1 || again {
                    again = events.on_parked() == Reached::AllParked;
                }
            }
        }));
        Running {
            machine,
            device,
            threads,
        }
    }

    impl Running {
        fn end(self) {
            self.machine.end(Exit::Quit);
            assert_eq!(self.machine.phase(), Phase::Ended);
            for thread in self.threads {
                thread.join().unwrap();
            }
            assert_eq!(self.device.complaints.load(Ordering::SeqCst), 0);
        }
    }

    #[test]
    fn devices_rest_while_the_vcpus_are_parked_and_at_no_other_time() {
        let running = start();
        let machine = &running.machine;
        assert!(!machine.wait_paused(SOON), "nobody has asked for a pause");
        for _ in 0..200 {
            machine.pause();
            machine.pause();
            assert!(machine.wait_paused(SOON));
            assert!(!running.device.busy(), "nothing is in flight");
            assert_eq!(machine.phase(), Phase::Paused);
            assert_eq!(running.device.vcpus_running.load(Ordering::SeqCst), 0);
            machine.resume();
            machine.resume();
            assert_eq!(machine.phase(), Phase::Running);
        }
        running.end();
    }

    #[test]
    fn pauses_and_resumes_may_come_from_anywhere_in_any_order() {
        let running = start();
        let machine = &running.machine;
        std::thread::scope(|scope| {
            for which in 0..3u32 {
                scope.spawn(move || {
                    for round in 0..1000u32 {
                        match (round * 7 + which) % 5 {
                            0 | 1 => machine.pause(),
                            2 | 3 => machine.resume(),
                            _ => drop(machine.toggle()),
                        }
                        if round % 16 == 0 {
                            machine.wait_paused(Duration::from_millis(1));
                        }
                    }
                });
            }
        });
        machine.resume();
        machine.pause();
        assert!(machine.wait_paused(SOON));
        running.end();
    }

    #[test]
    fn the_state_is_json_in_every_phase() {
        let running = start();
        let machine = &running.machine;
        let json = |phase: &str, quiet: bool| {
            let state = serde_json::to_value(machine.state()).unwrap();
            assert_eq!(state["phase"], phase);
            assert_eq!(state["devices"][0]["state"], quiet);
            assert_eq!(state["memory_bytes"], 1 << 20);
            assert_eq!(state["vcpus"][2]["index"], 2);
            assert_eq!(state["vcpus"][2]["parked"], quiet);
        };
        json("running", false);
        machine.pause();
        assert!(machine.wait_paused(SOON));
        json("paused", true);
        let shown = machine.state().to_string();
        assert!(shown.starts_with("paused, up for "), "{shown}");
        running.end();
    }

    #[test]
    fn who_waits_for_a_pause_hears_of_the_end() {
        let running = start();
        running.machine.pause();
        running.machine.end(Exit::Quit);
        let before = Instant::now();
        assert!(!running.machine.wait_paused(SOON));
        assert!(before.elapsed() < SOON);
        running.end();
    }
}
