//! What each cluster of a qcow2 file is used for, and how often it is named: two bytes for each.
//!
//! ```text
//!   15 ... 4   how often it is named; 4095: so often that `more` knows
//!          3   the image's own refcount of it is 1
//!      2 1 0   its use
//! ```
//!
//! The host gives memory only when it is touched, and what is kept of clusters that nothing names is
//! never touched. So the memory in use is in proportion to the file's content.

use std::collections::HashMap;

/// What a cluster is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Use {
    /// Not named by anything.
    Free = 0,
    /// Header, L1 tables, refcounts, table of snapshots, bitmaps: named once, changed in place.
    Fixed = 1,
    /// An L2 table that only snapshots name.
    SnapshotL2 = 2,
    /// An L2 table of the disk as it is now; snapshots may name it as well.
    ActiveL2 = 3,
    /// Data that only snapshots have.
    SnapshotData = 4,
    /// Data of the disk as it is now, at one place of it; snapshots may have it as well.
    ActiveData = 5,
    /// Compressed data, of any number of clusters of the disk.
    Compressed = 6,
}

const USE: u16 = 0x07;
const EXCLUSIVE: u16 = 0x08;
const COUNT_SHIFT: u32 = 4;
/// The count of a cluster that is named this often or more. The true one is in `more`.
const MANY: u16 = 0xfff;
/// The most clusters whose counts do not fit. Only an image that was made for the purpose has more.
const MAX_MORE: usize = 1 << 20;

/// See the [module](self).
pub struct Counts {
    words: Vec<u16>,
    more: HashMap<u64, u64>,
}

impl Counts {
    /// For `clusters` clusters, of which none is used.
    pub fn new(clusters: usize) -> Self {
        Counts {
            words: vec![0; clusters],
            more: HashMap::new(),
        }
    }

    /// How many clusters there are.
    pub fn len(&self) -> u64 {
        self.words.len() as u64
    }

    /// The first cluster from `from` on of which anything is known.
    pub fn next(&self, from: u64) -> Option<u64> {
        // Long stretches of which nothing is known are passed quickly.
        const STRETCH: usize = 4096;
        let start = usize::try_from(from).ok()?;
        let rest = self.words.get(start..)?;
        let zeros = rest
            .chunks(STRETCH)
            .take_while(|part| part.iter().all(|word| *word == 0))
            .count()
            .saturating_mul(STRETCH);
        let after = rest.get(zeros..)?.iter().position(|word| *word != 0)?;
        Some(from.saturating_add((zeros + after) as u64))
    }

    fn word(&self, cluster: u64) -> u16 {
        let word = usize::try_from(cluster)
            .ok()
            .and_then(|at| self.words.get(at));
        word.copied().unwrap_or(0)
    }

    /// What the cluster is used for.
    pub fn usage(&self, cluster: u64) -> Use {
        match self.word(cluster) & USE {
            1 => Use::Fixed,
            2 => Use::SnapshotL2,
            3 => Use::ActiveL2,
            4 => Use::SnapshotData,
            5 => Use::ActiveData,
            6 => Use::Compressed,
            _ => Use::Free,
        }
    }

    /// How often it is named.
    pub fn count(&self, cluster: u64) -> u64 {
        match self.word(cluster) >> COUNT_SHIFT {
            MANY => self.more.get(&cluster).copied().unwrap_or(0),
            few => u64::from(few),
        }
    }

    /// Whether the image's own refcount of it is 1.
    pub fn is_exclusive(&self, cluster: u64) -> bool {
        self.word(cluster) & EXCLUSIVE != 0
    }

    /// Notes that the image's own refcount of it is 1.
    pub fn set_exclusive(&mut self, cluster: u64) {
        let at = usize::try_from(cluster).ok();
        if let Some(word) = at.and_then(|at| self.words.get_mut(at)) {
            *word |= EXCLUSIVE;
        }
    }

    /// Names a cluster `times` times for `usage`.
    ///
    /// # Errors
    /// Says why not, in words that go on from "the table": it is used for something else already.
    pub fn name(&mut self, cluster: u64, usage: Use, times: u64) -> Result<(), &'static str> {
        let now = match (self.usage(cluster), usage) {
            (Use::Free, new) => new,
            (Use::ActiveL2, Use::SnapshotL2) => Use::ActiveL2,
            (Use::SnapshotL2, Use::SnapshotL2) => Use::SnapshotL2,
            (Use::SnapshotData, Use::SnapshotData) => Use::SnapshotData,
            (Use::SnapshotData, Use::ActiveData) | (Use::ActiveData, Use::SnapshotData) => {
                Use::ActiveData
            }
            (Use::Compressed, Use::Compressed) => Use::Compressed,
            _ => return Err("is where something else is"),
        };
        let count = self.count(cluster).saturating_add(times);
        let few = match u16::try_from(count) {
            Ok(few) if few < MANY => few,
            _ => {
                if self.more.len() >= MAX_MORE && !self.more.contains_key(&cluster) {
                    return Err("is one of too many that are used very often");
                }
                self.more.insert(cluster, count);
                MANY
            }
        };
        let at = usize::try_from(cluster).ok();
        let Some(word) = at.and_then(|at| self.words.get_mut(at)) else {
            return Err("is outside of the file");
        };
        *word = (*word & EXCLUSIVE) | few << COUNT_SHIFT | now as u16;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_found_in_order() {
        let mut counts = Counts::new(20_000);
        let known = [0, 1, 4095, 4096, 12_288, 19_999];
        for cluster in known {
            counts.name(cluster, Use::Fixed, 1).unwrap();
        }
        let (mut found, mut from) = (Vec::new(), 0);
        while let Some(cluster) = counts.next(from) {
            found.push(cluster);
            from = cluster + 1;
        }
        assert_eq!(found, known);
        assert_eq!(counts.next(u64::MAX), None);
    }

    #[test]
    fn uses_that_do_not_go_together_are_refused_and_counts_have_no_end() {
        use Use::{ActiveData, ActiveL2, Compressed, Fixed, SnapshotData, SnapshotL2};
        let together = [
            (ActiveL2, SnapshotL2, ActiveL2),
            (SnapshotL2, SnapshotL2, SnapshotL2),
            (ActiveData, SnapshotData, ActiveData),
            (SnapshotData, ActiveData, ActiveData),
            (SnapshotData, SnapshotData, SnapshotData),
            (Compressed, Compressed, Compressed),
        ];
        let all = [
            Fixed,
            SnapshotL2,
            ActiveL2,
            SnapshotData,
            ActiveData,
            Compressed,
        ];
        for first in all {
            for second in all {
                let mut counts = Counts::new(1);
                counts.name(0, first, 1).unwrap();
                let allowed = together.iter().find(|t| (t.0, t.1) == (first, second));
                assert_eq!(
                    counts.name(0, second, 2).is_ok(),
                    allowed.is_some(),
                    "{first:?} {second:?}"
                );
                let wanted = allowed.map_or((first, 1), |t| (t.2, 3));
                assert_eq!((counts.usage(0), counts.count(0)), wanted);
            }
        }
        let mut counts = Counts::new(2);
        counts.set_exclusive(1);
        for n in 1..10_000 {
            counts.name(1, Compressed, 1).unwrap();
            assert_eq!(counts.count(1), n);
        }
        counts.name(1, Compressed, u64::MAX).unwrap();
        assert_eq!(counts.count(1), u64::MAX);
        assert!(counts.is_exclusive(1) && !counts.is_exclusive(0));
        assert!(counts.name(2, Compressed, 1).is_err(), "no such cluster");
    }
}
