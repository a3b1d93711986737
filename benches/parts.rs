//! The parts on the hot path, by criterion: `cargo bench --bench parts`.
//!
//! - `serial`: a byte from the guest's OUT to the buffer that the event loop drains;
//! - `bus`: an address to its device, among as many devices as a machine may have;
//! - `chain`, `request`: three descriptors read and checked, and the block request in them parsed;
//! - `queue`: a request through a whole disk, from the avail ring to the used ring.

#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::sync::Arc;

use bantam::board::{Bus, BusDevice, CharDevice, IrqLine, Pump};
use bantam::devices::serial::Uart;
use bantam::storage::{Image, IoBuffers, IoMode, SECTOR_BYTES, Work};
use bantam::virtio::block::BlockModel;
use bantam::virtio::block::request::{Geometry, Request};
use bantam::virtio::transport::interrupt::Interrupt;
use bantam::virtio::{Chain, Complaints, Front, Host, Model, Signal};
use criterion::{Criterion, criterion_group, criterion_main};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 128;

/// A disk that does nothing, at once: what is left is the way to it.
struct Nothing;

impl Image for Nothing {
    fn len(&self) -> u64 {
        1 << 40
    }
    fn run(&self, _work: Work, _buffers: &mut IoBuffers) -> std::io::Result<()> {
        Ok(())
    }
}

struct Register;

impl BusDevice for Register {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

fn irq() -> IrqLine {
    IrqLine::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
}

fn serial(c: &mut Criterion) {
    let uart = Uart::new(irq()).unwrap();
    c.bench_function("serial: a byte out", |b| {
        b.iter(|| {
            uart.write(0, black_box(b"x"));
            uart.consume_output(1);
        });
    });
    c.bench_function("serial: line status", |b| {
        let mut byte = [0];
        b.iter(|| uart.read(5, black_box(&mut byte)));
    });
}

fn bus(c: &mut Criterion) {
    let mut bus = Bus::default();
    for i in 0..16 {
        bus.insert(0xd000_0000 + i * 0x1000, 0x1000, Arc::new(Register))
            .unwrap();
    }
    c.bench_function("bus: read of one in 16 devices", |b| {
        let mut data = [0; 4];
        b.iter(|| bus.read(black_box(0xd000_7060), &mut data));
    });
    c.bench_function("bus: read where nothing is", |b| {
        let mut data = [0; 4];
        b.iter(|| bus.read(black_box(0xc000_0000), &mut data));
    });
}

/// A read of 4 KiB in three descriptors, at the head of a queue.
fn memory_with_request() -> Arc<GuestMemoryMmap> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    memory.write_obj(0u32, GuestAddress(0x100)).unwrap();
    memory.write_obj(8u64, GuestAddress(0x108)).unwrap();
    let descriptors = [
        Descriptor::new(0x100, 16, 1, 1),
        Descriptor::new(0x8000, 4096, 3, 2),
        Descriptor::new(0x200, 1, 2, 0),
    ];
    for (i, descriptor) in (0..).zip(descriptors) {
        memory
            .write_obj(RawDescriptor::from(descriptor), GuestAddress(DESC + 16 * i))
            .unwrap();
    }
    Arc::new(memory)
}

fn request(c: &mut Criterion) {
    let memory = memory_with_request();
    let mut chain = Chain::default();
    c.bench_function("chain: three descriptors", |b| {
        b.iter(|| chain.read(&memory, DESC, SIZE, black_box(0)).unwrap());
    });
    let mut request = Request::default();
    let disk = Geometry {
        len: 1000 * SECTOR_BYTES,
        read_only: false,
        discard: true,
        block: 512,
    };
    c.bench_function("request: a read of 4 KiB", |b| {
        b.iter(|| request.parse(black_box(&chain), &memory, disk).unwrap());
    });
}

fn queue(c: &mut Criterion) {
    let memory = memory_with_request();
    let model = BlockModel {
        flushes: Arc::default(),
        image: Arc::new(Nothing),
        path: "bench".into(),
        lock: None,
        read_only: false,
        snapshot: false,
        discard: true,
        serial: "bench".into(),
        queues: 1,
        io: IoMode::Inline,
        limit_requests: None,
        limit_bytes: None,
        io_thread: false,
        poll: std::time::Duration::ZERO,
    };
    let host = Host {
        name: "vda".into(),
        memory: memory.clone(),
        signal: Arc::new(Signal::new(Arc::new(Interrupt::new(irq())))),
        complaints: Arc::new(Complaints::about("vda")),
        waiting: Arc::default(),
    };
    let front = Front::new(model.make(&host).unwrap(), host).unwrap();
    front.write_status(3);
    // VIRTIO_F_VERSION_1, and VIRTIO_BLK_F_FLUSH: nothing is made durable after each request.
    front.want_features(|features| *features = 1 << 32 | 1 << 9);
    front.write_status(11);
    front.set_up(0, |queue| {
        (queue.size, queue.desc, queue.driver, queue.device) = (SIZE, DESC, AVAIL, USED);
    });
    front.set_ready(0, true);
    front.write_status(15);
    let mut avail = 0u16;
    c.bench_function("queue: a request of 4 KiB, from avail to used", |b| {
        b.iter(|| {
            avail = avail.wrapping_add(1);
            memory.write_obj(avail, GuestAddress(AVAIL + 2)).unwrap();
            front.queues()[0].run(true)
        });
    });
    let used: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
    assert_eq!(used, avail, "each request was answered");
}

criterion_group!(parts, serial, bus, request, queue);
criterion_main!(parts);
