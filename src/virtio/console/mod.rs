//! virtio-console (virtio 1.2, 5.3) with one port: the guest's `hvc0`, a terminal that knows its size.
//!
//! ```text
//!   queue 1, transmitq ─▶ Transmit ─▶ output 64 KiB ─▶ console ─▶ the user's terminal
//!   queue 0, receiveq  ◀─ Receive  ◀─ input   4 KiB ◀─ console ◀─ what is typed
//!   configuration space: columns, rows               ◀─ console ◀─ TIOCGWINSZ
//! ```
//!
//! What a serial port cannot do is tell its guest how large the terminal at the other end is. This device can:
//! the size is in its configuration space, and a change of it is an interrupt, upon which Linux sends SIGWINCH to
//! whatever runs on hvc0.
//!
//! Linux prints its own messages sixteen bytes at a time, and spins until each piece is taken. So the vCPU that
//! kicks the transmit queue copies them itself, as it does with a byte for the serial port; the event loop hears
//! of a line at a time.
//!
//! Both directions are bounded, in [`port`]. A queue with several ports (VIRTIO_CONSOLE_F_MULTIPORT) and the
//! early console (VIRTIO_CONSOLE_F_EMERG_WRITE) are not offered.

pub mod port;

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestMemoryMmap};

use self::port::{INPUT_BYTES, OUTPUT_BYTES, Port};
use crate::board::{Names, SiteError};
use crate::virtio::chain::Chain;
use crate::virtio::device::{Handler, Host, Made, MadeQueue, Model, Room, Taken};
use crate::virtio::ring::Broken;

/// Linux fills the receive queue with buffers of a page, and waits for each chain of the transmit queue before
/// it offers the next one.
const QUEUE_SIZE: u16 = 16;
/// Bytes that are copied at a time.
const CHUNK: usize = 4096;

/// The console, as it is planned.
pub struct ConsoleModel;

impl Model for ConsoleModel {
    fn names(&self) -> Names {
        Names::Numbers("hvc")
    }

    fn describe(&self, name: &str) -> String {
        format!("virtio-console, {name}: a terminal that knows its size")
    }

    fn make(&self, host: &Host) -> Result<Made, SiteError> {
        let port = Arc::new(Port::new(host.signal.clone())?);
        let receive = MadeQueue {
            event: Some(port.input_event()),
            ..MadeQueue::simple(QUEUE_SIZE, Receive { port: port.clone() })
        };
        let transmit = MadeQueue {
            event: Some(port.room_event()),
            limited: true,
            // Linux spins until it has its answer, with its interrupts off.
            at_once: true,
            ..MadeQueue::simple(QUEUE_SIZE, Transmit { port: port.clone() })
        };
        Ok(Made {
            device: port.clone(),
            queues: vec![receive, transmit],
            chars: Some(port),
        })
    }
}

/// What the guest prints.
struct Transmit {
    port: Arc<Port>,
}

impl Handler for Transmit {
    fn room(&mut self) -> Room {
        match self.port.wait_for_room(Instant::now()) {
            Duration::ZERO => Room::Yes,
            wait => Room::Later(wait),
        }
    }

    /// A chain that is longer than what there is room for, at least half of the ring, is cut off; those of Linux
    /// are of a page at most. While output is lost, no more than a ring full of a chain counts.
    fn take(
        &mut self,
        _head: u16,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Taken, Broken> {
        let mut chunk = [0; CHUNK];
        let mut copied = 0usize;
        for (address, len) in chain.readable() {
            let mut done = 0usize;
            while let left @ 1.. = (*len as usize).saturating_sub(done) {
                if copied >= OUTPUT_BYTES {
                    return Ok(cost_of(copied));
                }
                let bytes = chunk.get_mut(..left.min(CHUNK)).unwrap_or_default();
                let from = address.0.checked_add(done as u64);
                let from = from.map(vm_memory::GuestAddress);
                // What is not in RAM was never written by anybody.
                if from.is_none_or(|from| memory.read_slice(bytes, from).is_err()) {
                    break;
                }
                done = done.saturating_add(bytes.len());
                copied = copied.saturating_add(bytes.len());
                if !self.port.print(bytes) {
                    return Ok(cost_of(copied));
                }
            }
        }
        Ok(cost_of(copied))
    }
}

/// A chain of the transmit queue is done with, and nothing of it was written.
fn cost_of(copied: usize) -> Taken {
    Taken {
        cost: 1 + copied / CHUNK,
        written: Some(0),
    }
}

/// What is typed for the guest.
struct Receive {
    port: Arc<Port>,
}

impl Handler for Receive {
    fn room(&mut self) -> Room {
        match self.port.has_input() {
            true => Room::Yes,
            false => Room::No,
        }
    }

    fn take(
        &mut self,
        _head: u16,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Taken, Broken> {
        let mut input = [0; INPUT_BYTES];
        let count = self.port.peek_input(&mut input);
        let mut rest = input.get(..count).unwrap_or_default();
        let mut written = 0usize;
        for (address, len) in chain.writable() {
            let (part, after) = rest.split_at(rest.len().min(*len as usize));
            if memory.write_slice(part, *address).is_err() {
                break;
            }
            written = written.saturating_add(part.len());
            rest = after;
        }
        self.port.consume_input(written);
        Ok(Taken::done(written as u32))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
