//! The device's queues against chains laid out by hand in guest memory, and its configuration space.

use super::*;
use crate::virtio::chain::Chain;
use crate::virtio::complaints::Complaints;
use crate::virtio::device::{Handler, Room, Taken};
use crate::virtio::signal::{Bell, Signal};
use crate::virtio::worker::BATCH;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where descriptors are: an indirect table would be no different to a handler.
const TABLE: u64 = 0x1000;
const PAGE: u64 = 4096;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORT: usize = 2;

struct Silent;

impl Bell for Silent {
    fn used(&self, _queue: u16) {}
    fn config_changed(&self) {}
}

struct Bench {
    memory: Arc<GuestMemoryMmap>,
    made: Made,
}

impl Bench {
    /// A balloon in a machine with this much RAM, of which nothing is in use yet.
    fn with(bytes: u64) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap();
        let memory = Arc::new(memory);
        let host = Host {
            name: "balloon0".into(),
            memory: memory.clone(),
            signal: Arc::new(Signal::new(Arc::new(Silent))),
            complaints: Arc::new(Complaints::about("balloon0")),
            waiting: Arc::default(),
        };
        let model = BalloonModel {
            backing: Backing::Thp,
        };
        let made = model.make(&host).unwrap();
        Bench { memory, made }
    }

    fn room(&mut self, queue: usize) -> Room {
        self.made.queues[queue].handler.room()
    }

    /// Has the queue's handler take one chain of these buffers, each with its address, length and whether the
    /// device may write it.
    fn take(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) -> Taken {
        for (n, (address, len, writable)) in (0u16..).zip(buffers) {
            let more = usize::from(n) + 1 < buffers.len();
            let flags = u16::from(*writable) << 1 | u16::from(more);
            let descriptor = Descriptor::new(*address, *len, flags, n + 1);
            let at = GuestAddress(TABLE + 16 * u64::from(n));
            let raw = RawDescriptor::from(descriptor);
            self.memory.write_obj(raw, at).unwrap();
        }
        let mut chain = Chain::default();
        let count = buffers.len() as u16;
        chain.read(&self.memory, TABLE, count, 0).unwrap();
        let handler: &mut Box<dyn Handler> = &mut self.made.queues[queue].handler;
        let taken = handler.take(0, &chain, &self.memory).unwrap();
        assert_eq!(taken.written, Some(0), "all are answered at once");
        taken
    }

    fn put_numbers(&self, at: u64, numbers: &[u32]) -> (u64, u32, bool) {
        for (n, number) in (0u64..).zip(numbers) {
            let at = GuestAddress(at + 4 * n);
            self.memory.write_obj(number.to_le(), at).unwrap();
        }
        (at, numbers.len() as u32 * 4, false)
    }

    /// Puts a mark into each page from `first` on.
    fn mark(&self, pages: std::ops::Range<u64>) {
        for page in pages {
            let at = GuestAddress(page * PAGE + 8);
            self.memory.write_obj(page + 1, at).unwrap();
        }
    }

    /// The pages whose mark is gone.
    fn lost(&self, pages: std::ops::Range<u64>) -> Vec<u64> {
        let mark = |page| self.memory.read_obj::<u64>(GuestAddress(page * PAGE + 8));
        pages
            .filter(|page| mark(*page).unwrap() != page + 1)
            .collect()
    }
}

#[test]
fn reported_memory_is_given_back_and_nothing_else() {
    let mut bench = Bench::with(1 << 20);
    bench.mark(16..256);
    let page = |page: u64| page * PAGE;
    bench.take(
        REPORT,
        &[
            // Not the device's to write: not reported.
            (page(20), 4096, false),
            (page(32), 8192, true),
            (page(40) + 1, 8192, true),
            (0xdead_0000, u32::MAX, true),
            (u64::MAX - 100, u32::MAX, true),
            (page(50), 0, true),
            (page(255), u32::MAX, true),
        ],
    );
    assert_eq!(bench.lost(16..256), [32, 33, 41, 255]);
}

