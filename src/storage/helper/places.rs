//! Where the clusters of a disk are in its files, as far as the helper has told. What it tells is checked, and only so
//! much of it is kept.
//!
//! A place that a helper makes up can be nowhere but in the image's own file, after its header and before its end, or in a
//! backing file, of which the VMM only reads: all that the VMM does there by such a place, the helper could do by
//! itself. So there is nothing to be won by a lie, but every sum has to be safe.

use std::collections::HashMap;
use std::ops::Range;

use crate::storage::qcow2::{Extent, Spot};

/// Clusters in a leaf, whose entries take a page.
const LEAF: u64 = 512;
/// Leaves that are kept: 4 MiB of memory, for 32 GiB of a disk whose clusters have 64 KiB.
pub const MAX_LEAVES: usize = 1024;
/// What they take.
pub const MAX_BYTES: u64 = MAX_LEAVES as u64 * LEAF * 8;

/// An entry is a place in a file, a multiple of 512, with these bits; 0 is unknown.
const KNOWN: u64 = 1;
const WRITABLE: u64 = 2;
const ZERO: u64 = 4;
/// The number of the file, 0 to 15.
const FILE_SHIFT: u32 = 3;
const FILES: u64 = 0xf;
const PLACE: u64 = !511;

/// See the [module](self).
#[derive(Debug)]
pub struct Places {
    cluster: u64,
    len: u64,
    leaves: HashMap<u64, Box<[u64]>>,
}

impl Places {
    /// None of a disk of `len` bytes, of which `cluster` are together. `None` where that is no length of a cluster.
    pub fn new(len: u64, cluster: u64) -> Option<Self> {
        let possible = cluster.is_power_of_two() && (512..=2 << 20).contains(&cluster);
        possible.then(|| Places {
            cluster,
            len,
            leaves: HashMap::new(),
        })
    }

    /// The clusters that the `len` bytes from `offset` on are in.
    pub fn touched(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset.saturating_add(len);
        self.of(offset)..end.div_ceil(self.cluster).max(1)
    }

    fn of(&self, offset: u64) -> u64 {
        offset.checked_div(self.cluster).unwrap_or(0)
    }

    fn entry(&self, cluster: u64) -> u64 {
        let leaf = self.leaves.get(&(cluster / LEAF));
        let entry = leaf.and_then(|leaf| leaf.get((cluster % LEAF) as usize));
        entry.copied().unwrap_or(0)
    }

    /// Where the `len` bytes from `offset` on are, if that is known and they are together there; with `write`, only if
    /// they may be changed there.
    pub fn find(&self, offset: u64, len: u64, write: bool) -> Option<Spot> {
        let wanted = if write { KNOWN | WRITABLE } else { KNOWN };
        let mut clusters = self.touched(offset, len);
        let first = self.entry(clusters.next()?);
        if first & wanted != wanted {
            return None;
        }
        let mut next = first;
        for cluster in clusters {
            // All of them are zeros, or each is behind the one before it.
            if next & ZERO == 0 {
                next = next.checked_add(self.cluster)?;
            }
            let same = KNOWN | ZERO | PLACE | FILES << FILE_SHIFT;
            let entry = self.entry(cluster);
            if entry & wanted != wanted || (entry ^ next) & same != 0 {
                return None;
            }
        }
        if first & ZERO != 0 {
            return Some(Spot::Zero);
        }
        Some(Spot::At {
            file: (first >> FILE_SHIFT & FILES) as usize,
            offset: (first & PLACE).checked_add(offset % self.cluster)?,
            writable: first & WRITABLE != 0,
        })
    }

