//! The serial port: a 16550A on COM1, the guest's `ttyS0`.
//!
//! vm-superio's `Serial` models the registers. What is added here are bounds in both directions:
//!
//! ```text
//!   guest OUT 0x3f8 ─▶ transmit ring (64 KiB) ─▶ event loop ─▶ stdout
//!   guest IN  0x3f8 ◀─ receive FIFO (64 B)    ◀─ event loop ◀─ stdin
//! ```
//!
//! When whoever reads the output is slow, the ring fills, and the line status register says
//! "transmitter busy", as a real UART does at 9600 baud. The guest's driver then waits; no vCPU
//! blocks on a file and no buffer grows. The lock is held for copies of a few bytes only.
//!
//! Input waits until the guest listens: drivers empty the FIFO unread when they start, and what was
//! typed ahead, or piped in, would lose its first bytes there.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use acpi_tables::aml::{self, Device, EISAName, IO, Name, Path, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_superio::serial::{Serial, SerialEvents};
use vm_superio::{SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::last_words::LastWords;
use crate::arch::x86_64::layout;
use crate::board::aml::edge;
use crate::board::device::{from_value, to_value};
use crate::board::{
    BusDevice, CharDevice, IrqLine, Lifecycle, Need, Pace, Part, Place, Site, SiteError, StateError,
};
use crate::sync::lock;

/// Bytes that wait for the reader of the console.
const TX_RING_BYTES: usize = 64 * 1024;
/// The transmitter says "empty" only while a whole burst fits: Linux writes 16 bytes after
/// each look at the line status register, and 64 for the larger FIFO variants.
const TX_BURST: usize = 64;

/// So many looks at the line status, one after the other with no other register in between, are a
/// guest that polls for input. A driver that sets the port up looks at others as well.
const POLLING_READS: u32 = 32;

const IER: u8 = 1;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const IER_RECEIVED: u8 = 1 << 0;
/// All four interrupts at once, out of none: Linux's autoconfig() asks so which bits the register
/// keeps, and listens to none of them.
const IER_ALL: u8 = 0x0f;
const IER_THR_EMPTY: u8 = 1 << 1;
const LCR_DLAB: u8 = 1 << 7;
const LSR_THR_EMPTY: u8 = 1 << 5;
const LSR_IDLE: u8 = 1 << 6;

/// The port's interrupt, as vm-superio wants it.
#[derive(Debug, Clone)]
struct Irq(Arc<IrqLine>);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pull();
        Ok(())
    }
}

/// Bytes on their way out. Full means lost, as on a wire: the guest was told to wait.
#[derive(Debug, Default)]
struct TxRing {
    bytes: VecDeque<u8>,
    last_words: LastWords,
}

impl TxRing {
    fn room(&self) -> usize {
        TX_RING_BYTES.saturating_sub(self.bytes.len())
    }
}

impl io::Write for TxRing {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len().min(self.room());
        self.bytes.extend(buf.iter().take(taken));
        buf.iter().for_each(|byte| self.last_words.saw(*byte));
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Wakes the event loop when the receive FIFO has been emptied.
#[derive(Debug)]
struct Wake(Arc<EventFd>);

impl Wake {
    fn wake(&self) {
        // Failure means a wake-up is pending already.
        let _ = self.0.write(1);
    }
}

impl SerialEvents for Wake {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.wake();
    }
}

struct State {
    port: Serial<Irq, Wake, TxRing>,
    /// The guest has seen "transmitter busy", or may be waiting for the interrupt that says
    /// otherwise: it is owed one when the ring drains.
    told_busy: bool,
    /// Reads of the line status in a row.
    status_reads: u32,
    /// The guest polls for input.
    polls: bool,
    /// The guest has enabled the interrupt for input.
    interrupt_enabled: bool,
    /// When the loop hears of output.
    pace: Pace,
}

/// The serial port. Shared by the vCPU threads (registers) and the event loop (bytes).
pub struct Uart {
    state: Mutex<State>,
    wake: Arc<EventFd>,
}

