//! Which parts of a disk an overlay has: one bit for each grain, and who is about to set some.
//!
//! ```text
//!   leaves ─▶ 512 words of 64 bits ─▶ a bit: 0 the base has the grain, 1 the overlay has it
//!    made when the first bit in them is set
//! ```
//!
//! Bits are only ever set, never cleared, so whoever has seen one needs no lock. To set some, a range
//! of grains is claimed first: a grain that is partly written is completed from the base, and that
//! must not come on top of what somebody else has written into it meanwhile.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// The smallest grain has 4 KiB, a page of guests and of file systems. They rarely write less, so a grain
/// rarely has to be completed from the base.
const LEAST_SHIFT: u32 = 12;
/// At most so many grains, whose bits take 32 MiB. Disks of more than 1 TiB have larger ones.
const MOST_GRAINS: u64 = 1 << 28;
/// The largest grain has 1 MiB. It is not larger, as one write may have to complete two grains.
const MOST_SHIFT: u32 = 20;

const WORD_BITS: u64 = u64::BITS as u64;
const LEAF_WORDS: u64 = 512;

type Leaf = Box<[AtomicU64]>;

/// The longest disk that can have an overlay: 256 TiB.
pub const MAX_LEN: u64 = MOST_GRAINS << MOST_SHIFT;

/// See the [module](self).
pub struct Grains {
    shift: u32,
    leaves: Vec<OnceLock<Leaf>>,
    claimed: Mutex<Vec<Range<u64>>>,
    released: Condvar,
}

/// A range of grains that nobody else sets meanwhile.
pub struct Claim<'a> {
    grains: &'a Grains,
    range: Range<u64>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = self.grains.lock();
        if let Some(at) = claimed.iter().position(|range| *range == self.range) {
            claimed.swap_remove(at);
        }
        drop(claimed);
        self.grains.released.notify_all();
    }
}

impl Grains {
    /// None of a disk of `len` bytes; `None` when that is longer than [`MAX_LEN`].
    pub fn new(len: u64) -> Option<Self> {
        let shift =
            (LEAST_SHIFT..=MOST_SHIFT).find(|shift| len.div_ceil(1 << shift) <= MOST_GRAINS)?;
        let leaves = len.div_ceil(1 << shift).div_ceil(WORD_BITS * LEAF_WORDS);
        Some(Grains {
            shift,
            leaves: (0..leaves).map(|_| OnceLock::new()).collect(),
            claimed: Mutex::default(),
            released: Condvar::new(),
        })
    }

    /// Bytes of a grain.
    pub fn bytes(&self) -> u64 {
        1 << self.shift
    }

    /// The grain that a byte of the disk is in.
    pub fn of(&self, offset: u64) -> u64 {
        offset >> self.shift
    }

    /// The first byte of a grain, or of what would be the next one after the disk's end.
    pub fn start(&self, grain: u64) -> u64 {
        grain.saturating_mul(self.bytes())
    }

    /// All grains that the bytes from `offset` to before `end` are in.
    pub fn touched(&self, offset: u64, end: u64) -> Range<u64> {
        self.of(offset)..end.div_ceil(self.bytes())
    }

    /// Whether the overlay has all of `range`.
    pub fn has_all(&self, range: Range<u64>) -> bool {
        words(range).all(|(word, mask)| self.load(word) & mask == mask)
    }

    /// Whether the overlay has the first of `range`, and the grain up to which that is the same.
    /// `range` is not empty.
    pub fn run(&self, range: Range<u64>) -> (bool, u64) {
        let Range { start, end } = range;
        let mut there = None;
        // Each word is looked at once: its bits may be set meanwhile, and the first grain would differ
        // from itself.
        let change = words(range).find_map(|(word, mask)| {
            let bits = self.load(word);
            let first = *there.get_or_insert(bits >> (start % WORD_BITS) & 1 == 1);
            let same = if first { u64::MAX } else { 0 };
            let differs = (bits ^ same) & mask;
            let bit = u64::from(differs.trailing_zeros());
            (differs != 0).then(|| word.saturating_mul(WORD_BITS).saturating_add(bit))
        });
        (there.unwrap_or(false), change.unwrap_or(end))
    }

    /// The overlay has all of the claimed grains from now on.
    pub fn set(&self, claim: &Claim<'_>) {
        for (word, mask) in words(claim.range.clone()) {
            let Some(leaf) = self.leaves.get((word / LEAF_WORDS) as usize) else {
                continue;
            };
            let leaf = leaf.get_or_init(|| (0..LEAF_WORDS).map(|_| AtomicU64::new(0)).collect());
            if let Some(bits) = leaf.get((word % LEAF_WORDS) as usize) {
                // What is in the overlay's file is there before anybody is told to look for it.
                bits.fetch_or(mask, Ordering::Release);
            }
        }
    }