    /// The entry for the cluster that begins `ahead` bytes after `spot`, if there may be one in files of these
    /// lengths.
    fn entry_of(&self, spot: Spot, ahead: u64, lens: &[u64]) -> Option<u64> {
        let Spot::At {
            file,
            offset,
            writable,
        } = spot
        else {
            return Some(KNOWN | ZERO);
        };
        let place = offset.checked_add(ahead)?;
        let end = place.checked_add(self.cluster)?;
        let inside = end <= *lens.get(file)?;
        let good = match file {
            // Behind the header, and where a cluster can be.
            0 => place.is_multiple_of(self.cluster) && place >= self.cluster,
            // Whatever its clusters are.
            _ => place & !PLACE == 0 && !writable && file as u64 <= FILES,
        };
        let bits = if writable { KNOWN | WRITABLE } else { KNOWN };
        (good && inside).then_some(place | bits | (file as u64) << FILE_SHIFT)
    }

    /// Takes what was told of the clusters for which `may` is true, in files of these lengths.
    pub fn learn(&mut self, extent: Extent, lens: &[u64], may: impl Fn(u64) -> bool) {
        let Some(end) = extent.disk.checked_add(extent.len) else {
            return;
        };
        // A last cluster that the disk's end cuts is whole in the file.
        let end = match end >= self.len {
            true => self.len.div_ceil(self.cluster),
            false => self.of(end),
        };
        let first = extent.disk.div_ceil(self.cluster);
        // An answer is about few of them; more is nonsense.
        for cluster in (first..end).take(LEAF as usize) {
            let start = cluster.saturating_mul(self.cluster);
            let ahead = start.saturating_sub(extent.disk);
            if let Some(entry) = self.entry_of(extent.spot, ahead, lens)
                && may(cluster)
            {
                self.set(cluster, entry);
            }
        }
    }

    fn set(&mut self, cluster: u64, entry: u64) {
        let number = cluster / LEAF;
        if self.leaves.len() >= MAX_LEAVES && !self.leaves.contains_key(&number) {
            // Any of them: the order of this map is as good as random.
            if let Some(other) = self.leaves.keys().next().copied() {
                self.leaves.remove(&other);
            }
        }
        let leaf = self
            .leaves
            .entry(number)
            .or_insert_with(|| vec![0; LEAF as usize].into());
        if let Some(place) = leaf.get_mut((cluster % LEAF) as usize) {
            *place = entry;
        }
    }