#[test]
fn pages_in_the_balloon_are_given_back_in_whatever_order_they_come() {
    let mut bench = Bench::with(1 << 20);
    bench.mark(16..256);
    let numbers = [40, 42, 41, 41, 100, 0xffff_ffff, 256, 0x000f_ffff, 255];
    let buffer = bench.put_numbers(0x8000, &numbers);
    // Cut anywhere, even within a number; the rest of a number at the end counts for nothing.
    let (at, len, _) = buffer;
    let cut = [(at, 5, false), (at + 5, 2, false), (at + 7, len - 7, false)];
    let taken = bench.take(INFLATE, &cut);
    assert_eq!(bench.lost(16..256), [40, 41, 42, 100, 255]);
    assert!(taken.cost < 10, "neighbours are one call: {taken:?}");
}

#[test]
fn numbers_outside_of_ram_end_a_chain_and_not_the_device() {
    let mut bench = Bench::with(1 << 20);
    bench.mark(16..256);
    let good = bench.put_numbers(0x8000, &[77]);
    let more = bench.put_numbers(0x9000, &[78]);
    bench.take(INFLATE, &[good, (0xdead_0000, 400, false), more]);
    assert_eq!(bench.lost(16..256), [77]);
    bench.take(INFLATE, &[(0x8000, 0, false)]);
    bench.take(INFLATE, &[(0x8000, 3, false)]);
    bench.take(INFLATE, &[(0x8000, 4, true)]);
    bench.take(DEFLATE, &[more]);
    assert_eq!(bench.lost(16..256), [77]);
}

#[test]
fn a_driver_that_fills_free_pages_keeps_what_it_has_filled_them_with() {
    let mut bench = Bench::with(1 << 20);
    bench.mark(16..256);
    bench.made.device.write_config(POISON, &[0xaa; 4]);
    bench.take(REPORT, &[(32 * PAGE, 4096, true)]);
    assert_eq!(bench.lost(16..256), [0; 0]);
    bench.made.device.write_config(POISON, &[0; 4]);
    bench.take(REPORT, &[(32 * PAGE, 4096, true)]);
    assert_eq!(bench.lost(16..256), [32]);
}

#[test]
fn a_chain_has_a_bound_in_bytes() {
    // As long as nothing of it is touched, it costs address space alone.
    let mut bench = Bench::with(1 << 30);
    let mib = |mib: u64| mib << 20;
    for at in [100, 127, 129, 500] {
        bench.mark(mib(at) / PAGE..mib(at) / PAGE + 1);
    }
    let taken = bench.take(REPORT, &[(0x10000, u32::MAX, true)]);
    let lost = |at: u64| !bench.lost(mib(at) / PAGE..mib(at) / PAGE + 1).is_empty();
    assert_eq!([100, 127, 129, 500].map(lost), [true, true, false, false]);
    assert!(taken.cost > BATCH, "that was a turn: {taken:?}");
}

#[test]
fn a_chain_has_a_bound_in_pieces() {
    let mut bench = Bench::with(8 << 20);
    bench.mark(512..2048);
    // Every other page, so that each of them is a piece.
    let pages: Vec<u64> = (512..2048).step_by(2).take(300).collect();
    let buffers: Vec<_> = pages.iter().map(|page| (page * PAGE, 4096, true)).collect();
    let taken = bench.take(REPORT, &buffers);
    assert_eq!(bench.lost(512..2048), pages[..256]);
    assert!(taken.cost > BATCH, "that was a turn: {taken:?}");

    let mut bench = Bench::with(8 << 20);
    bench.mark(512..2048);
    let numbers: Vec<u32> = pages.iter().map(|page| *page as u32).collect();
    let buffer = bench.put_numbers(0x8000, &numbers);
    let taken = bench.take(INFLATE, &[buffer]);
    assert_eq!(bench.lost(512..2048), pages[..256]);
    assert!(taken.cost > BATCH, "that was a turn: {taken:?}");
}

