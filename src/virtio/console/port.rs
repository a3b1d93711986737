//! The port between the queues and the console: what waits in both directions, and the size of the terminal.
//!
//! Output waits in a ring. While that is more than half full, nothing is taken out of the queue, so a reader who is
//! slow slows the guest down, as with a serial port. But Linux waits for each chain with its interrupts off
//! (`put_chars` in drivers/char/virtio_console.c): a reader who has stopped for good, such as a terminal at the other
//! end of a broken connection, would hang a vCPU, which its own watchdogs report after 20 seconds. So the guest
//! waits for five seconds without a byte read at the longest. What it prints after that is lost and counted,
//! and the count is put where it was lost when the reader goes on.
//!
//! ```text
//!             more than half full            5 s without a byte read
//!   Flowing ─────────────────────▶ Waiting ─────────────────────────▶ Losing
//!      ▲                              │ half is free                     │ half is free
//!      └──────────────────────────────┴──────────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use crate::board::device::{from_value, to_value};
use crate::board::site::event_fd;
use crate::board::{CharDevice, Pace, SiteError, StateError};
use crate::sync::lock;
use crate::virtio::device::VirtioDevice;
use crate::virtio::device::copy_config;
use crate::virtio::signal::Signal;

/// Bytes that wait for the reader of the console, as many as with the serial port.
pub(super) const OUTPUT_BYTES: usize = 64 * 1024;
/// Another chain is taken while so much is free.
pub(super) const OUTPUT_ROOM: usize = OUTPUT_BYTES / 2;
/// Bytes that wait for the guest: one of the pages that Linux offers. More waits in the console.
pub(super) const INPUT_BYTES: usize = 4096;
/// So long the guest waits for a reader who reads nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Device type 3 (virtio 1.2, section 5).
const CONSOLE_DEVICE: u32 = 3;
/// VIRTIO_CONSOLE_F_SIZE (virtio 1.2, 5.3.3): columns and rows are valid.
pub(super) const F_SIZE: u64 = 1 << 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Flowing,
    Waiting { since: Instant },
    Losing { lost: u64 },
}

struct State {
    output: VecDeque<u8>,
    input: VecDeque<u8>,
    columns: u16,
    rows: u16,
    /// The driver is ready.
    ready: bool,
    /// ... and has printed something.
    used: bool,
    reader: Reader,
    /// When the console hears of output.
    pace: Pace,
}

impl State {
    fn free(&self) -> usize {
        OUTPUT_BYTES.saturating_sub(self.output.len())
    }
}

/// See the [module](self).
pub struct Port {
    state: Mutex<State>,
    /// To the console: there is output, or room for input.
    wake: Arc<EventFd>,
    /// To the transmit queue: there is room.
    room: Arc<EventFd>,
    /// To the receive queue: there is input.
    input: Arc<EventFd>,
    signal: Arc<Signal>,
}

impl Port {
    /// A port whose driver hears of a new size by `signal`.
    ///
    /// # Errors
    /// When the host gives no event fds or timers.
    pub fn new(signal: Arc<Signal>) -> Result<Self, SiteError> {
        let wake = Arc::new(event_fd()?);
        let pace = Pace::new(wake.clone()).map_err(SiteError::host("make a timer"))?;
        Ok(Port {
            state: Mutex::new(State {
                output: VecDeque::new(),
                input: VecDeque::new(),
                columns: 0,
                rows: 0,
                ready: false,
                used: false,
                reader: Reader::Flowing,
                pace,
            }),
            wake,
            room: Arc::new(event_fd()?),
            input: Arc::new(event_fd()?),
            signal,
        })
    }

    /// Readable when there is room for output again.
    pub(super) fn room_event(&self) -> Arc<EventFd> {
        self.room.clone()
    }

    /// Readable when there is input.
    pub(super) fn input_event(&self) -> Arc<EventFd> {
        self.input.clone()
    }

    /// How long the guest has to wait before it may print more; no time if it may now.
    pub(super) fn wait_for_room(&self, now: Instant) -> Duration {
        let mut state = lock(&self.state);
        if state.free() >= OUTPUT_ROOM {
            return Duration::ZERO;
        }
        let since = match state.reader {
            Reader::Losing { .. } => return Duration::ZERO,
            Reader::Waiting { since } => since,
            Reader::Flowing => now,
        };
        let left = PATIENCE.saturating_sub(now.saturating_duration_since(since));
        state.reader = match left {
            Duration::ZERO => Reader::Losing { lost: 0 },
            _ => Reader::Waiting { since },
        };
        left
    }

    /// The guest prints. False when there is no room for more of it.
    pub(super) fn print(&self, bytes: &[u8]) -> bool {
        let mut state = lock(&self.state);
        if let Reader::Losing { lost } = &mut state.reader {
            *lost = lost.saturating_add(bytes.len() as u64);
            return true;
        }
        let taken = bytes.get(..bytes.len().min(state.free()));
        let taken = taken.unwrap_or_default();
        if !taken.is_empty() {
            state.used = true;
            state.output.extend(taken);
            let waiting = state.output.len();
            state.pace.output(taken, waiting);
        }
        taken.len() == bytes.len()
    }

