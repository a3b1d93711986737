//! Requests to a disk against a model of it: data, status, used length, and every other byte of guest RAM.
//!
//! A request is made of two streams of bytes, and each is cut anyhow into descriptors, some of them of no length, some
//! in an indirect table, some of them not in RAM. The model takes the streams byte by byte, each with its address, and
//! knows virtio 1.2, 5.2.6. After each batch the whole of RAM and the whole of the disk are compared with what the
//! model says they hold.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use bantam::storage::raw::Raw;
use bantam::storage::{CacheMode, IoMode};
use bantam::virtio::OnMmio;
use bantam::virtio::block::BlockModel;
use vm_memory::{Bytes, GuestAddress};

use crate::disk_model::{Laid, Model, Outcome, Pieces, SERIAL, bytes_of};
use crate::driver::{self, Descriptor, EVENT_IDX, NEEDS_RESET, Places, VERSION_1, register};
use crate::world::{RAM_END, World, file_of};

const SECTOR: u64 = 512;
const PLACES: Places = Places {
    desc: 0,
    avail: 0x1000,
    used: 0x2000,
};
/// Everything of the used ring, which is looked at by itself.
const USED_RING: std::ops::Range<usize> = 0x2000..0x2000 + 6 + 8 * 256;
/// Indirect tables, then what they name.
const TABLES: u64 = 0x4000;
const BUFFERS: u64 = 0x8000;
/// Left free, for buffers that begin in RAM and end behind it.
const EDGE: u64 = RAM_END - 0x400;

#[derive(Arbitrary, Debug)]
struct Input {
    sectors: u8,
    read_only: bool,
    discard: bool,
    sessions: Vec<Session>,
}

/// From one reset to the next.
#[derive(Arbitrary, Debug)]
struct Session {
    flush: bool,
    event_idx: bool,
    quiet: bool,
    used_event: u16,
    size: u8,
    /// Where the indices of the ring begin, by way of a state that is put back.
    start: u16,
    batches: Vec<Vec<Request>>,
}

#[derive(Arbitrary, Debug)]
struct Request {
    kind: Kind,
    sector: Sector,
    len: Len,
    fill: u8,
    /// Bytes of the header that are left away, if below 16.
    header: u8,
    no_status: bool,
    readable: Cuts,
    writable: Cuts,
    /// In a table of its own from this descriptor on, if below 8.
    indirect: u8,
}

#[derive(Arbitrary, Debug)]
struct Cuts {
    lengths: Vec<u8>,
    /// A piece that is elsewhere.
    wild: Option<(u8, Wild)>,
}

#[derive(Arbitrary, Debug)]
enum Wild {
    Edge(u16),
    Beyond(u32),
    Top(u8),
    /// Where the piece before is.
    Again,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard { sectors: Count, flags: u8 },
    Zero { sectors: Count, flags: u8 },
    Other(u32),
}

