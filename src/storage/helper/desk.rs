//! Who may touch which part of an image at the same time, and which slots are free: the VMM's own book, of which the
//! helper sees nothing.
//!
//! ```text
//!   a transfer by the VMM itself ───┐  not at the same time on one cluster
//!   a write, zeros, a discard ──────┘  by the helper: it may give the cluster another place
//!   a read by the helper               at any time
//! ```
//!
//! A discard frees clusters, and the library gives a free cluster to whoever needs one next, also to a table. So before
//! the helper begins with anything that can move or free a cluster, the VMM's own transfers to it have ended, and no new
//! one begins. A change that has to wait keeps new transfers away meanwhile; these go to the helper, so nothing waits
//! for ever.
//!
//! What an answer says of places was true when the helper wrote it. It is kept only for clusters that nothing else has
//! changed since the question was asked.

use std::collections::VecDeque;
use std::ops::Range;

use super::places::Places;
use super::shared::{QUEUES, SLOTS};
use crate::storage::qcow2::{Extent, Spot};

/// Changes that have ended and are remembered. What was asked before the last of them learns nothing.
const REMEMBERED: usize = 64;

/// A change of the helper's that waits, or is under way.
#[derive(Debug)]
struct Change {
    id: u32,
    clusters: Range<u64>,
    /// It may free clusters; else it only gives some.
    frees: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Desk {
    places: Places,
    free: Vec<usize>,
    direct: Vec<(u32, Range<u64>)>,
    changing: Vec<Change>,
    /// Changes that have ended, and when.
    changed: VecDeque<(u64, Range<u64>, bool)>,
    /// Of all that was dropped from `changed`, the last one's time.
    forgotten: u64,
    now: u64,
    last_id: u32,
    /// Queues with something that could not begin.
    waiting: u64,
    /// Counts the moments at which something that waits may be able to begin.
    pub turn: u64,
    /// The helper's tables may have something that is not in the file.
    dirty: bool,
}

/// When a flush or a read has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment(u64);

impl Moment {
    /// The one with this number.
    pub fn at(number: u64) -> Self {
        Moment(number)
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl Desk {
    /// A new one for the clusters of `places`, with so many slots.
    pub fn new(places: Places, slots: usize) -> Self {
        Desk {
            places,
            free: (0..slots.min(SLOTS)).rev().collect(),
            direct: Vec::new(),
            changing: Vec::new(),
            changed: VecDeque::new(),
            forgotten: 0,
            now: 0,
            last_id: 0,
            waiting: 0,
            turn: 0,
            dirty: true,
        }
    }

    fn id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    /// Begins a transfer of the VMM's own: where it goes, and a number to end it by.
    pub fn direct(&mut self, write: bool, offset: u64, len: u64) -> Option<(Spot, u32)> {
        let clusters = self.places.touched(offset, len);
        if self
            .changing
            .iter()
            .any(|change| overlap(&change.clusters, &clusters))
        {
            return None;
        }
        let spot = self.places.find(offset, len, write)?;
        let id = self.id();
        self.direct.push((id, clusters));
        Some((spot, id))
    }

    /// Ends one; the queues that may be able to go on with something.
    pub fn end_direct(&mut self, id: u32) -> u64 {
        if let Some(at) = self.direct.iter().position(|(one, _)| *one == id) {
            self.direct.swap_remove(at);
        }
        match self.changing.is_empty() {
            true => 0,
            false => self.next_turn(),
        }
    }

    /// Announces a change: no transfer of the VMM's begins there any more.
    pub fn announce(&mut self, frees: bool, offset: u64, len: u64) -> u32 {
        let clusters = self.places.touched(offset, len);
        let id = self.id();
        self.dirty = true;
        self.now = self.now.saturating_add(1);
        self.changing.push(Change {
            id,
            clusters,
            frees,
        });
        id
    }

    /// A free slot, if all that has to be over before `change` is.
    pub fn begin(&mut self, change: Option<u32>) -> Option<usize> {
        if let Some(change) = self
            .changing
            .iter()
            .find(|one| change.is_some_and(|id| one.id == id))
            && self
                .direct
                .iter()
                .any(|(_, clusters)| overlap(clusters, &change.clusters))
        {
            return None;
        }
        self.free.pop()
    }

    /// Gives a slot back; the queues that may be able to go on.
    pub fn end(&mut self, slot: usize) -> u64 {
        if !self.free.contains(&slot) && slot < SLOTS {
            self.free.push(slot);
        }
        self.next_turn()
    }

    /// `queue` has something that could not begin.
    pub fn wait(&mut self, queue: u32) {
        if (queue as usize) < QUEUES {
            self.waiting |= 1 << queue;
        }
    }

    fn next_turn(&mut self) -> u64 {
        self.turn = self.turn.wrapping_add(1);
        std::mem::take(&mut self.waiting)
    }

    /// Now.
    pub fn moment(&self) -> Moment {
        Moment(self.now)
    }

    /// What the answer to a read says that began at `since`.
    pub fn learn(&mut self, since: Moment, extents: impl Iterator<Item = Extent>, lens: &[u64]) {
        if since.0 < self.forgotten {
            return;
        }
        let Desk {
            places,
            changing,
            changed,
            ..
        } = self;
        let may = |cluster: u64| {
            let changed = changed
                .iter()
                .any(|(when, clusters, _)| *when > since.0 && clusters.contains(&cluster));
            !changed && !changing.iter().any(|one| one.clusters.contains(&cluster))
        };
        for extent in extents {
            places.learn(extent, lens, may);
        }
    }

    /// Ends a change that began at `since`. What its answer says of the clusters that were its own is kept; for one
    /// that has failed, `extents` is empty.
    pub fn end_change(
        &mut self,
        id: u32,
        since: Moment,
        extents: impl Iterator<Item = Extent>,
        lens: &[u64],
    ) {
        let Some(at) = self.changing.iter().position(|one| one.id == id) else {
            return;
        };
        let ended = self.changing.swap_remove(at);
        self.places.forget(ended.clusters.clone());
        let Desk {
            places,
            changing,
            changed,
            forgotten,
            ..
        } = self;
        if !ended.frees && since.0 >= *forgotten {
            // Another write to the same cluster makes no difference: each answer was written when its own write had
            // been done, and the cluster stays where it then was.
            let may = |cluster: u64| {
                let freed = changed.iter().any(|(when, clusters, frees)| {
                    *frees && *when > since.0 && clusters.contains(&cluster)
                });
                ended.clusters.contains(&cluster)
                    && !freed
                    && !changing
                        .iter()
                        .any(|one| one.frees && one.clusters.contains(&cluster))
            };
            for extent in extents {
                places.learn(extent, lens, may);
            }
        }
        self.now = self.now.saturating_add(1);
        self.changed
            .push_back((self.now, ended.clusters, ended.frees));
        if self.changed.len() > REMEMBERED
            && let Some((when, ..)) = self.changed.pop_front()
        {
            self.forgotten = when;
        }
    }

    /// Whether all that was ever done is in the file, but for what the host keeps in its page cache.
    pub fn is_clean(&self) -> bool {
        !self.dirty
    }

    /// The helper has written its tables, asked at `since`.
    pub fn flushed(&mut self, since: Moment) {
        if self.now == since.0 && self.changing.is_empty() {
            self.dirty = false;
        }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
