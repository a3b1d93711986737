//! A machine's life: threads start, events come, threads end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::control::{Control, Listeners};
use super::ending::Exit;
use super::error::{StartError, host};
use super::event::EventLoop;
use super::event::io_threads::{IoThreads, LastWork};
use super::event::own_lines::OwnLines;
use super::event::queue_io::{Company, QueueIo};
use super::handle::{Machine, Parts};
use super::lasting::Lasting;
use super::vcpu::Mailboxes;
use crate::board::site::Built;
use crate::board::{Board, Server};
use crate::console::keys::Action;
use crate::console::{Console, Line};
use crate::outlet::output::LAST_WORDS;
use crate::outlet::say;
use crate::sandbox;

/// How long requests in flight may take to end once the machine has ended, and vCPUs to stop: whatever the
/// host is doing, the process does not stay for longer.
const LAST_IO: Duration = Duration::from_secs(10);
/// A thread that has not reacted to a kick by now gets another.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// What a machine that has ended leaves behind and may still be at work.
#[derive(Default)]
pub(super) struct Remains {
    io_threads: Option<IoThreads>,
    devices: Vec<Built>,
    /// A vCPU's thread is in a call of the host that does not return.
    vcpu_is_stuck: bool,
    /// When nothing is waited for any more; unknown before the machine has ended.
    deadline: Option<Instant>,
}

impl Machine {
    /// Runs the machine until its guest or the outside ends it: the reason, and whether a signal
    /// had asked the guest for that. What may still be at work is put into `remains`.
    ///
    /// # Errors
    /// When threads or timers cannot be had, or when it has run before. Once the guest runs, every end is
    /// an [`Exit`].
    pub(super) fn run(
        self: &Arc<Self>,
        lasting: &mut Lasting,
        remains: &mut Remains,
    ) -> Result<(Exit, bool), StartError> {
        let Some(parts) = self.take_parts() else {
            return Err(StartError::Defect("a machine runs only once".into()));
        };
        let ended = self.run_parts(parts, lasting, remains);
        self.forget_devices();
        ended
    }

    fn run_parts(
        self: &Arc<Self>,
        parts: Parts,
        lasting: &mut Lasting,
        remains: &mut Remains,
    ) -> Result<(Exit, bool), StartError> {
        let role = lasting.role;
        let mut events: EventLoop = EventLoop::new()?;
        let raw = lasting.ends.raw.clone();
        let line = std::mem::replace(&mut lasting.ends.line, Line::none());
        let asked_by_key = Rc::new(Cell::new(false));
        let console = Rc::new(RefCell::new(Console::new(
            parts.chars,
            line,
            actions(self.clone(), asked_by_key.clone()),
        )));
        let control = Control::new(
            self.clone(),
            lasting.signals.clone(),
            parts.power_button,
            lasting.time_left(),
            Listeners {
                on_continue: Box::new({
                    let console = console.clone();
                    move || {
                        raw.iter().for_each(|raw: &Rc<_>| raw.again());
                        console.borrow().resized();
                    }
                }),
                on_resize: Box::new({
                    let console = console.clone();
                    move || console.borrow().resized()
                }),
                on_paused: Box::new(move || {
                    if asked_by_key.take() {
                        say("\npaused (Ctrl-a p goes on)");
                    }
                }),
            },
        )
        .map_err(host("make a timer"))?;
        let control = Rc::new(RefCell::new(control));
        events.add(Box::new(control.clone()))?;
        events.add(Box::new(console.clone()))?;
        events.add(Box::new(OwnLines::new(lasting.own_lines)))?;
        let company = Arc::new(Company::default());
        let (here, elsewhere): (Vec<_>, Vec<_>) = parts
            .pumps
            .into_iter()
            .partition(|pump| pump.server() == Server::MainLoop);
        for pump in here {
            let queue = QueueIo::new(pump, company.clone());
            events.add(Box::new(queue.map_err(host("watch a device's queue"))?))?;
        }
        if !elsewhere.is_empty() {
            remains.io_threads = Some(IoThreads::start(elsewhere)?);
        }
        remains.devices = self.devices();

        let mailboxes = parts.vcpus.mailboxes();
        let (threads, mut result) = parts.vcpus.run(&parts.shared);
        sandbox::enter(role);
        if result.is_err() {
            self.end(Exit::Quit);
        }
        // At least once, or a guest that resets the machine at once, again and again, would keep
        // keys and signals from being heard.
        loop {
            if let Err(error) = events.run_once() {
                result = Err(error);
                self.end(Exit::Quit);
            }
            if self.exit.stopped() {
                break;
            }
        }
        let deadline = Instant::now() + LAST_IO;
        remains.deadline = Some(deadline);
        remains.vcpu_is_stuck = !stop(threads, &mailboxes, deadline);
        let mut console = console.borrow_mut();
        console.drain(Instant::now() + LAST_WORDS);
        lasting.ends.line = console.hang_up();
        result?;
        let asked_to_end = control.borrow().pressed();
        Ok((self.exit.take().unwrap_or(Exit::Quit), asked_to_end))
    }
}

