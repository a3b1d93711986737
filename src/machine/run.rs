//! A machine's life: threads start, events come, threads end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::control::{Control, Listeners};
use super::ending::Exit;
use super::error::{StartError, host};
use super::event::EventLoop;
use super::event::io_thread::IoThread;
use super::event::queue_io::{Company, QueueIo};
use super::handle::{Machine, Parts};
use super::lasting::Lasting;
use super::vcpu::Mailboxes;
use crate::board::Board;
use crate::board::site::Built;
use crate::console::keys::Action;
use crate::console::{Console, Line};
use crate::error::say;
use crate::limits;

/// How long the last output may take to reach its reader once the machine has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long requests in flight may take to end once the machine has ended.
const LAST_IO: Duration = Duration::from_secs(10);
/// A thread that has not reacted to a kick by now gets another.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// What a machine that has ended leaves behind and may still be at work.
#[derive(Default)]
pub(super) struct Remains {
    io_threads: Vec<IoThread>,
    devices: Vec<Built>,
    /// Some of them have queues.
    queues: bool,
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
        let mut events = EventLoop::new()?;
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
        let company = Arc::new(Company::default());
        remains.queues = !parts.pumps.is_empty();
        for pump in parts.pumps {
            let (thread, name) = (pump.wants_thread(), pump.name().to_owned());
            let company = match thread {
                true => Arc::default(),
                false => company.clone(),
            };
            let queue = QueueIo::new(pump, company).map_err(host("watch a device's queue"))?;
            if thread {
                remains.io_threads.push(IoThread::start(name, queue)?);
            } else {
                events.add(Box::new(queue))?;
            }
        }
        remains.devices = self.devices();

        let mailboxes = parts.vcpus.mailboxes();
        let (threads, mut result) = parts.vcpus.run(&parts.shared);
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
        stop(threads, &mailboxes);
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
pub(super) fn finish(remains: Remains, held: Board) -> bool {
    let Remains {
        io_threads,
        devices,
        queues,
    } = remains;
    if !queues {
        return true;
    }
    let (ended, wait) = mpsc::sync_channel(1);
    let work = move || {
        drop(io_threads);
        for built in &devices {
            built.device.finish();
        }
        drop((devices, held));
        let _ = ended.send(());
    };
    let Ok(_thread) = limits::spawn("finish".into(), work) else {
        // The disks were closed where the thread was refused, and that has waited for them.
        return true;
    };
    let done = wait.recv_timeout(LAST_IO).is_ok();
    if !done {
        log::error!("a disk does not answer: what the guest has not flushed may be lost");
    }
    done
}

/// Waits until all vCPU threads have ended. [`ExitBox::post`](super::ending::ExitBox::post) has told them to; they
/// are told again now and then, so that no machine is kept from ending by a word that was lost.
fn stop(threads: Vec<JoinHandle<()>>, mailboxes: &Mailboxes) {
    for thread in threads {
        while !thread.is_finished() {
            mailboxes.alarm();
            let patience = Instant::now() + KICK_AGAIN;
            while !thread.is_finished() && Instant::now() < patience {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        // A thread that panicked has said so on stderr.
        let _ = thread.join();
    }
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