#[derive(Arbitrary, Debug)]
enum Count {
    Few(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Sector {
    On(u8),
    NearEnd(i8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Len {
    Sectors(u8),
    Bytes(u16),
}

/// Gives out places for buffers.
struct Room {
    table: u64,
    buffer: u64,
}

impl Room {
    fn pieces(&mut self, len: usize, cuts: &Cuts) -> Pieces {
        let mut pieces: Pieces = Vec::new();
        let mut left = len as u64;
        let mut put = |len: u64| {
            let number = pieces.len();
            let mut at = self.buffer;
            match &cuts.wild {
                Some((wild, place)) if usize::from(*wild) == number => {
                    at = match place {
                        // The first bytes are in RAM, and the last is not.
                        Wild::Edge(into) if len > 1 => RAM_END - 1 - u64::from(*into) % (len - 1),
                        Wild::Edge(_) => RAM_END,
                        Wild::Beyond(by) => RAM_END + u64::from(*by),
                        Wild::Top(by) => u64::MAX - u64::from(*by),
                        Wild::Again => pieces.last().map_or(at, |piece| piece.0),
                    };
                    if matches!(place, Wild::Again) {
                        self.buffer += len;
                    }
                }
                _ => self.buffer += len,
            }
            pieces.push((at, len as u32));
        };
        for cut in cuts.lengths.iter().take(12) {
            // Small pieces, and some that are sectors.
            let cut = match cut {
                0..=199 => u64::from(cut % 40),
                _ => u64::from(cut - 199) * 128,
            };
            put(cut.min(left));
            left -= cut.min(left);
        }
        if left > 0 || len == 0 {
            put(left);
        }
        pieces
    }
}

struct Bench {
    world: World,
    base: u64,
    file: std::fs::File,
    model: Model,
}

fn bench(input: &Input) -> Bench {
    let sectors = usize::from(input.sectors % 64) + 1;
    let disk: Vec<u8> = (0..sectors * SECTOR as usize)
        .map(|i| (i / 512 * 7 + i % 251) as u8)
        .collect();
    let file = file_of(&disk);
    let copy = file.try_clone().expect("a descriptor");
    let image = Raw::new(copy, disk.len() as u64, CacheMode::Writeback).expect("a file");
    let model = BlockModel {
        image: Arc::new(image),
        path: "fuzz".into(),
        lock: None,
        read_only: input.read_only,
        snapshot: false,
        discard: input.discard,
        serial: SERIAL.into(),
        queues: 1,
        io: IoMode::Inline,
        limit_requests: None,
        limit_bytes: None,
        io_thread: false,
        poll: Duration::ZERO,
        flushes: Arc::default(),
    };
    let world = World::new(vec![Box::new(OnMmio(model))]);
    let base = world.places[0].0;
    let (read_only, discard) = (input.read_only, input.discard);
    let model = Model {
        ram: Vec::new(),
        disk,
        read_only,
        discard,
        discarded: Vec::new(),
    };
    Bench {
        world,
        base,
        file,
        model,
    }
}

impl Bench {
    /// Agrees on features, and begins with the ring's indices at `start`.
    fn begin(&self, session: &Session, size: u16) {
        let (world, base) = (&self.world, self.base);
        world.poke(0, &[0; 0x4000]);
        let mut features = VERSION_1 | u64::from(session.flush) << 9;
        if session.event_idx {
            features |= EVENT_IDX;
        }
        assert!(driver::agree(world, base, features), "these are offered");
        driver::set_up(world, base, 0, size.into(), PLACES);
        world.poke(PLACES.avail + 2, &session.start.to_le_bytes());
        world.poke(PLACES.used + 2, &session.start.to_le_bytes());
        if session.start == 0 {
            world.set(base + register::STATUS, driver::DRIVER_OK);
        } else {
            let mut state = world.device(0).state();
            state["front"]["status"] = driver::DRIVER_OK.into();
            state["front"]["progress"][0] = vec![session.start, session.start].into();
            world.device(0).restore(&state).expect("a state in order");
            world.device(0).resume();
        }
        assert_eq!(world.get(base + register::STATUS), driver::DRIVER_OK);
        world.run();
    }

    /// Lays a request out in the ring, from entry `*next` on; `None` where the ring has no room.
    fn lay(&self, request: &Request, size: u16, next: &mut u16, room: &mut Room) -> Option<Laid> {
        let sectors = (self.model.disk.len() as u64) / SECTOR;
        let place = |sector: &Sector| match sector {
            Sector::On(sector) => u64::from(*sector) % sectors,
            Sector::NearEnd(by) => sectors.wrapping_add_signed((*by).into()),
            Sector::Any(sector) => *sector,
        };
        let sector = place(&request.sector);
        let len = match request.len {
            Len::Sectors(sectors) => usize::from(sectors % 17) * SECTOR as usize,
            Len::Bytes(bytes) => usize::from(bytes % 3000),
        };
        let (kind, sent, got) = match &request.kind {
            Kind::In => (0, Vec::new(), len),
            Kind::Out => (1, vec![request.fill; len], 0),
            Kind::Flush => (4, Vec::new(), 0),
            Kind::GetId => (
                8,
                Vec::new(),
                if request.fill < 128 { 20 } else { len % 64 },
            ),
            Kind::Discard { sectors, flags } | Kind::Zero { sectors, flags } => {
                let count = match sectors {
                    Count::Few(count) => u32::from(*count),
                    Count::Any(count) => *count,
                };
                let mut bytes = sector.to_le_bytes().to_vec();
                bytes.extend(count.to_le_bytes());
                bytes.extend(u32::from(*flags % 4).to_le_bytes());
                if request.fill > 250 {
                    bytes.resize(len, 0);
                }
                (
                    if matches!(request.kind, Kind::Discard { .. }) {
                        11
                    } else {
                        13
                    },
                    bytes,
                    0,
                )
            }
            Kind::Other(kind) => (*kind, vec![request.fill; len % 100], len % 100),
        };
        let mut bytes = u32::to_le_bytes(kind).to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sent);
        if request.header < 16 && request.fill & 1 == 1 {
            bytes.truncate(request.header.into());
        }
        let readable = room.pieces(bytes.len(), &request.readable);
        let wanted = got + usize::from(!request.no_status);
        let writable = room.pieces(wanted, &request.writable);
        if room.buffer > EDGE {
            return None;
        }
        let mut rest = bytes.as_slice();
        for (at, len) in &readable {
            let (part, after) = rest.split_at(*len as usize);
            self.world.poke(*at, part);
            rest = after;
        }
        let head = self.descriptors(request.indirect, &readable, &writable, size, next, room)?;
        // What stands in RAM counts: pieces may lie over each other.
        let mut laid = Laid {
            head,
            kind,
            sector,
            readable,
            writable,
        };
        let byte = |at: &u64| self.world.memory.read_obj::<u8>(GuestAddress(*at)).ok();
        let header = bytes_of(&laid.readable);
        let header = header
            .get(..16)
            .and_then(|bytes| bytes.iter().map(byte).collect::<Option<Vec<_>>>());
        if let Some(header) = header {
            laid.kind = u32::from_le_bytes(header[0..4].try_into().expect("four"));
            laid.sector = u64::from_le_bytes(header[8..16].try_into().expect("eight"));
        }
        Some(laid)
    }

    fn descriptors(
        &self,
        indirect: u8,
        readable: &Pieces,
        writable: &Pieces,
        size: u16,
        next: &mut u16,
        room: &mut Room,
    ) -> Option<u16> {
        let ranges = readable.iter().map(|range| (*range, 0));
        let ranges: Vec<_> = ranges
            .chain(writable.iter().map(|range| (*range, 2)))
            .collect();
        let direct = match usize::from(indirect) {
            from @ 0..8 if from < ranges.len() => from,
            _ => ranges.len(),
        };
        let (outer, inner) = ranges.split_at(direct);
        let entries = outer.len() + usize::from(!inner.is_empty());
        let head = *next;
        if entries == 0 || usize::from(head) + entries > size.into() {
            return None;
        }
        *next += entries as u16;
        let table = |base: u64, first: u16, ranges: &[((u64, u32), u16)], more: bool| {
            for (i, ((address, len), flags)) in ranges.iter().enumerate() {
                let next = more || i + 1 < ranges.len();
                let index = first + i as u16;
                let descriptor = Descriptor {
                    address: *address,
                    len: *len,
                    flags: flags | u16::from(next),
                    next: index + 1,
                };
                self.world
                    .poke(base + 16 * u64::from(index), &descriptor.bytes());
            }
        };
        table(PLACES.desc, head, outer, !inner.is_empty());
        if !inner.is_empty() {
            let len = inner.len() as u32 * 16;
            let descriptor = Descriptor {
                address: room.table,
                len,
                flags: 4,
                next: 0,
            };
            let at = PLACES.desc + 16 * (u64::from(head) + outer.len() as u64);
            self.world.poke(at, &descriptor.bytes());
            table(room.table, 0, inner, false);
            room.table += u64::from(len);
        }
        Some(head)
    }

    /// One batch; false when the ring is broken afterwards.
    fn batch(&mut self, batch: &[Request], session: &Session, size: u16, index: &mut u16) -> bool {
        let mut room = Room {
            table: TABLES,
            buffer: BUFFERS,
        };
        let mut next = 0;
        let mut laid = Vec::new();
        for request in batch.iter().take(4) {
            laid.extend(self.lay(request, size, &mut next, &mut room));
        }
        // Used event (virtio 1.2, 2.7.7): where the driver wants to be interrupted.
        let event = session.used_event.wrapping_add(*index);
        self.world
            .poke(PLACES.avail, &u16::from(session.quiet).to_le_bytes());
        self.world
            .poke(PLACES.avail + 4 + 2 * u64::from(size), &event.to_le_bytes());
        let before = *index;
        for request in &laid {
            driver::offer(&self.world, PLACES, size, *index, request.head);
            *index = index.wrapping_add(1);
        }
        let base = self.base;
        self.world.set(base + register::INTERRUPT_ACK, 3);
        self.model.ram = self.world.ram();
        self.world.set(base + register::QUEUE_NOTIFY, 0);
        self.world.run();

        let mut outcomes = Vec::new();
        for request in &laid {
            let outcome = self.model.request(request);
            outcomes.push((request.head, outcome));
            if outcome == Outcome::Broken {
                break;
            }
        }
        let broken = outcomes
            .iter()
            .any(|(_, outcome)| *outcome == Outcome::Broken);
        let status = self.world.get(base + register::STATUS);
        assert_eq!(status & NEEDS_RESET != 0, broken, "{outcomes:?}");
        if broken {
            return false;
        }
        assert_eq!(
            driver::used_index(&self.world, PLACES),
            *index,
            "all are answered"
        );
        self.used_elements(&outcomes, size, before);
        let moved = index.wrapping_sub(before);
        let wanted = match session.event_idx {
            true => index.wrapping_sub(event).wrapping_sub(1) < moved,
            false => !session.quiet && moved > 0,
        };
        let told = self.world.get(base + register::INTERRUPT_STATUS) & 1 != 0;
        assert_eq!(told, wanted, "whether the driver is interrupted");
        self.compare(
            outcomes
                .iter()
                .any(|(_, outcome)| *outcome == Outcome::Error),
        );
        true
    }

    fn used_elements(&self, outcomes: &[(u16, Outcome)], size: u16, first: u16) {
        let mut elements: Vec<_> = (0..outcomes.len() as u16)
            .map(|i| driver::used(&self.world, PLACES, size, first.wrapping_add(i)))
            .collect();
        for (head, outcome) in outcomes {
            let found = elements
                .iter()
                .position(|element| element.0 == u32::from(*head));
            let (_, len) = elements.swap_remove(found.expect("each head is used once"));
            if let Outcome::Status(_, written) = outcome {
                assert_eq!(len, *written, "{outcome:?}");
            }
        }
    }

    /// RAM and disk are as the model has them, but that after an error in the middle the data may be either.
    fn compare(&mut self, partly: bool) {
        let mut disk = vec![0; self.model.disk.len()];
        self.file.read_exact_at(&mut disk, 0).expect("memory");
        // What is discarded may be as before, or zeros.
        for range in std::mem::take(&mut self.model.discarded) {
            let sectors = disk[range.clone()].iter().zip(&mut self.model.disk[range]);
            for (now, before) in sectors {
                assert!(*now == *before || *now == 0);
                *before = *now;
            }
        }
        assert!(disk == self.model.disk, "the disk is as the model has it");
        let ram = self.world.ram();
        if !partly {
            let same = |at: &usize| USED_RING.contains(at) || ram[*at] == self.model.ram[*at];
            let wrong = (0..ram.len()).find(|at| !same(at));
            assert_eq!(
                wrong, None,
                "the first byte of RAM that is not as the model has it"
            );
        }
    }
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let mut bench = bench(&input);
    for session in input.sessions.iter().take(4) {
        let size = 1 << (session.size % 9);
        bench.begin(session, size);
        let mut index = session.start;
        for batch in session.batches.iter().take(8) {
            if !bench.batch(batch, session, size, &mut index) {
                // What was done of it, and of those before it, is not looked at.
                bench
                    .file
                    .read_exact_at(&mut bench.model.disk, 0)
                    .expect("memory");
                bench.model.discarded.clear();
                break;
            }
        }
    }
    let serial = SERIAL.as_bytes().try_into().expect("twenty bytes");
    driver::serial_number_is(&bench.world, bench.base, serial);
}
