//! Descriptor chains against a model of virtio 1.2, 2.7.5: what a device is told to accept, and no more.
//!
//! The model is written after the text and not after the code: it gathers a chain's descriptors first, refuses an
//! index that comes twice, and looks at what it has gathered afterwards. The code walks once with a counter. Both have
//! to accept the same chains, with the same ranges.

use std::collections::HashSet;

use arbitrary::{Arbitrary, Unstructured};
use bantam::virtio::Chain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Two regions of RAM with a hole between them.
const LOW: std::ops::Range<u64> = 0..0x3000;
const HIGH: std::ops::Range<u64> = 0x4000..0xa000;

/// Where tables are: aligned, at the end of a region, in the hole, beyond all.
const TABLES: [u64; 6] = [0x1000, 0x2ff0, 0x4000, 0x3800, 0x9ff8, u64::MAX - 7];

#[derive(Arbitrary, Debug)]
struct Input {
    table: u8,
    size: u16,
    head: u16,
    descriptors: Vec<Entry>,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    /// Which table, and where in it.
    table: u8,
    index: u8,
    address: Address,
    len: Length,
    /// The flags are its low three bits; all of it, now and then.
    flags: u16,
    next: Next,
}

#[derive(Arbitrary, Debug)]
enum Address {
    Any(u64),
    Table(u8),
}

#[derive(Arbitrary, Debug)]
enum Length {
    Any(u32),
    Entries(u16),
}

#[derive(Arbitrary, Debug)]
enum Next {
    Any(u16),
    Near(u8),
}

fn table(number: u8) -> u64 {
    TABLES[usize::from(number) % TABLES.len()]
}

/// The bytes of RAM, by their addresses.
struct Ram(Vec<u8>);

impl Ram {
    fn read(&self, at: u64, len: u64) -> Option<&[u8]> {
        let end = at.checked_add(len)?;
        let inside = |range: &std::ops::Range<u64>| range.start <= at && end <= range.end;
        (inside(&LOW) || inside(&HIGH)).then(|| &self.0[at as usize..end as usize])
    }
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
}

/// The descriptors of a chain in one table; `None` for what is no chain.
fn gather(ram: &Ram, base: u64, size: u64, head: u16) -> Option<Vec<Descriptor>> {
    let mut seen = HashSet::new();
    let mut chain = Vec::new();
    let mut index = head;
    loop {
        if u64::from(index) >= size || !seen.insert(index) {
            return None;
        }
        let bytes = ram.read(base.checked_add(16 * u64::from(index))?, 16)?;
        let descriptor = Descriptor {
            address: u64::from_le_bytes(bytes[0..8].try_into().ok()?),
            len: u32::from_le_bytes(bytes[8..12].try_into().ok()?),
            flags: u16::from_le_bytes(bytes[12..14].try_into().ok()?),
        };
        chain.push(descriptor);
        // An indirect descriptor ends a chain in the ring, and must not have NEXT (2.7.5.3.1).
        if descriptor.flags & NEXT == 0 || descriptor.flags & INDIRECT != 0 {
            return Some(chain);
        }
        index = u16::from_le_bytes(bytes[14..16].try_into().ok()?);
    }
}

type Ranges = Vec<(u64, u32)>;

fn model(ram: &Ram, base: u64, size: u16, head: u16) -> Option<(Ranges, Ranges)> {
    let mut chain = gather(ram, base, size.into(), head)?;
    if let Some(last) = chain.last().copied()
        && last.flags & INDIRECT != 0
    {
        let bytes = u64::from(last.len);
        // No table in a table, no NEXT, whole descriptors, at least one (2.7.5.3.1); 1024 is Bantam's own bound.
        if last.flags & NEXT != 0 || bytes == 0 || bytes % 16 != 0 || bytes > 1024 * 16 {
            return None;
        }
        chain.pop();
        let inner = gather(ram, last.address, bytes / 16, 0)?;
        if inner
            .iter()
            .any(|descriptor| descriptor.flags & INDIRECT != 0)
        {
            return None;
        }
        chain.extend(inner);
    }
    let range = |descriptor: &Descriptor| (descriptor.address, descriptor.len);
    let writable = |descriptor: &Descriptor| descriptor.flags & WRITE != 0;
    let first = chain.iter().position(writable).unwrap_or(chain.len());
    let (before, after) = chain.split_at(first);
    // Writable ones come behind all readable ones (2.7.4.2).
    let ordered = after.iter().all(writable);
    ordered.then(|| {
        (
            before.iter().map(range).collect(),
            after.iter().map(range).collect(),
        )
    })
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let mut ram = Ram(vec![0; HIGH.end as usize]);
    for entry in &input.descriptors {
        let address = match entry.address {
            Address::Any(address) => address,
            Address::Table(number) => table(number),
        };
        let len = match entry.len {
            Length::Any(len) => len,
            Length::Entries(count) => u32::from(count % 1100) * 16,
        };
        let next = match entry.next {
            Next::Any(next) => next,
            Next::Near(next) => next.into(),
        };
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        let rare = entry.flags >> 3 == 0x1fff;
        bytes.extend(if rare { entry.flags } else { entry.flags & 7 }.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = table(entry.table).wrapping_add(16 * u64::from(entry.index));
        for (at, byte) in (at..at.saturating_add(16)).zip(bytes) {
            if LOW.contains(&at) || HIGH.contains(&at) {
                ram.0[at as usize] = byte;
            }
        }
    }
    let regions = [&LOW, &HIGH].map(|range| {
        let len = (range.end - range.start) as usize;
        (GuestAddress(range.start), len)
    });
    let memory = GuestMemoryMmap::from_ranges(&regions).expect("guest RAM");
    for range in [LOW, HIGH] {
        let bytes = &ram.0[range.start as usize..range.end as usize];
        memory
            .write_slice(bytes, GuestAddress(range.start))
            .expect("RAM");
    }
    let (base, size) = (table(input.table), input.size % 300);
    let mut chain = Chain::default();
    let read = chain.read(&memory, base, size, input.head % 300);
    let ranges = |ranges: &[(GuestAddress, u32)]| -> Ranges {
        ranges.iter().map(|(at, len)| (at.0, *len)).collect()
    };
    let found = read
        .is_ok()
        .then(|| (ranges(chain.readable()), ranges(chain.writable())));
    assert_eq!(found, model(&ram, base, size, input.head % 300), "{read:?}");
}
