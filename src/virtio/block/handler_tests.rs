//! A disk's queue against a ring laid out by hand in guest memory.

use super::*;
use crate::board::{IrqLine, Turn};
use crate::storage::{Access, Image, IoMode, open};
use crate::virtio::block::BlockModel;
use crate::virtio::complaints::Complaints;
use crate::virtio::device::Host;
use crate::virtio::ring::Ring;
use crate::virtio::signal::Signal;
use crate::virtio::signal::{STATUS_DRIVER_OK, STATUS_NEEDS_RESET};
use crate::virtio::spin::For;
use crate::virtio::transport::interrupt::{ISR_USED_BUFFER, Interrupt};
use crate::virtio::worker::Worker;
use crate::virtio::worker::{BATCH, SPIN_COST};
use std::io::Write;
use std::time::Duration;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 16;

struct Bench {
    memory: Arc<GuestMemoryMmap>,
    worker: Worker,
    interrupt: Arc<Interrupt>,
    signal: Arc<Signal>,
    _file: tempfile::NamedTempFile,
}

fn bench() -> Bench {
    bench_of(IoMode::Inline, 1)
}

fn bench_of(io: IoMode, sectors: u64) -> Bench {
    bench_with(io, sectors, Duration::ZERO)
}

fn bench_with(io: IoMode, sectors: u64, poll: Duration) -> Bench {
    bench_limited(io, sectors, poll, (None, None))
}

/// The same with limits of requests and of bytes a second.
fn bench_limited(
    io: IoMode,
    sectors: u64,
    poll: Duration,
    (limit_requests, limit_bytes): (Option<u64>, Option<u64>),
) -> Bench {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[0x5a; 8192]).unwrap();
    file.as_file().set_len(8192.max(sectors * 512)).unwrap();
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20000)]).unwrap());
    let interrupt = Arc::new(Interrupt::new(IrqLine::new(EventFd::new(0).unwrap())));
    let signal = Arc::new(Signal::new(interrupt.clone()));
    signal.add_status(STATUS_DRIVER_OK);
    let image = open::open(file.path(), Access::default()).unwrap().image;
    let model = BlockModel {
        path: file.path().into(),
        io,
        limit_requests,
        limit_bytes,
        poll,
        ..model(image)
    };
    let host = host(memory.clone(), signal.clone());
    let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let requests = Requests::new(Arc::new(Disk::new(&model, &host)), &event).unwrap();
    let mut worker = Worker::new(
        Box::new(requests),
        poll,
        signal.clone(),
        host.complaints.clone(),
    );
    let mut queue = Queue::new(SIZE).unwrap();
    queue.try_set_size(SIZE).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(DESC))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(AVAIL))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    assert!(queue.is_valid(&*memory));
    let ring = Ring::new(queue, 0, memory.clone(), signal.clone());
    worker.start(Some(ring), 1 << blk::VIRTIO_BLK_F_FLUSH);
    Bench {
        memory,
        worker,
        interrupt,
        signal,
        _file: file,
    }
}

fn model(image: Arc<dyn Image>) -> BlockModel {
    BlockModel {
        flushes: Default::default(),
        image,
        path: "disk".into(),
        lock: None,
        read_only: false,
        snapshot: false,
        discard: true,
        serial: "serial-number-of-20b".into(),
        queues: 1,
        io: IoMode::Inline,
        limit_requests: None,
        limit_bytes: None,
        io_thread: false,
        poll: Duration::ZERO,
    }
}

fn host(memory: Arc<GuestMemoryMmap>, signal: Arc<Signal>) -> Host {
    Host {
        name: "vda".into(),
        memory,
        signal,
        complaints: Arc::new(Complaints::about("vda")),
        waiting: Arc::default(),
    }
}

