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
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};
use vmm_sys_util::eventfd::EventFd;

use super::last_words::LastWords;
use super::pace::Pace;
use super::{BusDevice, IrqLine, lock};

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

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.pull();
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
    port: Serial<IrqLine, Wake, TxRing>,
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
                port: Serial::with_events(irq, Wake(wake.clone()), TxRing::default()),
                told_busy: false,
                status_reads: 0,
                polls: false,
                interrupt_enabled: false,
                pace: Pace::new(wake.clone())?,
            }),
            wake,
        })
    }

    /// Readable when there is output to take now or the receive FIFO has become empty.
    pub fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    /// Readable when output that lingered is to be taken.
    pub fn timer_fd(&self) -> RawFd {
        lock(&self.state).pace.timer()
    }

    /// [`Uart::timer_fd`] was readable.
    pub fn timer_expired(&self) {
        lock(&self.state).pace.expired();
    }

    /// Copies waiting output into `buf` without removing it; returns how many bytes.
    pub fn peek_output(&self, buf: &mut [u8]) -> usize {
        let state = lock(&self.state);
        let ring = &state.port.writer().bytes;
        let count = ring.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(ring.iter()) {
            *to = *from;
        }
        count
    }

    /// Removes `count` bytes of output that have reached their reader, and tells a guest
    /// that was waiting for room.
    pub fn consume_output(&self, count: usize) {
        let mut state = lock(&self.state);
        let ring = state.port.writer_mut();
        let count = count.min(ring.bytes.len());
        ring.bytes.drain(..count);
        state.tell_room();
    }

    /// Puts bytes into the receive FIFO; returns how many were taken.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.state);
        let take = bytes.len().min(state.receive_room());
        match bytes.get(..take) {
            Some(part) if take > 0 => state.port.enqueue_raw_bytes(part).unwrap_or(0),
            _ => 0,
        }
    }

    /// Whether the guest's kernel has said that it has panicked, and since then nothing of a restart.
    pub fn told_of_panic(&self) -> bool {
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
            self.port.interrupt_evt().pull();
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
            let _ = self.wake.write(1);
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
            state.pace.output(value, waiting);
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
            let _ = self.wake.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THR: u64 = 0;

    fn uart() -> (Uart, EventFd) {
        let fd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let uart = Uart::new(IrqLine::new(fd.try_clone().unwrap())).unwrap();
        (uart, fd)
    }

    fn lsr(uart: &Uart) -> u8 {
        let mut byte = [0];
        uart.read(u64::from(LSR), &mut byte);
        byte[0]
    }

    #[test]
    fn output_arrives_in_order_and_wakes_the_loop() {
        let (uart, _) = uart();
        uart.write(THR, b"h");
        uart.write(THR, b"i");
        assert_eq!(uart.wake_fd().read().unwrap(), 1);
        let mut buf = [0; 8];
        assert_eq!(uart.peek_output(&mut buf), 2);
        assert_eq!(&buf[..2], b"hi");
        uart.consume_output(1);
        assert_eq!(uart.peek_output(&mut buf), 1);
        assert_eq!(buf[0], b'i');
    }

    #[test]
    fn a_slow_reader_makes_the_transmitter_busy_and_nothing_grows() {
        let (uart, irq) = uart();
        uart.write(u64::from(IER), &[IER_THR_EMPTY]);
        for _ in 0..TX_RING_BYTES * 2 {
            uart.write(THR, b"x");
        }
        assert_eq!(lsr(&uart) & LSR_THR_EMPTY, 0);
        assert_eq!(lock(&uart.state).port.writer().room(), 0);
        assert!(lock(&uart.state).port.writer().bytes.capacity() <= TX_RING_BYTES * 2);

        // The driver reads IIR in its handler, which clears the cause; then nothing comes until
        // the reader has taken half of the ring.
        let mut iir = [0];
        uart.read(2, &mut iir);
        let _ = irq.read();
        uart.consume_output(TX_RING_BYTES / 4);
        assert!(irq.read().is_err());
        uart.consume_output(TX_RING_BYTES / 2);
        assert!(irq.read().is_ok());
        uart.read(2, &mut iir);
        assert_eq!(iir[0] & 0x0f, 0x02, "the cause is THR empty");
        assert_ne!(lsr(&uart) & LSR_THR_EMPTY, 0);
    }

    #[test]
    fn input_is_bounded_by_the_fifo() {
        let (uart, _) = uart();
        uart.write(u64::from(IER), &[IER_RECEIVED]);
        assert_eq!(
            uart.wake_fd().read().unwrap(),
            1,
            "told that the guest listens"
        );
        // What vm-superio holds for the guest.
        let room = 64;
        assert_eq!(uart.receive(&vec![b'a'; room * 3]), room);
        assert_eq!(uart.receive(b"b"), 0);
        let mut byte = [0];
        for _ in 0..room {
            uart.read(THR, &mut byte);
            assert_eq!(byte[0], b'a');
        }
        assert_eq!(uart.wake_fd().read().unwrap(), 1, "told that there is room");
    }

    #[test]
    fn input_waits_until_the_guest_listens() {
        let (uart, _) = uart();
        assert_eq!(uart.receive(b"typed ahead"), 0);
        // A driver that starts: it looks, empties the FIFO, and then enables the interrupt.
        lsr(&uart);
        uart.read(THR, &mut [0]);
        uart.write(u64::from(IER), &[IER_ALL]);
        assert_eq!(uart.receive(b"typed ahead"), 0, "only a probe");
        uart.write(u64::from(IER), &[0]);
        uart.write(u64::from(IER), &[IER_RECEIVED]);
        uart.write(u64::from(IER), &[IER_ALL]);
        assert_eq!(uart.receive(b"typed ahead"), 11);
        uart.write(u64::from(IER), &[0]);
        assert_eq!(uart.receive(b"x"), 0, "the driver has closed the port");
    }

    #[test]
    fn a_guest_that_polls_listens() {
        let (uart, _) = uart();
        for _ in 0..POLLING_READS * 2 {
            lsr(&uart);
            uart.write(THR, b"x");
        }
        assert_eq!(uart.receive(b"x"), 0, "it only sends");
        for _ in 0..POLLING_READS {
            lsr(&uart);
        }
        assert_eq!(uart.receive(b"x"), 1);
    }

    proptest::proptest! {
        #[test]
        fn any_access_is_answered(ops in proptest::collection::vec((0u64..300, 0usize..9, proptest::bool::ANY, 0u8..), 0..200)) {
            let (uart, _) = uart();
            for (offset, width, write, value) in ops {
                let mut data = vec![value; width];
                if write { uart.write(offset, &data) } else { uart.read(offset, &mut data) }
            }
        }
    }
}