impl Uart {
    /// A port that interrupts through `irq`.
    ///
    /// # Errors
    /// When no event fd can be made.
    pub fn new(irq: IrqLine) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok(Uart {
            state: Mutex::new(State {
                port: Serial::with_events(
                    Irq(Arc::new(irq)),
                    Wake(wake.clone()),
                    TxRing::default(),
                ),
                told_busy: false,
                status_reads: 0,
                polls: false,
                interrupt_enabled: false,
                pace: Pace::new(wake.clone())?,
            }),
            wake,
        })
    }

    /// How many bytes [`CharDevice::receive`] would take now.
    #[cfg(test)]
    fn receive_room(&self) -> usize {
        lock(&self.state).receive_room()
    }
}

impl CharDevice for Uart {
    fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    fn heard(&self) {
        let _ = self.wake.read();
    }

    fn wake(&self) {
        // Failure means that a wake-up is pending already.
        let _ = self.wake.write(1);
    }

    fn timer_fd(&self) -> Option<RawFd> {
        Some(lock(&self.state).pace.timer())
    }

    fn timer_expired(&self) {
        lock(&self.state).pace.expired();
    }

    fn peek_output(&self, buf: &mut [u8]) -> usize {
        let state = lock(&self.state);
        let ring = &state.port.writer().bytes;
        let count = ring.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(ring.iter()) {
            *to = *from;
        }
        count
    }

    /// Also tells a guest that was waiting for room.
    fn consume_output(&self, count: usize) {
        let mut state = lock(&self.state);
        let ring = state.port.writer_mut();
        let count = count.min(ring.bytes.len());
        ring.bytes.drain(..count);
        state.tell_room();
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.state);
        let take = bytes.len().min(state.receive_room());
        match bytes.get(..take) {
            Some(part) if take > 0 => state.port.enqueue_raw_bytes(part).unwrap_or(0),
            _ => 0,
        }
    }

    fn told_of_panic(&self) -> bool {
        lock(&self.state).port.writer().last_words.panicked()
    }
}

impl State {
    /// Raises the interrupt that a guest which was told "busy" waits for, once there is room.
    fn tell_room(&mut self) {
        if self.told_busy && self.port.writer().room() >= TX_RING_BYTES / 2 {
            self.told_busy = !self.raise_thr_empty();
        }
    }

    /// Offset 1 is the baud divisor and not the interrupt enable register.
    fn divisor_latch(&mut self) -> bool {
        self.port.read(LCR) & LCR_DLAB != 0
    }

    fn listens(&self) -> bool {
        self.polls || self.interrupt_enabled
    }

    fn receive_room(&self) -> usize {
        if self.listens() {
            self.port.fifo_capacity()
        } else {
            0
        }
    }

    /// The guest has looked at the line status; true when that shows that it listens now.
    fn saw_status(&mut self) -> bool {
        self.status_reads = self.status_reads.saturating_add(1);
        let begins = !self.polls && self.status_reads >= POLLING_READS;
        self.polls |= begins;
        begins
    }

    /// The transmitter has room again: raise the interrupt that the guest waits for. False when
    /// that has to wait until the driver is done with the baud rate.
    ///
    /// vm-superio raises it when the enable register is written, which is what a driver
    /// does that wants to know; writing the value that is there already asks once more.
    fn raise_thr_empty(&mut self) -> bool {
        if self.divisor_latch() {
            return false;
        }
        let enabled = self.port.read(IER);
        if enabled & IER_THR_EMPTY != 0 {
            // Cannot fail: pulling a line has no error.
            let _ = self.port.write(IER, enabled);
            self.port.interrupt_evt().0.pull();
        }
        true
    }
}