    /// Waits until nobody else has a claim on any of `range`. Whoever has one does not wait for
    /// another, so the wait is over when the host has done what that one is about.
    pub fn claim(&self, range: Range<u64>) -> Claim<'_> {
        let mut claimed = self.lock();
        while overlaps(&claimed, &range) {
            claimed = self
                .released
                .wait(claimed)
                .unwrap_or_else(PoisonError::into_inner);
        }
        claimed.push(range.clone());
        Claim {
            grains: self,
            range,
        }
    }

    /// The same without waiting.
    pub fn try_claim(&self, range: Range<u64>) -> Option<Claim<'_>> {
        let mut claimed = self.lock();
        if overlaps(&claimed, &range) {
            return None;
        }
        claimed.push(range.clone());
        Some(Claim {
            grains: self,
            range,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, word: u64) -> u64 {
        let leaf = self.leaves.get((word / LEAF_WORDS) as usize);
        let bits = leaf.and_then(OnceLock::get);
        let bits = bits.and_then(|leaf| leaf.get((word % LEAF_WORDS) as usize));
        bits.map_or(0, |bits| bits.load(Ordering::Acquire))
    }
}

fn overlaps(claimed: &[Range<u64>], range: &Range<u64>) -> bool {
    claimed
        .iter()
        .any(|other| other.start < range.end && range.start < other.end)
}

/// The words that the bits of `range` are in, each with a mask of those bits.
fn words(range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    (range.start / WORD_BITS..range.end.div_ceil(WORD_BITS)).map(move |word| {
        let first = word.saturating_mul(WORD_BITS);
        let from = range.start.saturating_sub(first);
        let to = range.end.saturating_sub(first).min(WORD_BITS);
        let below = |bit: u64| match bit {
            WORD_BITS.. => u64::MAX,
            _ => (1 << bit) - 1,
        };
        (word, below(to) & !below(from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn bits_take_32_mib_at_the_most() {
        for (len, grain) in [
            (512, 4096),
            (1 << 40, 4096),
            ((1 << 40) + 512, 8192),
            (16 << 40, 64 << 10),
            (MAX_LEN, 1 << 20),
        ] {
            let grains = Grains::new(len).unwrap();
            assert_eq!(grains.bytes(), grain, "{len}");
            let leaf = LEAF_WORDS * 8;
            assert!(grains.leaves.len() as u64 * leaf <= 32 << 20, "{len}");
            assert!(grains.leaves.iter().all(|leaf| leaf.get().is_none()));
        }
        assert!(Grains::new(MAX_LEN + 512).is_none());
    }

    #[test]
    fn a_claim_is_waited_for_and_others_are_not() {
        let grains = Arc::new(Grains::new(1 << 30).unwrap());
        let claim = grains.claim(10..20);
        assert!(grains.try_claim(19..21).is_none());
        assert!(grains.try_claim(0..11).is_none());
        assert!(grains.try_claim(0..10).is_some());
        assert!(grains.try_claim(20..21).is_some());
        let waiter = {
            let grains = grains.clone();
            std::thread::spawn(move || {
                let claim = grains.claim(15..16);
                // Set by the one that was waited for.
                let seen = grains.has_all(10..20);
                drop(claim);
                seen
            })
        };
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished());
        grains.set(&claim);
        drop(claim);
        assert!(waiter.join().unwrap());
        assert!(grains.lock().is_empty());
    }

    #[test]
    fn a_run_has_a_grain_at_least_while_others_set_bits() {
        for _ in 0..200 {
            let grains = Grains::new(1 << 24).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for grain in (0..4096).step_by(3) {
                        grains.set(&grains.claim(grain..grain + 1));
                    }
                });
                for grain in (0..4096).step_by(3) {
                    // The one that is about to be set, as often as it takes.
                    while !grains.has_all(grain..grain + 1) {
                        let (_, same) = grains.run(grain..4096);
                        assert!(same > grain, "a run from {grain} to {same}");
                    }
                }
            });
        }
    }

    proptest::proptest! {
        #[test]
        fn runs_and_sets_are_those_of_a_list_of_bools(
            sets in proptest::collection::vec((0u64..40_000, 1u64..300), 0..20),
            asks in proptest::collection::vec((0u64..40_000, 1u64..700), 1..40),
        ) {
            let count = 41_000;
            let grains = Grains::new(count << LEAST_SHIFT).unwrap();
            let mut model = vec![false; count as usize];
            for (start, len) in sets {
                let claim = grains.claim(start..start + len);
                grains.set(&claim);
                model[start as usize..(start + len) as usize].fill(true);
            }
            for (start, len) in asks {
                let part = &model[start as usize..(start + len) as usize];
                assert_eq!(grains.has_all(start..start + len), part.iter().all(|bit| *bit));
                let same = part.iter().take_while(|bit| **bit == part[0]).count() as u64;
                assert_eq!(grains.run(start..start + len), (part[0], start + same));
            }
        }
    }
}
