//! The queues of a balloon: which pages a chain names, and what giving them back may cost.
//!
//! - An inflateq chain has the numbers of pages of 4 KiB in buffers that the device reads (virtio 1.2, 5.5.6.1).
//! - A deflateq chain has them likewise: the guest uses these pages again. It gets new ones as it touches
//!   them, so there is nothing to do.
//! - A reporting_vq chain has the free memory itself, as buffers that the device may write (5.5.6.7).
//!
//! Each piece is a call of madvise(2), which takes a lock of this process, takes the pages away from the
//! processors that use them, and frees them. A guest that touches and reports the same memory again and again
//! would have the event loop do that all the time. So there is a bound for a chain, for a turn, and for a second.
//! What a chain names beyond its bound stays where it is: a device need not give anything back.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Balloon;
use crate::memory::{Backing, Reclaim};
use crate::virtio::chain::Chain;
use crate::virtio::complaints::Complaints;
use crate::virtio::device::{Handler, Host, Room, Taken};
use crate::virtio::limit::Limiter;
use crate::virtio::ring::Broken;

/// A page number counts pages of 4 KiB, whatever the guest's own pages are (virtio 1.2, 5.5.6).
const PAGE_BITS: u32 = 12;
/// The most page numbers of one chain; Linux has at most as many.
const MAX_NUMBERS: usize = 256;
/// The most pieces of one chain. Linux reports 32 at a time.
const MAX_PIECES: usize = 256;
/// The most bytes of one chain: what Linux reports, 32 pieces of 4 MiB. The host takes half a millisecond to
/// free them as huge pages, and 11 ms as small ones (measured, a host that is virtual itself).
const MAX_BYTES: u64 = 128 << 20;
/// A piece counts for 1 in a turn, and for 1 more for each of so many bytes: 128 MiB are a turn.
const BYTES_PER_COST: u64 = 512 << 10;
/// The most pieces in a second.
const PIECES_PER_SECOND: u64 = 20_000;
/// The most bytes in a second: a few percent of a processor's time, or a fifth of it with small pages.
const BYTES_PER_SECOND: u64 = 2 << 30;

/// Guest RAM, out of which the queues give pages back.
pub struct Pages {
    reclaim: Reclaim,
    limiter: Option<Limiter>,
    complaints: Arc<Complaints>,
}

impl Pages {
    /// The RAM of `host`, which is mapped with this `backing`.
    pub fn new(backing: Backing, host: &Host) -> Self {
        Pages {
            reclaim: Reclaim::new(host.memory.clone(), backing),
            limiter: Limiter::new(Some(PIECES_PER_SECOND), Some(BYTES_PER_SECOND)),
            complaints: host.complaints.clone(),
        }
    }

    fn room(&self) -> Room {
        Room::of(self.limiter.as_ref())
    }

    /// Gives back the pieces of one chain, each an address and a number of bytes, up to its bounds.
    fn give_back(&self, pieces: impl Iterator<Item = (GuestAddress, u64)>) -> Taken {
        let (mut left, mut cost) = (MAX_BYTES, 1u64);
        for (address, len) in pieces.take(MAX_PIECES) {
            let given = match self.reclaim.give_back(address, len.min(left)) {
                Ok(given) => given,
                Err(error) => {
                    self.complaints
                        .add(&format!("the host takes no memory back: {error}"));
                    break;
                }
            };
            left = left.saturating_sub(given);
            cost = cost
                .saturating_add(given / BYTES_PER_COST)
                .saturating_add(1);
            if let Some(limiter) = &self.limiter {
                limiter.take(given);
            }
        }
        Taken {
            cost: usize::try_from(cost).unwrap_or(usize::MAX),
            written: Some(0),
        }
    }
}

/// The inflateq.
pub struct Inflate {
    /// What pages are taken from.
    pub pages: Arc<Pages>,
}

impl Handler for Inflate {
    fn room(&mut self) -> Room {
        self.pages.room()
    }

    fn take(
        &mut self,
        _head: u16,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Taken, Broken> {
        let mut bytes = [0; MAX_NUMBERS * size_of::<u32>()];
        let mut filled = 0usize;
        for (address, len) in chain.readable() {
            let rest = bytes.get_mut(filled..).unwrap_or_default();
            let len = rest.len().min(*len as usize);
            let part = rest.get_mut(..len).unwrap_or_default();
            if memory.read_slice(part, *address).is_err() {
                // Numbers that are not in RAM: what came before them counts.
                break;
            }
            filled = filled.saturating_add(len);
        }
        let (words, _) = bytes.get(..filled).unwrap_or_default().as_chunks();
        let mut numbers: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        // Linux takes pages from its free lists one by one, and neighbours come in any order.
        numbers.sort_unstable();
        numbers.dedup();
        let runs = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b));
        let pieces = runs.map(|run| {
            let first = u64::from(run.first().copied().unwrap_or_default());
            let pages = run.len() as u64;
            (GuestAddress(first << PAGE_BITS), pages << PAGE_BITS)
        });
        Ok(self.pages.give_back(pieces))
    }
}

/// The deflateq.
pub struct Deflate;

impl Handler for Deflate {
    fn take(
        &mut self,
        _head: u16,
        _chain: &Chain,
        _memory: &GuestMemoryMmap,
    ) -> Result<Taken, Broken> {
        Ok(Taken::done(0))
    }
}

/// The reporting_vq.
pub struct Report {
    /// What pages are taken from.
    pub pages: Arc<Pages>,
    /// Knows what free pages are filled with.
    pub balloon: Arc<Balloon>,
}

impl Handler for Report {
    fn room(&mut self) -> Room {
        self.pages.room()
    }

    fn take(
        &mut self,
        _head: u16,
        chain: &Chain,
        _memory: &GuestMemoryMmap,
    ) -> Result<Taken, Broken> {
        if !self.balloon.may_be_zeroed() {
            // The driver counts on finding what it has filled them with (5.5.6.7), and the host would
            // give it zeros.
            return Ok(Taken::done(0));
        }
        let pieces = chain.writable().iter();
        let pieces = pieces.map(|(address, len)| (*address, u64::from(*len)));
        Ok(self.pages.give_back(pieces))
    }
}