impl Bench {
    fn put<T: vm_memory::ByteValued>(&self, value: T, addr: u64) {
        self.memory.write_obj(value, GuestAddress(addr)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, addr: u64) -> T {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    /// Header at 0x100, status at 0x200, data as given; made available as entry `n`.
    fn submit(&self, n: u16, kind: u32, sector: u64, data: (u64, u32, u16)) {
        self.put(kind, 0x100);
        self.put(sector, 0x108);
        self.put(0xffu8, 0x200);
        let (addr, len, write) = data;
        for (i, desc) in [
            Descriptor::new(0x100, 16, 1, 1),
            Descriptor::new(addr, len, 1 | write << 1, 2),
            Descriptor::new(0x200, 1, 2, 0),
        ]
        .into_iter()
        .enumerate()
        {
            self.put(RawDescriptor::from(desc), DESC + 16 * i as u64);
        }
        self.put(0u16, AVAIL + 4 + 2 * u64::from(n % SIZE));
        self.put(n + 1, AVAIL + 2);
    }
}

#[test]
fn writes_and_reads_go_through_the_ring() {
    let mut b = bench();
    b.memory
        .write_slice(&[3; 512], GuestAddress(0x8000))
        .unwrap();
    b.submit(0, 1, 2, (0x8000, 512, 0));
    assert_eq!(b.worker.run(true), Turn::Idle);
    assert_eq!(b.get::<u8>(0x200), Status::Ok as u8);
    assert_eq!(b.get::<u16>(USED + 2), 1);
    assert_eq!(b.get::<u32>(USED + 8), 1, "one byte written: the status");
    assert_eq!(b.interrupt.isr(), ISR_USED_BUFFER);

    b.submit(1, 0, 1, (0x9000, 1024, 1));
    assert_eq!(b.worker.run(true), Turn::Idle);
    assert_eq!(b.get::<u8>(0x200), Status::Ok as u8);
    assert_eq!(b.get::<u32>(USED + 16), 1025);
    assert_eq!(b.get::<u8>(0x9000), 0x5a);
    assert_eq!(b.get::<u8>(0x9200), 3);
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut b = bench();
    b.put(1u16, AVAIL);
    b.submit(0, 4, 0, (0x8000, 0, 1));
    assert_eq!(b.worker.run(true), Turn::Idle);
    assert_eq!(b.get::<u16>(USED + 2), 1);
    assert_eq!(b.interrupt.isr(), 0);
    b.put(0u16, AVAIL);
    b.submit(1, 4, 0, (0x8000, 0, 1));
    b.worker.run(true);
    assert_eq!(b.interrupt.isr(), ISR_USED_BUFFER);
}

#[test]
fn the_serial_number_needs_20_bytes_of_room() {
    let mut b = bench();
    b.submit(0, 8, 0, (0x8000, 20, 1));
    b.worker.run(true);
    assert_eq!(b.get::<[u8; 20]>(0x8000), *b"serial-number-of-20b");
    assert_eq!(b.get::<u8>(0x200), Status::Ok as u8);
    b.submit(1, 8, 0, (0x8000, 19, 1));
    b.worker.run(true);
    assert_eq!(b.get::<u8>(0x200), Status::IoError as u8);
}

#[test]
fn data_outside_of_ram_is_an_io_error_and_the_ring_goes_on() {
    let mut b = bench();
    b.submit(0, 0, 0, (0xdead_0000, 512, 1));
    b.worker.run(true);
    assert_eq!(b.get::<u8>(0x200), Status::IoError as u8);
    b.submit(1, 4, 0, (0x8000, 0, 1));
    b.worker.run(true);
    assert_eq!(b.get::<u8>(0x200), Status::Ok as u8);
    assert_eq!(b.get::<u16>(USED + 2), 2);
}

#[test]
fn broken_rings_need_a_reset_and_are_left_alone() {
    let break_with: [fn(&Bench); 3] = [
        |b| b.put(99u16, AVAIL + 4),    // head out of range
        |b| b.put(SIZE + 1, AVAIL + 2), // more entries than the ring has
        |b| b.put(RawDescriptor::from(Descriptor::new(0, 0, 1, 0)), DESC), // loop
    ];
    for (i, breakage) in break_with.iter().enumerate() {
        let mut b = bench();
        b.submit(0, 0, 0, (0x8000, 512, 1));
        breakage(&b);
        b.worker.run(true);
        assert_ne!(b.signal.status() & STATUS_NEEDS_RESET, 0, "breakage {i}");
        assert_eq!(b.get::<u16>(USED + 2), 0);
        assert_eq!(b.worker.run(true), Turn::Idle);
    }
}

#[test]
fn after_a_stop_nothing_is_touched() {
    let mut b = bench();
    b.submit(0, 0, 0, (0x8000, 512, 1));
    b.worker.stop();
    assert_eq!(b.worker.run(true), Turn::Idle);
    assert_eq!(b.get::<u8>(0x200), 0xff);
    assert_eq!(b.get::<u16>(USED + 2), 0);
}

#[test]
fn a_full_ring_is_handled_in_one_turn_with_one_interrupt() {
    let mut b = bench();
    b.submit(0, 4, 0, (0x8000, 0, 1));
    b.put([0u16; 16], AVAIL + 4);
    b.put(SIZE, AVAIL + 2);
    assert_eq!(b.worker.run(true), Turn::Idle);
    assert_eq!(b.get::<u16>(USED + 2), SIZE);
}

/// A driver that asks again as soon as it is answered, on another thread.
fn eager_driver(memory: Arc<GuestMemoryMmap>, requests: u16) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for n in 1..requests {
            while memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap() != n {
                std::thread::yield_now();
            }
            memory.write_obj(n + 1, GuestAddress(AVAIL + 2)).unwrap();
        }
    })
}

