//! What a vCPU's thread is told from outside, and where it parks.
//!
//! ```text
//!   anybody                                          vCPU thread
//!   ───────                                          ───────────
//!   lock the inbox                             ┌───▶ attention? ──no──▶ KVM_RUN ──▶ exit, device ─┐
//!   put in a command, or say "park"            │        │ yes                                     │
//!   attention = true                           │        ▼                                         │
//!   unlock, kick ── SIGURG ──▶                │     attend: attention = false, look into the     │
//!                                              │     inbox, do what is there, wait while parked   │
//!                                              └────────┴─────────────────────────────────────────┘
//! ```
//!
//! The look at `attention` is one load of a byte that nobody else writes while nothing is to be told, so a
//! vCPU that is left alone pays nothing for its mailbox.
//!
//! **Why no command is lost**, in whatever order things happen. A command is in the inbox and `attention`
//! is true before the kick is sent. So from the moment the signal's handler has run on the thread, the
//! thread would see `attention`. The handler can run
//!
//! - before the thread looks at `attention`: then it sees it;
//! - between that look and KVM_RUN: then `immediate_exit` is set, and KVM_RUN returns at once;
//! - within KVM_RUN: the pending signal makes it return, and the handler runs on the way out;
//! - after KVM_RUN has returned and before the thread has set `immediate_exit` back to 0: then what the handler
//!   has set is wiped away, but the look at `attention` comes after that, and sees it. That these two
//!   stay in this order is what the fence in `step.rs` is for: the handler runs on the same thread, so it
//!   is only the compiler that could exchange them.
//!
//! The thread looks into the inbox under its lock, after it has set `attention` back to false under
//! the same lock. What is put in later sets it again. A thread that is not there yet gets no signal; it
//! begins with `attention` set.
//!
//! "Park" is not a command but a wish that stands until it is taken back. So any number of pauses
//! and resumes takes no room, and a thread that comes late to its mailbox finds the last word.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::kick::Target;
use super::state::{Counters, Registers, VcpuState};
use crate::sync::lock;

/// Commands that wait at a vCPU which does not come to its mailbox. More are refused.
const MAX_COMMANDS: usize = 16;

/// What a vCPU's thread is asked to do, parked or not.
#[derive(Debug)]
enum Command {
    /// Tell its state.
    ReadState(SyncSender<VcpuState>),
}

/// What a mailbox asks of the vCPU that has come to it.
pub trait Resident {
    /// Brings the vCPU to a state that can be looked at: what the last exit has begun is completed.
    fn settle(&mut self);

    /// Its registers.
    fn registers(&mut self) -> Option<Registers>;

    /// It is about to wait, for a time that the guest must not take for a hang.
    fn before_parking(&mut self);
}

/// One vCPU's mailbox.
#[derive(Debug)]
pub struct Mailbox {
    index: u32,
    attention: AtomicBool,
    /// Counted by the vCPU's thread alone.
    pub counters: Counters,
    /// The vCPU's thread, to be kicked.
    pub thread: Target,
    inbox: Mutex<Inbox>,
    told: Condvar,
    roll: Arc<Roll>,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Whether the vCPU is to park.
    park: bool,
    /// Whether it has. It stays so until its thread has seen that `park` is false.
    parked: bool,
    commands: VecDeque<Command>,
}

/// Counts the vCPUs that are parked.
#[derive(Debug)]
struct Roll {
    parked: AtomicUsize,
    vcpus: usize,
    complete: EventFd,
}

impl Roll {
    /// One more is parked.
    fn enter(&self) {
        if self.parked.fetch_add(1, Ordering::SeqCst).saturating_add(1) == self.vcpus {
            self.announce();
        }
    }

    fn leave(&self) {
        self.parked.fetch_sub(1, Ordering::SeqCst);
    }

    fn announce(&self) {
        // Failure means that nobody has read the last announcement yet, and this is the same.
        let _ = self.complete.write(1);
    }
}