/// Ends what is in flight and closes the images of the parts `held`; true when that is done. A disk of the
/// host that does not answer does not hold up the end for ever.
///
/// What can take its time is done by the threads of the devices, which are there already. Each device has its
/// own, so one that does not answer keeps no other from being closed.
pub(super) fn finish(remains: Remains, held: Board) -> bool {
    let Remains {
        io_threads,
        devices,
        vcpu_is_stuck,
        deadline,
    } = remains;
    let deadline = deadline.unwrap_or_else(|| Instant::now() + LAST_IO);
    let mut parts = held.into_parts();
    let mut work: Vec<(String, LastWork)> = Vec::new();
    for built in devices {
        if !io_threads
            .as_ref()
            .is_some_and(|threads| threads.serves(&built.name))
        {
            // Its queues are served by the main loop, where nothing waits.
            built.device.finish();
            continue;
        }
        let part = parts
            .extract_if(.., |placed| placed.place.name == built.name)
            .collect::<Vec<_>>();
        let name = built.name.clone();
        work.push((
            name,
            Box::new(move || {
                built.device.finish();
                // The image is closed with the last of these.
                drop((built, part));
            }),
        ));
    }
    drop(parts);
    let done = io_threads.is_none_or(|threads| threads.finish(work, deadline));
    if !done {
        log::error!("a disk does not answer: what the guest has not flushed may be lost");
    }
    if vcpu_is_stuck {
        log::error!("a vCPU does not stop: the host's kernel does not let go of its thread");
    }
    done && !vcpu_is_stuck
}

/// Waits until all vCPU threads have ended; false if that takes longer than until `deadline`, as no call of
/// ours can bring back a thread that waits in the kernel for a page of its memory, say.
/// [`ExitBox::post`](super::ending::ExitBox::post) has told them to; they are told again now and then, so
/// that no machine is kept from ending by a word that was lost.
fn stop(threads: Vec<JoinHandle<()>>, mailboxes: &Mailboxes, deadline: Instant) -> bool {
    for thread in threads {
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            mailboxes.alarm();
            let patience = Instant::now() + KICK_AGAIN;
            while !thread.is_finished() && Instant::now() < patience {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        // A thread that panicked has said so on stderr.
        let _ = thread.join();
    }
    true
}

/// What the escape keys do. A pause is told of as it is reached; `asked_by_key` says that somebody at
/// the keys waits for that.
fn actions(machine: Arc<Machine>, asked_by_key: Rc<Cell<bool>>) -> Box<dyn Fn(Action)> {
    Box::new(move |action| match action {
        Action::Quit => machine.end(Exit::Quit),
        Action::State => say(&format!("\n{}", machine.state())),
        Action::Pause => {
            let pauses = machine.toggle();
            asked_by_key.set(pauses);
            if !pauses {
                say("\nresumed");
            }
        }
        // The console shows it by itself.
        Action::Help => {}
    })
}
