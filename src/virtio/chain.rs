//! One descriptor chain, read and checked once.
//!
//! ```text
//!   avail ring ─▶ head ─▶ descriptor table          (virtio 1.2, 2.7.5)
//!                         ┌──────────┬─────┬───────┬──────┐
//!                         │ addr  64 │len32│flags16│next16│
//!                         └──────────┴─────┴───────┴──────┘
//!                          flags: NEXT=1  WRITE=2  INDIRECT=4
//! ```
//!
//! The guest can change a descriptor while we look at it. So each is copied out of guest memory
//! exactly once, into a [`Chain`] that is reused from request to request, and everything after
//! works on the copy. Whether the ranges are RAM is checked where they are used, by
//! [`IoBuffers`](crate::memory::IoBuffers) and by vm-memory itself.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::memory::objects;

/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: u64 = 16;
/// The longest indirect table accepted. The queue size bounds a chain in the ring (virtio 1.2,
/// 2.7.5.3.1); Linux lets an indirect table be longer, so it gets a bound of its own.
pub const MAX_INDIRECT: u64 = 1024;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// A stretch of guest physical memory.
pub type Range = (GuestAddress, u32);

/// Why a chain cannot be followed. Each of them means that the ring is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// An index past the end of its table.
    #[error("descriptor index {0} is past the end of the table")]
    Index(u16),
    /// More descriptors than the table has: a loop.
    #[error("the chain is longer than its table")]
    Loop,
    /// A descriptor, or an indirect table, outside of RAM.
    #[error("descriptor table at {0:#x} is not in RAM")]
    Address(u64),
    /// An indirect table inside an indirect table, with NEXT set, empty, or of odd length.
    #[error("malformed indirect descriptor")]
    Indirect,
    /// A device-readable descriptor after a device-writable one (2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
}

/// A table of descriptors in guest memory.
#[derive(Debug, Clone, Copy)]
struct Table {
    base: u64,
    entries: u64,
}

/// The ranges of one chain: those that the device reads, then those that it writes.
#[derive(Debug, Default)]
pub struct Chain {
    readable: Vec<Range>,
    writable: Vec<Range>,
}

impl Chain {
    /// What the device may read, in order.
    pub fn readable(&self) -> &[Range] {
        &self.readable
    }

    /// What the device may write, in order.
    pub fn writable(&self) -> &[Range] {
        &self.writable
    }

    /// Reads the chain that begins at `head` of the table at `desc_table` with `queue_size`
    /// entries. What was in `self` is gone; its allocations are used again.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub fn read(
        &mut self,
        memory: &GuestMemoryMmap,
        desc_table: u64,
        queue_size: u16,
        head: u16,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let ring = Table {
            base: desc_table,
            entries: u64::from(queue_size),
        };
        if let Some(table) = self.follow(memory, ring, head, false)? {
            self.follow(memory, table, 0, true)?;
        }
        Ok(())
    }

    /// Walks one table; returns the indirect table that ends the walk, if one does.
    fn follow(
        &mut self,
        memory: &GuestMemoryMmap,
        table: Table,
        head: u16,
        indirect: bool,
    ) -> Result<Option<Table>, ChainError> {
        let mut index = head;
        for _ in 0..table.entries {
            if u64::from(index) >= table.entries {
                return Err(ChainError::Index(index));
            }
            let desc = load(memory, table.base, index)?;
            if desc.flags() & F_INDIRECT != 0 {
                let len = u64::from(desc.len());
                let entries = len / DESCRIPTOR_BYTES;
                if indirect
                    || desc.flags() & F_NEXT != 0
                    || len % DESCRIPTOR_BYTES != 0
                    || !(1..=MAX_INDIRECT).contains(&entries)
                {
                    return Err(ChainError::Indirect);
                }
                return Ok(Some(Table {
                    base: desc.addr().0,
                    entries,
                }));
            }
            let range = (desc.addr(), desc.len());
            if desc.flags() & F_WRITE != 0 {
                self.writable.push(range);
            } else if self.writable.is_empty() {
                self.readable.push(range);
            } else {
                return Err(ChainError::Order);
            }
            if desc.flags() & F_NEXT == 0 {
                return Ok(None);
            }
            index = desc.next();
        }
        Err(ChainError::Loop)
    }
}