#[test]
fn a_storm_of_reports_waits_for_the_next_second() {
    for queue in [INFLATE, REPORT] {
        let mut bench = Bench::with(1 << 30);
        assert_eq!(bench.room(queue), Room::Yes);
        bench.take(REPORT, &[(0x10000, u32::MAX, true)]);
        assert!(matches!(bench.room(queue), Room::Later(_)), "queue {queue}");
        assert!(bench.made.queues[queue].limited, "its loop has a timer");
    }
}

proptest::proptest! {
    /// Whatever a chain names: pages that it does not touch keep what is in them.
    #[test]
    fn any_chain_costs_its_guest_what_it_names_at_most(
        buffers in proptest::collection::vec((0u64..0x60, 0u64..4, 0u32..0x5000, 0u8..4), 1..12),
        numbers in proptest::collection::vec(0u32..80, 0..300),
        queue in 0usize..3,
    ) {
        let mut bench = Bench::with(64 * PAGE);
        bench.mark(2..64);
        bench.put_numbers(0x8100, &numbers);
        let numbered = 8..10;
        let mut buffers: Vec<(u64, u32, bool)> = buffers
            .into_iter()
            .map(|(page, more, len, odd)| match odd {
                0 => (page << 58, len, true),
                1 => (page * PAGE + more, u32::MAX - len, true),
                _ => (page * PAGE + more * 3, len, true),
            })
            .collect();
        if queue != REPORT {
            buffers.insert(0, (0x8100, numbers.len() as u32 * 4, false));
        }
        bench.take(queue, &buffers);
        for page in bench.lost(2..64) {
            let named = match queue {
                INFLATE => numbers.contains(&(page as u32)),
                REPORT => buffers.iter().any(|(at, len, _)| {
                    *at <= page * PAGE && at.saturating_add(u64::from(*len)) >= (page + 1) * PAGE
                }),
                _ => false,
            };
            // Where the numbers are written, a mark may have been overwritten.
            proptest::prop_assert!(named || numbered.contains(&page), "page {}", page);
        }
    }
}

fn config(balloon: &Balloon) -> [u32; 5] {
    [0, 4, 8, 12, 16].map(|at| {
        let mut word = [0; 4];
        balloon.read_config(at, &mut word);
        u32::from_le_bytes(word)
    })
}

#[test]
fn the_driver_writes_two_words_and_a_reset_forgets_them() {
    let balloon = Balloon::default();
    for at in (0..20).step_by(4) {
        balloon.write_config(at, &[at as u8 + 1, 0, 0, 1]);
    }
    assert_eq!(config(&balloon), [0, 0x0100_0005, 0, 0x0100_000d, 0]);
    balloon.write_config(5, &[0xab]);
    balloon.write_config(2, &[0, 0, 0xcd, 0]);
    balloon.write_config(10, &[1, 2, 3, 4, 5, 6, 7, 8]);
    balloon.write_config(u64::MAX, &[9; 8]);
    assert_eq!(config(&balloon), [0, 0x0100_00cd, 0, 0x0605_0403, 0]);
    balloon.driver(Some(0));
    assert_eq!(config(&balloon)[1], 0x0100_00cd);
    balloon.driver(None);
    assert_eq!(config(&balloon), [0; 5]);
}

#[test]
fn its_state_comes_back() {
    let balloon = Balloon::default();
    balloon.write_config(ACTUAL, &[1, 2, 3, 4]);
    assert_eq!(balloon.state()["actual"], 0x0403_0201);
    let other = Balloon::default();
    other.restore(&balloon.state()).unwrap();
    assert_eq!(config(&other), config(&balloon));
    assert!(other.restore(&Value::Null).is_err());
}
