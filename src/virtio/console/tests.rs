//! The port and the handlers of its queues, with chains in memory of their own.

use std::sync::atomic::{AtomicU32, Ordering};

use super::port::{OUTPUT_BYTES, OUTPUT_ROOM, PATIENCE};
use super::*;
use crate::board::CharDevice;
use crate::virtio::complaints::Complaints;
use crate::virtio::device::VirtioDevice;
use crate::virtio::front::Front;
use crate::virtio::signal::Bell;
use crate::virtio::signal::{STATUS_DRIVER_OK, Signal};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::GuestAddress;

const TABLE: u64 = 0x1000;
const BUFFER: u64 = 0x10000;
const WRITE: u16 = 2;
const RAM: u64 = 0x40000;

/// Counts what the driver is told.
#[derive(Default)]
struct Rung {
    config: AtomicU32,
}

impl Bell for Rung {
    fn used(&self, _queue: u16) {}
    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

struct Machine {
    memory: GuestMemoryMmap,
    port: Arc<Port>,
    signal: Arc<Signal>,
    bell: Arc<Rung>,
    transmit: Transmit,
    receive: Receive,
}

impl Machine {
    /// One whose driver is ready.
    fn new() -> Self {
        let bell = Arc::new(Rung::default());
        let signal = Arc::new(Signal::new(bell.clone()));
        let port = Arc::new(Port::new(signal.clone()).unwrap());
        port.driver(Some(0));
        signal.add_status(STATUS_DRIVER_OK);
        Machine {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap(),
            transmit: Transmit { port: port.clone() },
            receive: Receive { port: port.clone() },
            port,
            signal,
            bell,
        }
    }

    /// A chain of these buffers, each with its flags.
    fn chain(&self, buffers: &[(u64, u32, u16)]) -> Option<Chain> {
        for (n, (address, len, flags)) in (0u16..).zip(buffers) {
            let more = usize::from(n) + 1 < buffers.len();
            let descriptor = Descriptor::new(*address, *len, flags | u16::from(more), n + 1);
            let at = GuestAddress(TABLE + 16 * u64::from(n));
            self.memory
                .write_obj(RawDescriptor::from(descriptor), at)
                .unwrap();
        }
        let mut chain = Chain::default();
        chain.read(&self.memory, TABLE, 16, 0).ok()?;
        Some(chain)
    }

    /// The guest prints `text`, in two buffers.
    fn print(&mut self, text: &[u8]) {
        let (a, b) = text.split_at(text.len() / 2);
        let second = BUFFER + 0x20000;
        self.memory.write_slice(a, GuestAddress(BUFFER)).unwrap();
        self.memory.write_slice(b, GuestAddress(second)).unwrap();
        let buffers = [(BUFFER, a.len() as u32, 0), (second, b.len() as u32, 0)];
        let chain = self.chain(&buffers).unwrap();
        let taken = self.transmit.take(0, &chain, &self.memory).unwrap();
        assert_eq!(taken.written, Some(0));
    }