    /// Whether something waits for the guest.
    pub(super) fn has_input(&self) -> bool {
        !lock(&self.state).input.is_empty()
    }

    /// Copies input into `buf` without removing it.
    pub(super) fn peek_input(&self, buf: &mut [u8]) -> usize {
        peek(&lock(&self.state).input, buf)
    }

    /// Removes `count` bytes of input that the guest has.
    pub(super) fn consume_input(&self, count: usize) {
        let mut state = lock(&self.state);
        let count = count.min(state.input.len());
        state.input.drain(..count);
        if count > 0 {
            self.wake();
        }
    }
}

fn peek(bytes: &VecDeque<u8>, buf: &mut [u8]) -> usize {
    let count = bytes.len().min(buf.len());
    for (to, from) in buf.iter_mut().zip(bytes) {
        *to = *from;
    }
    count
}

fn tell(fd: &EventFd) {
    // Failure means that it is readable already.
    let _ = fd.write(1);
}

impl CharDevice for Port {
    fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    fn heard(&self) {
        let _ = self.wake.read();
    }

    fn wake(&self) {
        tell(&self.wake);
    }

    fn timer_fd(&self) -> Option<RawFd> {
        Some(lock(&self.state).pace.timer())
    }

    fn timer_expired(&self) {
        lock(&self.state).pace.expired();
    }

    fn peek_output(&self, buf: &mut [u8]) -> usize {
        peek(&lock(&self.state).output, buf)
    }

    fn consume_output(&self, count: usize) {
        let mut state = lock(&self.state);
        let count = count.min(state.output.len());
        state.output.drain(..count);
        if count == 0 {
            return;
        }
        match state.reader {
            Reader::Flowing => {}
            // Somebody reads: the guest has patience again.
            Reader::Waiting { .. } if state.free() < OUTPUT_ROOM => {
                let since = Instant::now();
                state.reader = Reader::Waiting { since };
            }
            Reader::Waiting { .. } => {
                state.reader = Reader::Flowing;
                tell(&self.room);
            }
            Reader::Losing { .. } if state.free() < OUTPUT_ROOM => {}
            Reader::Losing { lost } => {
                if lost > 0 {
                    let note = format!("\r\n[{lost} bytes were lost while nobody read them]\r\n");
                    state.output.extend(note.as_bytes());
                }
                state.reader = Reader::Flowing;
                tell(&self.room);
            }
        }
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.state);
        if !state.ready {
            return 0;
        }
        let room = INPUT_BYTES.saturating_sub(state.input.len());
        let taken = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        state.input.extend(taken);
        if !taken.is_empty() {
            tell(&self.input);
        }
        taken.len()
    }

    fn resize(&self, columns: u16, rows: u16) {
        let mut state = lock(&self.state);
        if (state.columns, state.rows) == (columns, rows) {
            return;
        }
        (state.columns, state.rows) = (columns, rows);
        drop(state);
        self.signal.config_changed();
    }

    /// Also after its driver has gone, until what that has printed last is read.
    fn in_use(&self) -> bool {
        let state = lock(&self.state);
        state.ready && state.used || !state.output.is_empty()
    }
}

/// The size, and what waits in both directions.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    columns: u16,
    rows: u16,
    used: bool,
    output: Vec<u8>,
    input: Vec<u8>,
}

impl VirtioDevice for Port {
    fn kind(&self) -> u32 {
        CONSOLE_DEVICE
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    /// Columns and rows (virtio 1.2, 5.3.4). What follows them belongs to features that are not offered.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        let ([a, b], [c, d]) = (state.columns.to_le_bytes(), state.rows.to_le_bytes());
        copy_config(&[a, b, c, d], offset, data);
    }

    fn driver(&self, features: Option<u64>) {
        let mut state = lock(&self.state);
        state.ready = features.is_some();
        if features.is_none() {
            // It was typed for a driver that is gone.
            state.input.clear();
            state.used = false;
        }
        drop(state);
        self.wake();
    }

    fn state(&self) -> Value {
        let state = lock(&self.state);
        to_value(&Saved {
            columns: state.columns,
            rows: state.rows,
            used: state.used,
            output: state.output.iter().copied().collect(),
            input: state.input.iter().copied().collect(),
        })
    }

    fn restore(&self, value: &Value) -> Result<(), StateError> {
        let saved: Saved = from_value(value)?;
        if saved.output.len() > OUTPUT_BYTES || saved.input.len() > INPUT_BYTES {
            return Err(StateError::new("more bytes than wait in a console"));
        }
        let mut state = lock(&self.state);
        (state.columns, state.rows) = (saved.columns, saved.rows);
        state.used = saved.used;
        state.output = saved.output.into();
        state.input = saved.input.into();
        state.reader = Reader::Flowing;
        drop(state);
        self.wake();
        tell(&self.input);
        Ok(())
    }
}