fn load(memory: &GuestMemoryMmap, base: u64, index: u16) -> Result<Descriptor, ChainError> {
    base.checked_add(u64::from(index) * DESCRIPTOR_BYTES)
        .and_then(|addr| objects::read(memory, GuestAddress(addr)))
        .ok_or(ChainError::Address(base))
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::desc::RawDescriptor;
    use vm_memory::Bytes;

    const TABLE: u64 = 0x1000;

    fn memory(table: u64, descs: &[Descriptor]) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        put(&memory, table, descs);
        memory
    }

    fn put(memory: &GuestMemoryMmap, table: u64, descs: &[Descriptor]) {
        for (i, desc) in descs.iter().enumerate() {
            let addr = GuestAddress(table + i as u64 * DESCRIPTOR_BYTES);
            memory.write_obj(RawDescriptor::from(*desc), addr).unwrap();
        }
    }

    fn read(memory: &GuestMemoryMmap, size: u16, head: u16) -> Result<(usize, usize), ChainError> {
        let mut chain = Chain::default();
        chain.read(memory, TABLE, size, head)?;
        Ok((chain.readable().len(), chain.writable().len()))
    }

    #[test]
    fn ranges_come_in_order() {
        let memory = memory(
            TABLE,
            &[
                Descriptor::new(0x100, 16, F_NEXT, 2),
                Descriptor::new(0x300, 1, F_WRITE, 0),
                Descriptor::new(0x200, 512, F_NEXT, 1),
            ],
        );
        let mut chain = Chain::default();
        chain.read(&memory, TABLE, 4, 0).unwrap();
        assert_eq!(
            chain.readable(),
            [(GuestAddress(0x100), 16), (GuestAddress(0x200), 512)]
        );
        assert_eq!(chain.writable(), [(GuestAddress(0x300), 1)]);
    }

    #[test]
    fn an_indirect_table_is_followed_once() {
        let memory = memory(TABLE, &[Descriptor::new(0x2000, 32, F_INDIRECT, 0)]);
        put(
            &memory,
            0x2000,
            &[
                Descriptor::new(0x100, 16, F_NEXT, 1),
                Descriptor::new(0x200, 1, F_WRITE, 0),
            ],
        );
        assert_eq!(read(&memory, 4, 0), Ok((1, 1)));
        put(
            &memory,
            0x2000,
            &[Descriptor::new(0x2000, 32, F_INDIRECT, 0)],
        );
        assert_eq!(read(&memory, 4, 0), Err(ChainError::Indirect));
    }

    #[test]
    fn broken_chains_are_errors() {
        let looped = memory(TABLE, &[Descriptor::new(0, 1, F_NEXT, 0)]);
        assert_eq!(read(&looped, 4, 0), Err(ChainError::Loop));
        assert_eq!(read(&looped, 4, 4), Err(ChainError::Index(4)));
        let far = memory(TABLE, &[Descriptor::new(0, 1, F_NEXT, 999)]);
        assert_eq!(read(&far, 4, 0), Err(ChainError::Index(999)));
        let order = memory(
            TABLE,
            &[
                Descriptor::new(0, 1, F_NEXT | F_WRITE, 1),
                Descriptor::new(0, 1, 0, 0),
            ],
        );
        assert_eq!(read(&order, 4, 0), Err(ChainError::Order));
        for (len, flags) in [
            (0, F_INDIRECT),
            (15, F_INDIRECT),
            (16, F_INDIRECT | F_NEXT),
            (16 * 1025, F_INDIRECT),
        ] {
            let bad = memory(TABLE, &[Descriptor::new(0x2000, len, flags, 0)]);
            assert_eq!(read(&bad, 4, 0), Err(ChainError::Indirect), "{len} {flags}");
        }
        let mut chain = Chain::default();
        assert_eq!(
            chain.read(&looped, u64::MAX - 4, 4, 1),
            Err(ChainError::Address(u64::MAX - 4))
        );
    }

    proptest::proptest! {
        #[test]
        fn any_table_ends_in_a_bounded_walk(
            bytes in proptest::collection::vec(0u8.., 0x800),
            size in 1u16..64,
            head in 0u16..,
        ) {
            let memory = memory(0x1000, &[]);
            memory.write_slice(&bytes, GuestAddress(TABLE)).unwrap();
            let mut chain = Chain::default();
            let _ = chain.read(&memory, TABLE, size, head);
            proptest::prop_assert!(chain.readable().len() + chain.writable().len() <= 64 + 1024);
        }
    }
}