impl BusDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = lock(&self.state);
        data.fill(0xff);
        let (Ok(offset), Some(first)) = (u8::try_from(offset), data.first_mut()) else {
            return;
        };
        let busy = state.port.writer().room() < TX_BURST;
        // Looks at a busy transmitter are not looks for input.
        let begins = offset == LSR && !busy && state.saw_status();
        if offset != LSR {
            state.status_reads = 0;
        }
        let mut value = state.port.read(offset);
        if offset == LSR && busy {
            value &= !(LSR_THR_EMPTY | LSR_IDLE);
            state.told_busy = true;
        }
        *first = value;
        drop(state);
        if begins {
            self.wake();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (Ok(offset), Some(&value)) = (u8::try_from(offset), data.first()) else {
            return;
        };
        let mut state = lock(&self.state);
        let before = state.port.writer().bytes.len();
        // The ring and the line never fail; a full receive FIFO in loop mode drops the byte.
        let _ = state.port.write(offset, value);
        let waiting = state.port.writer().bytes.len();
        if waiting > before {
            state.pace.output(&[value], waiting);
        }
        state.status_reads = 0;
        let listened = state.listens();
        if offset == IER && !state.divisor_latch() {
            state.interrupt_enabled = value & IER_RECEIVED != 0
                && (value & IER_ALL != IER_ALL || state.interrupt_enabled);
        }
        // Leaving loop-back mode, or a changed line control: what had to wait goes on.
        let begins = !listened && state.listens() || offset == MCR;
        if offset == LCR {
            state.tell_room();
        }
        drop(state);
        if begins {
            self.wake();
        }
    }
}

/// The registers and what waits in both directions.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    baud_divisor: (u8, u8),
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    received: Vec<u8>,
    sent: Vec<u8>,
    told_busy: bool,
    polls: bool,
    interrupt_enabled: bool,
}

impl Lifecycle for Uart {
    fn state(&self) -> Value {
        let state = lock(&self.state);
        let port = state.port.state();
        to_value(&Saved {
            baud_divisor: (port.baud_divisor_low, port.baud_divisor_high),
            interrupt_enable: port.interrupt_enable,
            interrupt_identification: port.interrupt_identification,
            line_control: port.line_control,
            line_status: port.line_status,
            modem_control: port.modem_control,
            modem_status: port.modem_status,
            scratch: port.scratch,
            received: port.in_buffer,
            sent: state.port.writer().bytes.iter().copied().collect(),
            told_busy: state.told_busy,
            polls: state.polls,
            interrupt_enabled: state.interrupt_enabled,
        })
    }

    fn restore(&self, value: &Value) -> Result<(), StateError> {
        let saved: Saved = from_value(value)?;
        if saved.sent.len() > TX_RING_BYTES {
            return Err(StateError::new("more output than waits in a serial port"));
        }
        let mut state = lock(&self.state);
        let registers = SerialState {
            baud_divisor_low: saved.baud_divisor.0,
            baud_divisor_high: saved.baud_divisor.1,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.received,
        };
        let ring = TxRing {
            bytes: saved.sent.into(),
            last_words: LastWords::default(),
        };
        let (irq, wake) = (state.port.interrupt_evt().clone(), Wake(self.wake.clone()));
        state.port = Serial::from_state(&registers, irq, wake, ring)
            .map_err(|error| StateError::new(format!("{error:?}")))?;
        state.told_busy = saved.told_busy;
        state.polls = saved.polls;
        state.interrupt_enabled = saved.interrupt_enabled;
        drop(state);
        self.wake();
        Ok(())
    }
}

/// COM1, for the board.
pub struct Com1Part;

impl Part for Com1Part {
    fn need(&self) -> Need {
        Need::Ports {
            first: layout::COM1_PORT,
            count: layout::COM1_PORTS,
            gsi: Some(layout::COM1_GSI),
        }
    }

    fn describe(&self, _name: &str) -> String {
        "serial port, ttyS0".into()
    }

    fn aml(&self, _place: &Place, sink: &mut dyn AmlSink) {
        let ports = IO::new(
            layout::COM1_PORT,
            layout::COM1_PORT,
            1,
            layout::COM1_PORTS as u8,
        );
        Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &aml::ZERO),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&ports, &edge(layout::COM1_GSI)]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }

    fn build(&self, place: &Place, site: &mut Site<'_>) -> Result<(), SiteError> {
        let uart = Uart::new(site.irq_line(place)?).map_err(SiteError::host("make an event fd"))?;
        let uart = Arc::new(uart);
        site.chars.push(uart.clone());
        site.put(place, "com1", &uart)
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
