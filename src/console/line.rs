//! The console on the event loop: bytes between the guest's device and the world.
//!
//! ```text
//!   a device's wake-up ─▶ Stage ─▶ Output;  full? wait for EPOLLOUT
//!   stdin ─▶ (terminal: escape keys) ─▶ pending ─▶ receive FIFO;  full? wait for the guest
//! ```
//!
//! Which of the guest's devices that is, if it has several, is the [`Stage`]'s affair.
//!
//! A pipe is read only when the guest has taken what came before, so a flood waits in the pipe. A
//! terminal is read ahead up to a bound, so that Ctrl-a x works while the guest is busy; what is
//! pasted beyond it waits in the terminal for as long as the guest goes on reading (see `stall`).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::keys::{Action, HELP, Keys};
use super::size;
use super::stage::Stage;
use super::stall::Stall;
use crate::board::{CharDevice, Watcher};
use crate::error::io_reason;
use crate::outlet::{Output, Wrote, say};

/// Bytes typed ahead of a guest that does not read.
const MAX_PENDING: usize = 16 * 1024;
const CHUNK: usize = 4096;
/// Chunks written before other events get their turn: a guest can print without end.
const CHUNKS_PER_TURN: usize = 8;
/// Where the host does not tell when there is room for output.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

const INPUT: u32 = 0;
const OUTPUT: u32 = 1;
const STALL: u32 = 2;
/// Of the first device; two for each of them.
const WAKE: u32 = 3;
const TIMER: u32 = 4;
/// From one device's to the next one's.
const NEXT: u32 = 2;

/// Both ends of a console, and what is under way between them: what stays when a machine ends and
/// starts again.
pub struct Line {
    input: Option<Input>,
    /// Typed or piped in, and not yet taken by the guest.
    pending: VecDeque<u8>,
    output: Output,
}

impl Line {
    /// Nobody is at the other end.
    pub fn none() -> Self {
        Line::new(None, Output::none())
    }

    /// A line that reads from `input` and writes to `output`.
    pub fn new(input: Option<Input>, output: Output) -> Self {
        Line {
            input,
            pending: VecDeque::new(),
            output,
        }
    }

    /// Bytes that may still be typed ahead.
    fn room(&self) -> usize {
        MAX_PENDING.saturating_sub(self.pending.len())
    }

    /// Columns and rows of the terminal or pseudo-terminal that input comes from.
    fn size(&self) -> Option<(u16, u16)> {
        size::of(&self.input.as_ref()?.file)
    }

    fn terminal(&mut self) -> Option<&mut Terminal> {
        self.input.as_mut()?.terminal.as_mut()
    }
}

/// Where input comes from.
pub struct Input {
    file: File,
    /// Where it is a terminal.
    terminal: Option<Terminal>,
    /// epoll watches it now.
    watched: bool,
    /// epoll cannot watch it, as it is /dev/null or the like: always readable.
    unwatchable: bool,
}

/// What a terminal has and a pipe has not.
struct Terminal {
    keys: Keys,
    stall: Stall,
}

impl Input {
    /// Reads from `file`, with escape keys if `terminal`.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub fn new(file: File, terminal: bool) -> io::Result<Self> {
        let terminal = match terminal {
            true => Some(Terminal {
                keys: Keys::default(),
                stall: Stall::new()?,
            }),
            false => None,
        };
        Ok(Input {
            file,
            terminal,
            watched: false,
            unwatchable: false,
        })
    }

    /// Whether more is to be read, with `room` bytes left for it.
    fn wants(&mut self, room: usize, pending: bool) -> bool {
        let Some(terminal) = &mut self.terminal else {
            return !pending;
        };
        if room == 0 {
            terminal.stall.full();
        }
        // Once full, it waits for room for a whole chunk.
        terminal.stall.is_losing() || room >= CHUNK || self.watched && room > 0
    }
}

/// EPERM: epoll does not take every file.
fn is_unwatchable(error: &event_manager::Error) -> bool {
    matches!(error, event_manager::Error::Epoll(errno) if io::Error::from(*errno).raw_os_error() == Some(libc::EPERM))
}

/// The subscriber.
pub struct Console {
    stage: Stage,
    line: Line,
    output_watched: bool,
    act: Box<dyn Fn(Action)>,
}