#[test]
fn who_spins_takes_more_in_a_turn_and_not_too_much() {
    const REQUESTS: u16 = 400;
    let mut b = bench_with(IoMode::Inline, 8, Duration::from_millis(1));
    b.submit(0, 4, 0, (0x8000, 0, 1));
    b.put([0u16; 16], AVAIL + 4);
    let driver = eager_driver(b.memory.clone(), REQUESTS);
    let (mut done, mut most) = (0, 0);
    while done < REQUESTS {
        b.worker.spin.expect(For::Driver, Duration::from_micros(1));
        b.worker.run(true);
        let now = b.get::<u16>(USED + 2);
        most = most.max(now - done);
        done = now;
    }
    driver.join().unwrap();
    // Each is a request and a wait of a turn's 256; the first had no wait before it.
    let bound = (BATCH / (SPIN_COST + 1)) as u16 + 2;
    assert!((2..=bound).contains(&most), "{most} in a turn");
}

#[test]
fn only_who_is_alone_spins() {
    for alone in [false, true] {
        let mut b = bench_with(IoMode::Inline, 8, Duration::from_micros(5));
        b.worker.spin.expect(For::Driver, Duration::from_micros(1));
        assert_eq!(b.worker.run(alone), Turn::Idle);
        assert_eq!(b.worker.spin.has_slept(), !alone);
    }
}

/// A disk of 64 MiB for direct I/O that does nothing.
struct Nothing;

impl Image for Nothing {
    fn len(&self) -> u64 {
        64 << 20
    }

    fn run(&self, _work: Work, _buffers: &mut IoBuffers) -> std::io::Result<()> {
        Ok(())
    }

    fn alignment(&self) -> u32 {
        512
    }
}

/// How many reads a queue takes before it has no room, each with so many `pieces` of 512 bytes from `data` on.
fn taken_at_once(queues: u16, pieces: u64, data: u64) -> usize {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20000)]).unwrap());
    let interrupt = Arc::new(Interrupt::new(IrqLine::new(EventFd::new(0).unwrap())));
    let signal = Arc::new(Signal::new(interrupt));
    let model = BlockModel {
        queues,
        ..model(Arc::new(Nothing))
    };
    let disk = Arc::new(Disk::new(&model, &host(memory.clone(), signal)));
    let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let mut requests = Requests::new(disk, &event).unwrap();
    let put = |index: u64, addr, len, flags| {
        let desc = Descriptor::new(addr, len, flags, index as u16 + 1);
        let at = GuestAddress(0x10000 + 16 * index);
        memory.write_obj(RawDescriptor::from(desc), at).unwrap();
    };
    // The header is zeros: a read of the first sectors.
    put(0, 0x100, 16, 1);
    (1..=pieces).for_each(|index| put(index, data, 512, 1 | 2));
    put(pieces + 1, 0x200, 1, 2);
    let indirect = Descriptor::new(0x10000, (pieces as u32 + 2) * 16, 4, 0);
    let at = GuestAddress(DESC);
    memory.write_obj(RawDescriptor::from(indirect), at).unwrap();
    let mut chain = Chain::default();
    chain.read(&memory, DESC, SIZE, 0).unwrap();
    let mut taken = 0;
    while requests.room() == Room::Yes {
        let answer = requests.take(taken, &chain, &memory).unwrap();
        assert_eq!(answer.written, None, "request {taken} is begun");
        taken += 1;
    }
    assert_eq!(requests.in_flight(), usize::from(taken));
    let ended = requests.ended().unwrap().unwrap();
    assert_eq!(ended.written, pieces as u32 * 512 + 1, "it went well");
    assert_eq!(requests.room(), Room::Yes, "there is room for the next one");
    usize::from(taken)
}

