//! Which of the guest's character devices the user sees, and types to.
//!
//! ```text
//!   serial port ──▶ shown at first; read and dropped, later ──┐
//!                                                             ├─▶ [`Repeats`] ─▶ output
//!   hvc0 ─────────▶ shown once it is in use ──────────────────┘
//! ```
//!
//! The devices are in the order of their rank. Of those that are in use the last one is shown, and the serial
//! port while there is no other. All are read to their ends: the guest prints its messages on each of them, and
//! would wait for one that nobody reads. What was waiting in the one that was shown before is still shown.

use std::collections::VecDeque;
use std::sync::Arc;

use super::repeats::Repeats;
use crate::board::CharDevice;

/// Bytes that are read of a device at a time.
const CHUNK: usize = 4096;
/// The most that waits in a device, in chunks, and so what is read of one that is not shown at a time.
const CHUNKS: usize = 16;

/// See the [module](self).
pub struct Stage {
    devices: Vec<Arc<dyn CharDevice>>,
    shown: usize,
    /// Has been read of a device, and is to be shown before what else is in it.
    ready: VecDeque<u8>,
    repeats: Repeats,
}

impl Stage {
    /// A stage with the first of `devices` on it.
    pub fn new(devices: Vec<Arc<dyn CharDevice>>) -> Self {
        Stage {
            devices,
            shown: 0,
            ready: VecDeque::new(),
            repeats: Repeats::default(),
        }
    }

    /// All devices, in the order of their rank.
    pub fn devices(&self) -> &[Arc<dyn CharDevice>] {
        &self.devices
    }

    fn device(&self) -> Option<&Arc<dyn CharDevice>> {
        self.devices.get(self.shown)
    }

    fn is_first(&self) -> bool {
        self.shown == 0
    }

    /// Has the device that is to be seen seen, and drops what the others print.
    pub fn choose(&mut self) {
        let wanted = self.devices.iter().rposition(|device| device.in_use());
        let wanted = wanted.unwrap_or(0);
        if wanted != self.shown {
            // Bounded by what waits in a device.
            let device = self.device().cloned();
            let first = self.is_first();
            for chunk in device.iter().flat_map(|device| Chunks::of(&**device)) {
                if first {
                    self.repeats.shown(&chunk);
                    self.ready.extend(chunk);
                } else {
                    self.ready.extend(self.repeats.new_of(&chunk));
                }
            }
            self.shown = wanted;
        }
        for (at, device) in self.devices.iter().enumerate() {
            if at != self.shown {
                Chunks::of(&**device).for_each(drop);
            }
        }
    }

    /// Copies what is to be shown next into `buf`, without removing it.
    pub fn peek(&mut self, buf: &mut [u8]) -> usize {
        if !self.is_first() && !self.repeats.is_over() {
            let device = self.device().cloned();
            for chunk in device.iter().flat_map(|device| Chunks::of(&**device)) {
                self.ready.extend(self.repeats.new_of(&chunk));
            }
        }
        if self.ready.is_empty() {
            return self.device().map_or(0, |device| device.peek_output(buf));
        }
        for (to, from) in buf.iter_mut().zip(&self.ready) {
            *to = *from;
        }
        self.ready.len().min(buf.len())
    }

    /// `bytes`, the first of what [`Stage::peek`] has given, are on the screen.
    pub fn consume(&mut self, bytes: &[u8]) {
        if !self.ready.is_empty() {
            self.ready.drain(..bytes.len().min(self.ready.len()));
            return;
        }
        if self.is_first() && self.devices.len() > 1 {
            self.repeats.shown(bytes);
        }
        if let Some(device) = self.device() {
            device.consume_output(bytes.len());
        }
    }

    /// Hands bytes to the guest; returns how many were taken.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        self.device().map_or(0, |device| device.receive(bytes))
    }

    /// Has the loop come again: there is more to show.
    pub fn wake(&self) {
        if let Some(device) = self.device() {
            device.wake();
        }
    }

    /// The terminal has a new size.
    pub fn resize(&self, (columns, rows): (u16, u16)) {
        for device in &self.devices {
            device.resize(columns, rows);
        }
    }
}

/// What waits in a device, in chunks that are removed.
struct Chunks<'a> {
    device: &'a dyn CharDevice,
    left: usize,
}