    /// The user reads up to `count` bytes.
    fn read(&self, count: usize) -> Vec<u8> {
        let mut buf = vec![0; count];
        let count = self.port.peek_output(&mut buf);
        self.port.consume_output(count);
        buf.truncate(count);
        buf
    }
}

#[test]
fn what_the_guest_prints_is_read_and_takes_the_device_into_use() {
    let mut machine = Machine::new();
    assert!(!machine.port.in_use());
    machine.print(b"hello, world");
    assert!(machine.port.in_use());
    assert_eq!(machine.read(100), b"hello, world");
    machine.print(b"last words");
    machine.port.driver(None);
    assert!(machine.port.in_use(), "until that is read");
    machine.read(100);
    assert!(!machine.port.in_use());
    machine.port.driver(Some(0));
    assert!(!machine.port.in_use());
}

#[test]
fn input_fills_buffers_and_the_rest_waits() {
    let mut machine = Machine::new();
    assert_eq!(machine.receive.room(), Room::No);
    assert_eq!(machine.port.receive(b"typed ahead"), 11);
    assert_eq!(machine.receive.room(), Room::Yes);
    let take = |machine: &mut Machine, len| {
        let buffers = [(BUFFER, len, WRITE), (BUFFER + 0x100, 3, WRITE)];
        let chain = machine.chain(&buffers).unwrap();
        let taken = machine.receive.take(0, &chain, &machine.memory).unwrap();
        taken.written.unwrap()
    };
    assert_eq!(take(&mut machine, 4), 7);
    let mut bytes = [0; 4];
    machine
        .memory
        .read_slice(&mut bytes, GuestAddress(BUFFER))
        .unwrap();
    assert_eq!(&bytes, b"type");
    assert_eq!(take(&mut machine, 100), 4);
    assert_eq!(machine.receive.room(), Room::No);
    // The console keeps what has no room, and none is taken for a driver that is not there.
    let flood = vec![b'x'; INPUT_BYTES + 1];
    assert_eq!(machine.port.receive(&flood), INPUT_BYTES);
    assert_eq!(machine.port.receive(&flood), 0);
    machine.port.driver(None);
    assert_eq!(machine.port.receive(b"x"), 0);
}

#[test]
fn a_buffer_outside_of_ram_gets_nothing_and_loses_nothing() {
    let mut machine = Machine::new();
    machine.port.receive(b"typed");
    let chain = machine.chain(&[(RAM - 1, 5, WRITE)]).unwrap();
    let taken = machine.receive.take(0, &chain, &machine.memory).unwrap();
    assert_eq!(taken.written, Some(0));
    let mut input = [0; 9];
    assert_eq!(machine.port.peek_input(&mut input), 5);
    let outside = [(u64::MAX - 1, u32::MAX, 0), (RAM - 2, 9, 0), (BUFFER, 1, 0)];
    let chain = machine.chain(&outside).unwrap();
    machine.transmit.take(0, &chain, &machine.memory).unwrap();
    assert_eq!(machine.read(9), [0]);
}

#[test]
fn a_reader_who_is_slow_slows_the_guest_and_one_who_has_stopped_does_not_stop_it() {
    let mut machine = Machine::new();
    let start = Instant::now();
    let wait = |machine: &Machine, after| machine.port.wait_for_room(start + after);
    machine.print(&[b'x'; OUTPUT_ROOM + 1]);
    assert_eq!(wait(&machine, Duration::ZERO), PATIENCE);
    assert_eq!(wait(&machine, PATIENCE / 2), PATIENCE / 2);
    // Somebody reads: it waits for the rest, and is told when there is room.
    assert!(machine.port.room_event().read().is_err());
    machine.read(1);
    assert!(machine.port.room_event().read().is_ok());
    machine.print(&[b'x'; 10]);
    assert_eq!(wait(&machine, PATIENCE * 2), PATIENCE);
    // Nobody reads.
    assert_eq!(wait(&machine, PATIENCE * 3), Duration::ZERO);
    machine.print(&[b'y'; 1000]);
    machine.print(&[b'y'; 234]);
    let mut all = machine.read(20);
    machine.print(b"after");
    all.extend(machine.read(OUTPUT_BYTES));
    let text = String::from_utf8(all).unwrap();
    assert!(text.ends_with("xx\r\n[1234 bytes were lost while nobody read them]\r\nafter"));
    assert!(!text.contains("yy"));
}

#[test]
fn a_chain_without_end_is_cut_and_costs_what_it_moves() {
    let mut machine = Machine::new();
    let endless = [(0, RAM as u32, 0); 16];
    for losing in [false, true] {
        if losing {
            machine.port.wait_for_room(Instant::now());
            machine.port.wait_for_room(Instant::now() + PATIENCE * 2);
        }
        let chain = machine.chain(&endless).unwrap();
        let taken = machine.transmit.take(0, &chain, &machine.memory).unwrap();
        assert_eq!(taken.cost, 1 + OUTPUT_BYTES / CHUNK);
    }
    assert_eq!(machine.read(2 * OUTPUT_BYTES).len(), OUTPUT_BYTES);
}

#[test]
fn the_size_is_in_the_configuration_and_a_change_is_told_once() {
    let machine = Machine::new();
    let config = || {
        let mut bytes = [0; 6];
        machine.port.read_config(0, &mut bytes);
        bytes
    };
    assert_eq!(config(), [0; 6]);
    machine.port.resize(0x0102, 0x0304);
    assert_eq!(config(), [2, 1, 4, 3, 0, 0]);
    machine.port.resize(0x0102, 0x0304);
    assert_eq!(machine.bell.config.load(Ordering::SeqCst), 1);
    assert_eq!(machine.signal.generation(), 1);
    assert_eq!(machine.port.features(), 1);
    let mut rows = [0; 2];
    machine.port.read_config(2, &mut rows);
    assert_eq!(rows, [4, 3]);
}

#[test]
fn a_state_is_taken_back_and_another_one_is_not() {
    let mut machine = Machine::new();
    machine.port.resize(100, 40);
    machine.print(b"out");
    machine.port.receive(b"in");
    let state = VirtioDevice::state(&*machine.port);
    let other = Machine::new();
    other.port.restore(&state).unwrap();
    assert!(other.port.in_use() && other.port.has_input());
    assert_eq!(other.read(9), b"out");
    assert_eq!(VirtioDevice::state(&*machine.port)["columns"], 100);
    assert!(
        other
            .port
            .restore(&serde_json::json!({"columns": 1}))
            .is_err()
    );
    let mut long = state;
    long["input"] = vec![0; INPUT_BYTES + 1].into();
    assert!(other.port.restore(&long).is_err());
}

#[test]
fn it_is_made_with_two_queues_and_a_character_device() {
    let signal = Arc::new(Signal::new(Arc::new(Rung::default())));
    let host = Host {
        name: "hvc0".into(),
        memory: Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap()),
        signal,
        complaints: Arc::new(Complaints::about("hvc0")),
        waiting: Arc::default(),
    };
    let mut made = ConsoleModel.make(&host).unwrap();
    assert!(!made.chars.take().unwrap().in_use());
    let front = Front::new(made, host).unwrap();
    assert_eq!((front.kind(), front.queues().len()), (3, 2));
}

proptest::proptest! {
    #[test]
    fn any_chain_is_answered_and_stays_in_bounds(
        buffers in proptest::collection::vec(
            (0u64..2 * RAM, 0u32..0x9000, proptest::bool::ANY), 1..16),
        typed in 0usize..INPUT_BYTES,
    ) {
        let mut machine = Machine::new();
        machine.port.receive(&vec![b'x'; typed]);
        let flags = |write| if write { WRITE } else { 0 };
        let buffers: Vec<_> = buffers.iter().map(|(a, l, w)| (*a, *l, flags(*w))).collect();
        if let Some(chain) = machine.chain(&buffers) {
            machine.transmit.take(0, &chain, &machine.memory).unwrap();
            let taken = machine.receive.take(0, &chain, &machine.memory).unwrap();
            proptest::prop_assert!(taken.written.unwrap() as usize <= typed);
            let mut left = [0; INPUT_BYTES];
            let left = machine.port.peek_input(&mut left);
            proptest::prop_assert_eq!(left + taken.written.unwrap() as usize, typed);
        }
        proptest::prop_assert!(machine.read(2 * OUTPUT_BYTES).len() <= OUTPUT_BYTES);
    }
}
