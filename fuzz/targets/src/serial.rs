//! The serial port against a 16550 that is as plain as can be, from both sides: the guest's registers, and the console
//! that takes what is printed and hands over what is typed.
//!
//! The model is written after National Semiconductor's "PC16550D" and after what the module `devices::serial` promises
//! beside it: when input is taken, and when the transmitter says that it is busy.

use std::collections::VecDeque;

use arbitrary::{Arbitrary, Unstructured};
use bantam::arch::x86_64::layout;
use bantam::devices::serial::Com1Part;

use crate::world::World;

const FIFO: usize = 64;
const RING: usize = 64 * 1024;

#[derive(Arbitrary, Debug)]
enum Op {
    Read {
        register: u8,
        width: u8,
    },
    Write {
        register: u8,
        value: u8,
        width: u8,
    },
    /// Writes so many bytes to the transmitter, as a guest does that does not look.
    Flood {
        byte: u8,
        count: u16,
    },
    /// Looks at the line status so often.
    Poll {
        count: u8,
    },
    Type(Vec<u8>),
    Consume(u16),
    Restore,
}

/// What a 16550 has in it.
#[derive(Default)]
struct Model {
    divisor: (u8, u8),
    enable: u8,
    line: u8,
    modem: u8,
    scratch: u8,
    received: VecDeque<u8>,
    sent: VecDeque<u8>,
    looks: u32,
    polls: bool,
    listens: bool,
}

impl Model {
    fn latch(&self) -> bool {
        self.line & 0x80 != 0
    }

    fn busy(&self) -> bool {
        RING - self.sent.len() < 64
    }

    fn write(&mut self, register: u8, value: u8) {
        self.looks = 0;
        match register {
            0 if self.latch() => self.divisor.0 = value,
            1 if self.latch() => self.divisor.1 = value,
            // Loop-back: what is sent is received.
            0 if self.modem & 0x10 != 0 => {
                if self.received.len() < FIFO {
                    self.received.push_back(value);
                }
            }
            0 => {
                if self.sent.len() < RING {
                    self.sent.push_back(value);
                }
            }
            1 => {
                self.enable = value & 0x0f;
                // All four at once, out of none, are a probe.
                self.listens = value & 1 != 0 && (value & 15 != 15 || self.listens);
            }
            3 => self.line = value,
            4 => self.modem = value,
            7 => self.scratch = value,
            _ => {}
        }
    }

    /// What is read, where that is known, and which of its bits are.
    fn read(&mut self, register: u8) -> (u8, u8) {
        let look = register == 5 && !self.busy();
        self.looks = match look {
            true => self.looks + 1,
            false if register == 5 => self.looks,
            false => 0,
        };
        self.polls |= self.looks >= 32;
        match register {
            0 if self.latch() => (self.divisor.0, 0xff),
            1 if self.latch() => (self.divisor.1, 0xff),
            0 => (self.received.pop_front().unwrap_or(0), 0xff),
            1 => (self.enable, 0xff),
            // FIFOs are on.
            2 => (0xc0, 0xc0),
            3 => (self.line, 0xff),
            4 => (self.modem, 0xff),
            5 => {
                let ready = u8::from(!self.received.is_empty());
                (ready | if self.busy() { 0 } else { 0x60 }, 0xff)
            }
            7 => (self.scratch, 0xff),
            _ => (0, 0),
        }
    }

    fn room(&self) -> usize {
        match (self.polls || self.listens) && self.modem & 0x10 == 0 {
            true => FIFO - self.received.len(),
            false => 0,
        }
    }
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let Ok(ops) = Vec::<Op>::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let world = World::new(vec![Box::new(Com1Part)]);
    let (port, line) = (&world.chars[0], &world.lines[0].1);
    let mut model = Model::default();
    // What the registers hold at first is the chip's affair.
    for register in [1, 3, 4, 7] {
        world
            .ports
            .write(u64::from(layout::COM1_PORT) + register, &[0]);
        model.write(register as u8, 0);
    }
    world.ports.write(u64::from(layout::COM1_PORT) + 3, &[0x80]);
    world.ports.write(u64::from(layout::COM1_PORT), &[1]);
    world.ports.write(u64::from(layout::COM1_PORT) + 3, &[0]);
    model.divisor.0 = 1;
    world.ports.read(u64::from(layout::COM1_PORT) + 3, &mut [0]);
    world.ports.write(u64::from(layout::COM1_PORT) + 3, &[0x80]);
    let mut high = [0];
    world
        .ports
        .read(u64::from(layout::COM1_PORT) + 1, &mut high);
    model.divisor.1 = high[0];
    world.ports.write(u64::from(layout::COM1_PORT) + 3, &[0]);
    for op in ops.iter().take(300) {
        let address = |register: u8| u64::from(layout::COM1_PORT + u16::from(register));
        match op {
            Op::Read { register, width } => {
                let register = register % 8;
                let mut bytes = vec![0xee; usize::from(width % 5)];
                world.ports.read(address(register), &mut bytes);
                if let Some((first, rest)) = bytes.split_first() {
                    let (wanted, known) = model.read(register);
                    assert_eq!(first & known, wanted, "register {register}");
                    assert!(rest.iter().all(|byte| *byte == 0xff));
                }
            }
            Op::Write {
                register,
                value,
                width,
            } => {
                let register = register % 8;
                let bytes = vec![*value; usize::from(width % 5)];
                world.ports.write(address(register), &bytes);
                if !bytes.is_empty() {
                    model.write(register, *value);
                }
            }
            Op::Flood { byte, count } => {
                // Seldom as many as the ring has room for.
                let count = if *count < 0xf000 { count % 256 } else { *count };
                for _ in 0..count {
                    world.ports.write(address(0), &[*byte]);
                    model.write(0, *byte);
                }
            }
            Op::Poll { count } => {
                for _ in 0..*count {
                    let mut byte = [0];
                    world.ports.read(address(5), &mut byte);
                    assert_eq!(byte[0], model.read(5).0);
                }
            }
            Op::Type(bytes) => {
                let _ = line.read();
                let room = model.room().min(bytes.len());
                let first = model.received.is_empty();
                assert_eq!(port.receive(bytes), room);
                model.received.extend(&bytes[..room]);
                if room > 0 && first && model.enable & 1 != 0 {
                    assert!(line.read().is_ok(), "the guest hears of the first byte");
                }
            }
            Op::Consume(count) => {
                let mut bytes = vec![0; usize::from(*count)];
                let found = port.peek_output(&mut bytes);
                let wanted: Vec<u8> = model.sent.iter().take(bytes.len()).copied().collect();
                assert_eq!(bytes[..found], wanted);
                port.consume_output(found);
                model.sent.drain(..found);
            }
            Op::Restore => {
                let state = world.device(0).state();
                world.device(0).restore(&state).expect("its own state");
                assert_eq!(world.device(0).state(), state);
            }
        }
    }
    let mut bytes = vec![0; RING + 1];
    let found = port.peek_output(&mut bytes);
    assert!(
        bytes[..found].iter().eq(&model.sent),
        "all that was printed is there"
    );
}