impl<'a> Chunks<'a> {
    fn of(device: &'a dyn CharDevice) -> Self {
        Chunks {
            device,
            left: CHUNKS,
        }
    }
}

impl Iterator for Chunks<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        self.left = self.left.checked_sub(1)?;
        let mut chunk = vec![0; CHUNK];
        let count = self.device.peek_output(&mut chunk);
        chunk.truncate(count);
        self.device.consume_output(count);
        (count > 0).then_some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::RawFd;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Fake {
        output: Mutex<Vec<u8>>,
        input: Mutex<Vec<u8>>,
        idle: AtomicBool,
    }

    impl Fake {
        fn print(&self, text: &str) {
            self.output.lock().unwrap().extend(text.as_bytes());
        }
    }

    impl CharDevice for Fake {
        fn wake_fd(&self) -> RawFd {
            -1
        }
        fn heard(&self) {}
        fn wake(&self) {}
        fn peek_output(&self, buf: &mut [u8]) -> usize {
            let output = self.output.lock().unwrap();
            let count = output.len().min(buf.len());
            buf[..count].copy_from_slice(&output[..count]);
            count
        }
        fn consume_output(&self, count: usize) {
            self.output.lock().unwrap().drain(..count);
        }
        fn receive(&self, bytes: &[u8]) -> usize {
            self.input.lock().unwrap().extend(bytes);
            bytes.len()
        }
        fn in_use(&self) -> bool {
            !self.idle.load(Ordering::SeqCst)
        }
    }

    /// A serial port, an hvc0 that is not in use, and a stage with both.
    fn stage() -> (Arc<Fake>, Arc<Fake>, Stage) {
        let (serial, hvc) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
        hvc.idle.store(true, Ordering::SeqCst);
        let stage = Stage::new(vec![serial.clone(), hvc.clone()]);
        (serial, hvc, stage)
    }

    /// What comes onto the screen, a few bytes at a time.
    fn screen(stage: &mut Stage) -> String {
        let mut screen = Vec::new();
        let mut buf = [0; 5];
        stage.choose();
        while let count @ 1.. = stage.peek(&mut buf) {
            stage.consume(&buf[..count]);
            screen.extend(&buf[..count]);
        }
        String::from_utf8(screen).unwrap()
    }

    #[test]
    fn the_serial_port_is_seen_until_the_other_is_in_use() {
        let (serial, hvc, mut stage) = stage();
        serial.print("[1] early\r\n");
        assert_eq!(screen(&mut stage), "[1] early\r\n");
        assert_eq!(stage.receive(b"a"), 1);
        serial.print("[2] just before\r\n[3] bo");
        hvc.print("[1] early\r\n[2] just before\r\n[3] both\r\n# ");
        hvc.idle.store(false, Ordering::SeqCst);
        assert_eq!(screen(&mut stage), "[2] just before\r\n[3] both\r\n# ");
        serial.print("th\r\n[4] later\r\n");
        hvc.print("[4] later\r\n");
        assert_eq!(screen(&mut stage), "[4] later\r\n");
        assert_eq!(serial.output.lock().unwrap().len(), 0, "it is read");
        assert_eq!(stage.receive(b"b"), 1);
        assert_eq!(*serial.input.lock().unwrap(), b"a");
        assert_eq!(*hvc.input.lock().unwrap(), b"b");
    }

    #[test]
    fn the_serial_port_comes_back_when_the_driver_has_gone() {
        let (serial, hvc, mut stage) = stage();
        hvc.idle.store(false, Ordering::SeqCst);
        hvc.print("bye\r\n");
        assert_eq!(screen(&mut stage), "bye\r\n");
        hvc.print("last");
        hvc.idle.store(true, Ordering::SeqCst);
        assert_eq!(screen(&mut stage), "last");
        serial.print("power down\r\n");
        assert_eq!(screen(&mut stage), "power down\r\n");
    }

    #[test]
    fn a_serial_port_alone_passes_everything_on() {
        let serial = Arc::new(Fake::default());
        let mut stage = Stage::new(vec![serial.clone()]);
        serial.print("a\r\n");
        assert_eq!(screen(&mut stage), "a\r\n");
        serial.print("a\r\n");
        assert_eq!(screen(&mut stage), "a\r\n");
    }
}