impl Console {
    /// Ties `devices`, in the order of their rank, to the outside, and tells them its size; `act` does what the
    /// escape keys ask for.
    pub fn new(devices: Vec<Arc<dyn CharDevice>>, line: Line, act: Box<dyn Fn(Action)>) -> Self {
        let console = Console {
            stage: Stage::new(devices),
            line,
            output_watched: false,
            act,
        };
        console.resized();
        console
    }

    /// The size of the terminal may have changed.
    pub fn resized(&self) {
        if let Some(size) = self.line.size() {
            self.stage.resize(size);
        }
    }

    /// Takes the line away from a machine that has ended.
    pub fn hang_up(&mut self) -> Line {
        let mut line = std::mem::replace(&mut self.line, Line::none());
        // The event loop that watched it has gone with the machine.
        if let Some(input) = &mut line.input {
            input.watched = false;
        }
        line
    }

    fn pump_output(&mut self, ops: &mut EventOps) {
        let mut chunk = [0; CHUNK];
        self.stage.choose();
        for _ in 0..CHUNKS_PER_TURN {
            let count = self.stage.peek(&mut chunk);
            let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else {
                self.watch_output(ops, false);
                return;
            };
            match self.line.output.write(bytes) {
                Wrote::Bytes(done) => self.stage.consume(bytes.get(..done).unwrap_or(bytes)),
                Wrote::Full => {
                    self.watch_output(ops, true);
                    return;
                }
            }
        }
        self.stage.wake();
    }