    /// Forgets clusters.
    pub fn forget(&mut self, clusters: Range<u64>) {
        if clusters.end.saturating_sub(clusters.start) > LEAF {
            // More than a leaf: it costs less to go through the leaves.
            self.leaves.retain(|number, _| {
                let start = number.saturating_mul(LEAF);
                start >= clusters.end || start.saturating_add(LEAF) <= clusters.start
            });
            return;
        }
        for cluster in clusters {
            let leaf = self.leaves.get_mut(&(cluster / LEAF));
            if let Some(entry) = leaf.and_then(|leaf| leaf.get_mut((cluster % LEAF) as usize)) {
                *entry = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: u64 = 4096;
    const LENS: [u64; 2] = [100 * C, 50 * C];

    fn told(disk: u64, offset: u64, len: u64, writable: bool) -> Extent {
        in_file(0, disk, offset, len, writable)
    }

    fn in_file(file: usize, disk: u64, offset: u64, len: u64, writable: bool) -> Extent {
        Extent {
            disk,
            len,
            spot: Spot::At {
                file,
                offset,
                writable,
            },
        }
    }

    fn at(spot: Option<Spot>) -> Option<u64> {
        match spot? {
            Spot::At { offset, .. } => Some(offset),
            Spot::Zero => panic!("zeros"),
        }
    }

    #[test]
    fn bytes_are_found_where_they_lie_together_and_may_be_written() {
        let mut places = Places::new(10 * C + 512, C).unwrap();
        places.learn(told(0, 5 * C, 2 * C, true), &LENS, |_| true);
        places.learn(told(2 * C, 7 * C, C, false), &LENS, |_| true);
        places.learn(told(3 * C, 20 * C, C, true), &LENS, |_| true);
        assert_eq!(at(places.find(100, 2 * C - 100, true)), Some(5 * C + 100));
        assert_eq!(
            places.find(100, 2 * C, true),
            None,
            "one is not to be written"
        );
        assert_eq!(at(places.find(100, 3 * C - 100, false)), Some(5 * C + 100));
        assert_eq!(places.find(2 * C, 2 * C, false), None, "not together");
        assert_eq!(places.find(4 * C, 1, false), None, "never told");
        places.learn(told(10 * C, 30 * C, 512, true), &LENS, |_| true);
        assert_eq!(
            at(places.find(10 * C, 512, true)),
            Some(30 * C),
            "cut by the end"
        );
        places.forget(1..2);
        assert_eq!(places.find(C, 512, false), None);
        assert_eq!(at(places.find(0, 512, true)), Some(5 * C));
        places.forget(0..10_000);
        assert_eq!(places.find(0, 512, true), None);
    }

    #[test]
    fn zeros_and_backing_files_are_only_read() {
        let mut places = Places::new(10 * C, C).unwrap();
        let zeros = Extent {
            disk: 0,
            len: 2 * C,
            spot: Spot::Zero,
        };
        places.learn(zeros, &LENS, |_| true);
        assert_eq!(places.find(5, 2 * C - 5, false), Some(Spot::Zero));
        assert_eq!(places.find(0, 512, true), None);
        // What a backing file has may lie anywhere in it, at its beginning too.
        places.learn(in_file(1, 2 * C, 0, C, false), &LENS, |_| true);
        places.learn(in_file(1, 3 * C, C, C, false), &LENS, |_| true);
        let found = places.find(2 * C, 2 * C, false);
        assert!(matches!(
            found,
            Some(Spot::At {
                file: 1,
                offset: 0,
                writable: false
            })
        ));
        assert_eq!(
            places.find(C, 2 * C, false),
            None,
            "zeros, and what are none"
        );
        places.learn(in_file(1, 4 * C, 2 * C, C, true), &LENS, |_| true);
        assert_eq!(places.find(4 * C, 512, false), None, "nobody writes to it");
        places.learn(in_file(2, 4 * C, 2 * C, C, false), &LENS, |_| true);
        assert_eq!(
            places.find(4 * C, 512, false),
            None,
            "there is no such file"
        );
        places.learn(in_file(0, 4 * C, 2 * C, C, false), &LENS, |_| true);
        assert_eq!(places.find(3 * C, 2 * C, false), None, "in two files");
    }

    #[test]
    fn memory_is_bounded() {
        let mut places = Places::new(u64::MAX - 511, 512).unwrap();
        for leaf in 0..3 * MAX_LEAVES as u64 {
            let disk = leaf * LEAF * 512;
            places.learn(told(disk, 512, 512, true), &LENS, |_| true);
        }
        assert_eq!(places.leaves.len(), MAX_LEAVES);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_told_all_places_are_in_the_files(
            cluster in proptest::sample::select(vec![512u64, 4096, 65536, 2 << 20]),
            len in proptest::prelude::any::<u64>(),
            lens in proptest::prelude::any::<[u64; 2]>(),
            extents in proptest::collection::vec(
                (proptest::prelude::any::<[u64; 3]>(), 0u32..64, proptest::prelude::any::<bool>(), 0usize..4), 0..40),
            asks in proptest::collection::vec((proptest::prelude::any::<u64>(), 0u32..64, 1u64..1 << 25), 0..40),
        ) {
            let mut places = Places::new(len, cluster).unwrap();
            for ([disk, offset, count], shift, writable, file) in extents {
                let shrunk = |n: u64| (n >> shift) & !511;
                let extent = in_file(file, shrunk(disk), shrunk(offset), shrunk(count), writable);
                places.learn(extent, &lens, |_| true);
            }
            for (offset, shift, count) in asks {
                if let Some(Spot::At { file, offset, writable }) = places.find(offset >> shift, count, false) {
                    assert!(offset >= cluster || file > 0);
                    assert!(!writable || file == 0);
                    assert!(offset.checked_add(count).unwrap() <= lens[file]);
                }
                places.forget(places.touched(offset >> shift, count));
                assert_eq!(places.find(offset >> shift, count, false), None);
            }
        }
    }
}