impl Mailbox {
    /// Whether the thread has to [`Mailbox::attend`] before it goes on.
    pub fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// The thread does what it is told, and waits here while it is to be parked. False when `ended`
    /// says that the machine has ended, parked or not.
    pub fn attend(&self, ended: &dyn Fn() -> bool, vcpu: &mut dyn Resident) -> bool {
        let mut ready_to_park = false;
        let mut inbox = lock(&self.inbox);
        loop {
            self.attention.store(false, Ordering::SeqCst);
            if ended() {
                return false;
            }
            // KVM is called without the lock: nobody who tells something waits for a vCPU.
            if let Some(command) = inbox.commands.pop_front() {
                let parked = inbox.parked;
                drop(inbox);
                self.carry_out(command, parked, vcpu);
                inbox = lock(&self.inbox);
                continue;
            }
            match (inbox.park, inbox.parked) {
                (false, false) => return true,
                (true, false) if !ready_to_park => {
                    drop(inbox);
                    vcpu.settle();
                    vcpu.before_parking();
                    ready_to_park = true;
                    inbox = lock(&self.inbox);
                }
                (true, false) => {
                    inbox.parked = true;
                    self.roll.enter();
                }
                (false, true) => {
                    inbox.parked = false;
                    self.roll.leave();
                }
                (true, true) => {
                    let waited = self.told.wait(inbox);
                    inbox = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn carry_out(&self, command: Command, parked: bool, vcpu: &mut dyn Resident) {
        match command {
            Command::ReadState(answer) => {
                vcpu.settle();
                let mut state = VcpuState::outline(self.index, parked, &self.counters);
                state.registers = vcpu.registers();
                // Whoever asked may have lost patience.
                let _ = answer.try_send(state);
            }
        }
    }

    /// Changes the inbox and has the thread look at it.
    fn tell(&self, change: impl FnOnce(&mut Inbox)) {
        let mut inbox = lock(&self.inbox);
        change(&mut inbox);
        self.attention.store(true, Ordering::SeqCst);
        let waits = inbox.parked;
        drop(inbox);
        self.told.notify_all();
        // One that is parked waits for the condition variable. A kick would do no harm, but would
        // make its next KVM_RUN return for nothing.
        if !waits {
            self.thread.kick();
        }
    }

    /// Asks for the vCPU's state; false when nobody is there to answer.
    fn ask(&self, answer: SyncSender<VcpuState>) -> bool {
        if !self.thread.is_there() {
            return false;
        }
        let mut asked = false;
        self.tell(|inbox| {
            if inbox.commands.len() < MAX_COMMANDS {
                inbox.commands.push_back(Command::ReadState(answer));
                asked = true;
            }
        });
        asked
    }

    fn outline(&self) -> VcpuState {
        VcpuState::outline(self.index, lock(&self.inbox).parked, &self.counters)
    }
}

/// The mailboxes of all vCPUs of a machine.
#[derive(Debug)]
pub struct Mailboxes {
    boxes: Vec<Arc<Mailbox>>,
    roll: Arc<Roll>,
}

impl Mailboxes {
    /// One for each of so many `vcpus`.
    ///
    /// # Errors
    /// When the host gives no event fd.
    pub fn new(vcpus: u32) -> io::Result<Self> {
        let roll = Arc::new(Roll {
            parked: AtomicUsize::new(0),
            vcpus: vcpus as usize,
            complete: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        });
        let one = |index| {
            Arc::new(Mailbox {
                index,
                attention: AtomicBool::new(true),
                counters: Counters::default(),
                thread: Target::default(),
                inbox: Mutex::default(),
                told: Condvar::new(),
                roll: roll.clone(),
            })
        };
        Ok(Mailboxes {
            boxes: (0..vcpus).map(one).collect(),
            roll: roll.clone(),
        })
    }

    /// Each vCPU's, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Mailbox>> {
        self.boxes.iter()
    }

    /// Has all vCPUs park. Returns at once; [`Mailboxes::all_parked_fd`] becomes readable when they have.
    ///
    /// This and [`Mailboxes::unpark`] must not be called at the same time.
    pub fn park(&self) {
        self.tell(|inbox| inbox.park = true);
        // After a pause that was taken back at once, none may have left its place: then nobody
        // arrives who could announce it.
        if self.all_parked() {
            self.roll.announce();
        }
    }

    /// Has all vCPUs go on.
    pub fn unpark(&self) {
        self.tell(|inbox| inbox.park = false);
    }

    /// Has all vCPUs look whether the machine has ended.
    pub fn alarm(&self) {
        self.tell(|_inbox| {});
    }

    fn tell(&self, change: impl Fn(&mut Inbox)) {
        for mailbox in &self.boxes {
            mailbox.tell(&change);
        }
    }

    /// Whether all vCPUs are parked, and stay so until [`Mailboxes::unpark`] is called.
    pub fn all_parked(&self) -> bool {
        self.boxes.iter().all(|mailbox| {
            let inbox = lock(&mailbox.inbox);
            inbox.park && inbox.parked
        })
    }

    /// Readable when the last vCPU has parked. It may have been told to go on since, so this is a
    /// reason to ask [`Mailboxes::all_parked`].
    pub fn all_parked_fd(&self) -> &EventFd {
        &self.roll.complete
    }

    /// Each vCPU's state. Waits no longer than `patience` for all of them together; one that has not
    /// answered by then is told without its registers.
    pub fn states(&self, patience: Duration) -> Vec<VcpuState> {
        let deadline = Instant::now() + patience;
        let mut states: Vec<_> = self.boxes.iter().map(|mailbox| mailbox.outline()).collect();
        let (answer, answers) = mpsc::sync_channel(self.boxes.len());
        for mailbox in &self.boxes {
            mailbox.ask(answer.clone());
        }
        // With the last of the clones, which each vCPU drops when it has answered, the loop ends.
        drop(answer);
        while let Ok(state) =
            answers.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            if let Some(place) = states.get_mut(state.index as usize) {
                *place = state;
            }
        }
        states
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::compiler_fence;
    use std::thread::JoinHandle;

    use kvm_bindings::kvm_run;

    use super::super::kick;
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[derive(Default)]
    struct Fake {
        settled: u64,
        parked: u64,
    }

    impl Resident for Fake {
        fn settle(&mut self) {
            self.settled += 1;
        }
        fn registers(&mut self) -> Option<Registers> {
            None
        }
        fn before_parking(&mut self) {
            assert!(self.settled > 0);
            self.parked += 1;
        }
    }

    /// Threads that do what vCPU threads do. Their guests loop for ever, so that nothing but
    /// `immediate_exit` brings them out; `rounds` counts how often one did.
    struct Machine {
        mailboxes: Arc<Mailboxes>,
        ended: Arc<AtomicBool>,
        rounds: Arc<AtomicU64>,
        threads: Vec<JoinHandle<()>>,
    }

    impl Machine {
        fn new(vcpus: u32) -> Self {
            kick::install_handler().unwrap();
            Machine {
                mailboxes: Arc::new(Mailboxes::new(vcpus).unwrap()),
                ended: Arc::default(),
                rounds: Arc::default(),
                threads: Vec::new(),
            }
        }

        fn start(&mut self) {
            for mailbox in self.mailboxes.iter() {
                let (mailbox, ended) = (mailbox.clone(), self.ended.clone());
                let rounds = self.rounds.clone();
                self.threads.push(std::thread::spawn(move || {
                    // SAFETY: all of its fields are integers or arrays of them.
                    let mut run: Box<kvm_run> = Box::new(unsafe { std::mem::zeroed() });
                    let exit = &raw mut run.immediate_exit;
                    let _entered = mailbox.thread.enter(Some(&mut run));
                    let mut fake = Fake::default();
                    loop {
                        if mailbox.wants_attention()
                            && !mailbox.attend(&|| ended.load(Ordering::SeqCst), &mut fake)
                        {
                            return;
                        }
                        // SAFETY: `run` lives until the thread ends.
                        unsafe {
                            while exit.read_volatile() == 0 {
                                std::thread::yield_now();
                            }
                            exit.write_volatile(0);
                        }
                        compiler_fence(Ordering::SeqCst);
                        rounds.fetch_add(1, Ordering::SeqCst);
                    }
                }));
            }
        }

        fn all_parked_soon(&self) -> bool {
            let end = Instant::now() + SOON;
            while Instant::now() < end {
                // Only what is announced counts: an event loop would not look without that.
                if self.mailboxes.all_parked_fd().read().is_ok() && self.mailboxes.all_parked() {
                    return true;
                }
                std::thread::yield_now();
            }
            false
        }

        fn end(self) {
            self.ended.store(true, Ordering::SeqCst);
            self.mailboxes.alarm();
            let end = Instant::now() + SOON;
            for thread in self.threads {
                while !thread.is_finished() {
                    assert!(Instant::now() < end, "a thread has not heard of the end");
                    std::thread::yield_now();
                }
                thread.join().unwrap();
            }
            for mailbox in self.mailboxes.iter() {
                assert!(!mailbox.thread.is_there());
                mailbox.thread.kick();
            }
        }
    }

    #[test]
    fn vcpus_park_and_go_on_and_no_word_is_lost() {
        let mut machine = Machine::new(3);
        machine.start();
        for round in 0..1000 {
            machine.mailboxes.park();
            assert!(machine.all_parked_soon(), "round {round}");
            machine.mailboxes.unpark();
            if round % 3 == 0 {
                // Taken back before most of them have noticed.
                machine.mailboxes.park();
                machine.mailboxes.unpark();
            }
        }
        machine.end();
    }

    #[test]
    fn a_pause_is_announced_also_when_nobody_has_left_since_the_last() {
        let mut machine = Machine::new(2);
        machine.start();
        machine.mailboxes.park();
        assert!(machine.all_parked_soon());
        for _ in 0..500 {
            machine.mailboxes.unpark();
            machine.mailboxes.park();
            assert!(machine.all_parked_soon());
        }
        machine.end();
    }

    #[test]
    fn who_is_told_to_park_before_it_begins_never_runs() {
        let mut machine = Machine::new(2);
        machine.mailboxes.park();
        assert!(!machine.mailboxes.all_parked());
        machine.start();
        assert!(machine.all_parked_soon());
        assert_eq!(machine.rounds.load(Ordering::SeqCst), 0);
        // Parked, it hears of the end.
        machine.end();
    }

    #[test]
    fn states_come_from_running_and_from_parked_vcpus() {
        let mut machine = Machine::new(3);
        let nobody = machine.mailboxes.states(SOON);
        assert_eq!(nobody.len(), 3, "also before there are threads");
        machine.start();
        for round in 0..200 {
            let park = round % 2 == 0;
            match park {
                true => machine.mailboxes.park(),
                false => machine.mailboxes.unpark(),
            }
            assert!(!park || machine.all_parked_soon());
            let before = Instant::now();
            let states = machine.mailboxes.states(SOON);
            assert!(before.elapsed() < SOON, "all have answered");
            for (state, index) in states.iter().zip(0..) {
                assert_eq!(state.index, index);
                assert!(state.parked || !park);
            }
        }
        machine.end();
    }

    /// A vCPU that is in a device for long: it has a thread that does not come to its mailbox.
    #[test]
    fn a_vcpu_that_does_not_answer_is_not_waited_for_and_takes_no_room() {
        let mailboxes = Mailboxes::new(1).unwrap();
        let mailbox = mailboxes.iter().next().unwrap();
        kick::install_handler().unwrap();
        let _entered = mailbox.thread.enter(None);
        for _ in 0..100 {
            let states = mailboxes.states(Duration::from_millis(1));
            assert!(states[0].registers.is_none());
            mailboxes.park();
            mailboxes.unpark();
        }
        assert_eq!(lock(&mailbox.inbox).commands.len(), MAX_COMMANDS);
        assert!(mailbox.attend(&|| false, &mut Fake::default()));
        assert!(lock(&mailbox.inbox).commands.is_empty());
        assert!(!mailbox.wants_attention());
    }
}