    /// Writes what the guest has said last, until `deadline`.
    pub fn drain(&mut self, deadline: Instant) {
        let mut chunk = [0; CHUNK];
        self.stage.choose();
        loop {
            let count = self.stage.peek(&mut chunk);
            let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return;
            };
            match self.line.output.write(bytes) {
                Wrote::Bytes(done) => self.stage.consume(bytes.get(..done).unwrap_or(bytes)),
                Wrote::Full if Instant::now() >= deadline => return,
                Wrote::Full => {
                    self.line.output.wait(deadline);
                }
            }
        }
    }

    fn watch_output(&mut self, ops: &mut EventOps, wanted: bool) {
        let Some(fd) = self
            .line
            .output
            .fd()
            .filter(|_| self.output_watched != wanted)
        else {
            return;
        };
        let events = Events::with_data_raw(fd, OUTPUT, EventSet::OUT);
        let result = if wanted {
            ops.add(events)
        } else {
            ops.remove(events)
        };
        match result {
            Ok(()) => self.output_watched = wanted,
            // Nobody would tell when there is room again, and the guest would wait for that: so it is looked at
            // once more in a moment.
            Err(_) if wanted => {
                self.line.output.wait(Instant::now() + LOOK_AGAIN);
                self.stage.wake();
            }
            Err(error) => log::warn!("cannot watch the console's output: {error}"),
        }
    }

    /// Moves input on as far as it goes.
    fn pump_input(&mut self, ops: &mut EventOps) {
        loop {
            self.feed();
            let room = self.line.room();
            let Some(input) = &mut self.line.input else {
                return;
            };
            let wanted = input.wants(room, !self.line.pending.is_empty());
            if input.unwatchable && wanted {
                if !self.read_input() {
                    self.line.input = None;
                }
                continue;
            }
            if input.watched != wanted && !input.unwatchable {
                let events = Events::with_data(&input.file, INPUT, EventSet::IN);
                let result = if wanted {
                    ops.add(events)
                } else {
                    ops.remove(events)
                };
                match result {
                    Ok(()) => input.watched = wanted,
                    // EPERM: a device that epoll does not take, and that is always ready.
                    Err(error) if wanted && is_unwatchable(&error) => {
                        input.unwatchable = true;
                        continue;
                    }
                    // Anything else may not be read without being watched: the loop would wait for it, and for
                    // nothing else.
                    Err(error) if wanted => {
                        log::warn!("console input is gone: it cannot be watched: {error}");
                        self.line.input = None;
                    }
                    Err(_) => {}
                }
            }
            return;
        }
    }

    /// Hands pending bytes to the guest.
    fn feed(&mut self) {
        let before = self.line.pending.len();
        while !self.line.pending.is_empty() {
            let taken = self.stage.receive(self.line.pending.as_slices().0);
            if taken == 0 {
                break;
            }
            self.line.pending.drain(..taken);
        }
        let room = self.line.room();
        if self.line.pending.len() < before
            && let Some(terminal) = self.line.terminal()
            && let Some(lost) = terminal.stall.taken(room >= CHUNK)
            && lost > 0
        {
            say(&format!(
                "\nconsole: {lost} bytes of input were lost while the guest took none"
            ));
        }
    }

    /// Reads once; false at the end of input, which is no error.
    fn read_input(&mut self) -> bool {
        let room = self.line.room();
        let Some(input) = &mut self.line.input else {
            return false;
        };
        let limit = match &input.terminal {
            Some(terminal) if !terminal.stall.is_losing() => room.min(CHUNK),
            Some(_) | None => CHUNK,
        };
        if limit == 0 {
            return true;
        }
        let mut chunk = [0; CHUNK];
        let bytes = match input.file.read(chunk.get_mut(..limit).unwrap_or_default()) {
            Ok(0) => return false,
            Ok(count) => chunk.get(..count).unwrap_or_default(),
            Err(error) => {
                let again = matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                );
                if !again {
                    log::warn!("console input is gone: {}", io_reason(&error));
                }
                return again;
            }
        };
        let Some(mut terminal) = input.terminal.take() else {
            self.line.pending.extend(bytes);
            return true;
        };
        for byte in bytes {
            match terminal.keys.filter(*byte) {
                Ok(byte) if self.line.room() > 0 => self.line.pending.extend(byte),
                Ok(Some(_)) => terminal.stall.lose(),
                Ok(None) => {}
                Err(action) => self.act(action),
            }
        }
        if let Some(input) = &mut self.line.input {
            input.terminal = Some(terminal);
        }
        true
    }

    /// The guest has taken nothing for a while although the line is full.
    fn stalled(&mut self) {
        if let Some(terminal) = self.line.terminal()
            && terminal.stall.timer_expired()
        {
            say(
                "\nconsole: the guest takes no input; more of it is lost until it does (Ctrl-a x ends the machine)",
            );
        }
    }

    /// One of the devices has something to say: `data` is of its wake-up or its timer.
    fn device_has(&mut self, data: u32, ops: &mut EventOps) {
        let offset = data.saturating_sub(WAKE);
        let device = self.stage.devices().get((offset / NEXT) as usize);
        let woken = offset.is_multiple_of(NEXT);
        match device {
            Some(device) if woken => device.heard(),
            Some(device) => device.timer_expired(),
            None => {}
        }
        self.pump_output(ops);
        // After a timer too: what it was set for may be the first that the device has printed, and from then on
        // what is typed goes there.
        self.pump_input(ops);
    }

    fn act(&self, action: Action) {
        match action {
            Action::Help => say(&format!("\n{HELP}")),
            action => (self.act)(action),
        }
    }
}

impl MutEventSubscriber for Console {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            INPUT => {
                if !self.read_input()
                    && let Some(input) = self.line.input.take()
                {
                    let _ = ops.remove(Events::empty(&input.file));
                }
                // The master of a pseudo-terminal is not told of a new size of it. Somebody who has changed it
                // types something next.
                self.resized();
                self.pump_input(ops);
            }
            STALL => {
                self.stalled();
                self.pump_input(ops);
            }
            OUTPUT => self.pump_output(ops),
            data => self.device_has(data, ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.pump_input(ops);
    }
}

impl Watcher for Console {
    fn watched(&self) -> Vec<(RawFd, u32)> {
        let terminal = self.line.input.as_ref();
        let terminal = terminal.and_then(|input| input.terminal.as_ref());
        let stall = terminal.map(|terminal| terminal.stall.timer());
        let stall = stall.map(|fd| (fd, STALL));
        let devices = (0u32..).step_by(NEXT as usize).zip(self.stage.devices());
        let fds = devices.flat_map(|(offset, device)| {
            let timer = device
                .timer_fd()
                .map(|fd| (fd, TIMER.saturating_add(offset)));
            [(device.wake_fd(), WAKE.saturating_add(offset))]
                .into_iter()
                .chain(timer)
        });
        fds.chain(stall).collect()
    }
}