#[test]
fn what_is_in_flight_is_bounded_by_its_segments() {
    assert_eq!(taken_at_once(1, 1, 0x8000), usize::from(QUEUE_SIZE));
    let pieces = 1000;
    let most = MAX_SEGMENTS_IN_FLIGHT.div_ceil(pieces);
    assert_eq!(taken_at_once(1, pieces as u64, 0x8000), most);
}

#[test]
fn requests_at_odd_addresses_wait_for_a_chunk() {
    for (queues, chunks) in [(1, 16), (4, 16), (16, 4), (64, 1)] {
        assert_eq!(taken_at_once(queues, 1, 0x8001), chunks, "{queues} queues");
    }
}

#[test]
fn discards_and_zeros_count_with_the_limits() {
    let counts = |work| counts_for(Operation::Do(work), 16);
    let (offset, unmap) = (0, false);
    let discard = |len| counts(Work::Discard { offset, len });
    let zero = |len| counts(Work::Zero { offset, len, unmap });
    assert_eq!(zero(32 << 20), (1, 32 << 20), "as a write of that length");
    assert_eq!(discard(4096), (1, 16));
    assert_eq!(discard(32 << 20), (1, 128 << 10));
    assert_eq!(discard((32 << 20) + 4096), (2, (128 << 10) + 16));
    assert_eq!(discard(2 << 30), (64, 8 << 20), "the longest that there is");
    assert_eq!(counts(Work::Read { offset }), (1, 16));
}

#[test]
fn a_long_discard_is_waited_for() {
    // 64 requests, or 8 MiB, of 2 GiB.
    for limits in [(Some(1), None), (None, Some(128 << 10))] {
        let mut b = bench_limited(IoMode::Inline, 8 << 21, Duration::ZERO, limits);
        b.put([0u64, 1 << 22], 0x8000);
        b.submit(0, 11, 0, (0x8000, 16, 0));
        b.worker.run(true);
        assert_eq!(b.get::<u8>(0x200), Status::Ok as u8);
        b.submit(1, 4, 0, (0x8000, 0, 1));
        let Turn::Later(wait) = b.worker.run(true) else {
            panic!("{limits:?}");
        };
        // Some of the 64 s may have passed by now.
        assert!(wait > Duration::from_secs(30), "{limits:?}: {wait:?}");
        assert!(wait < Duration::from_secs(66), "{limits:?}: {wait:?}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn any_ring_content_is_survived(
        descs in proptest::collection::vec(0u8.., 256),
        avail in proptest::collection::vec(0u8.., 36),
        idx in 0u16..=SIZE,
        header in proptest::collection::vec(0u8.., 256),
    ) {
        let mut b = bench();
        b.memory.write_slice(&descs, GuestAddress(DESC)).unwrap();
        b.memory.write_slice(&avail, GuestAddress(AVAIL)).unwrap();
        b.put(idx, AVAIL + 2);
        b.memory.write_slice(&header, GuestAddress(0)).unwrap();
        while b.worker.run(true) == Turn::More {}
    }

    #[test]
    fn any_ring_content_is_survived_by_one_who_spins(
        avail in proptest::collection::vec(0u8.., 36),
        idx in 0u16..,
    ) {
        let mut b = bench_with(IoMode::Inline, 8, Duration::from_micros(5));
        b.submit(0, 4, 0, (0x8000, 0, 1));
        b.memory.write_slice(&avail, GuestAddress(AVAIL)).unwrap();
        b.put(idx, AVAIL + 2);
        b.worker.spin.expect(For::Driver, Duration::from_micros(1));
        while b.worker.run(true) == Turn::More {}
    }
}
