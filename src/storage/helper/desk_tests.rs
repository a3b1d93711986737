//! The book of a VMM against a helper that is honest and as unlucky as can be: a cluster that is freed is at once given
//! to somebody else, and answers are read long after they were written.

use std::collections::BTreeMap;

use super::*;

const CLUSTER: u64 = 4096;
const CLUSTERS: u64 = 8;
const LENS: [u64; 1] = [1000 * CLUSTER];

fn desk() -> Desk {
    Desk::new(Places::new(CLUSTERS * CLUSTER, CLUSTER).unwrap(), SLOTS)
}

fn told(cluster: u64, place: u64, writable: bool) -> Extent {
    Extent {
        disk: cluster * CLUSTER,
        len: CLUSTER,
        spot: Spot::At {
            file: 0,
            offset: place * CLUSTER,
            writable,
        },
    }
}

fn offset_of(spot: Spot) -> u64 {
    match spot {
        Spot::At { offset, .. } => offset,
        Spot::Zero => panic!("zeros"),
    }
}

/// What the helper has: where each cluster of the disk is, and which of the file's are free, the last one first.
struct Model {
    places: BTreeMap<u64, (u64, bool)>,
    free: Vec<u64>,
    next: u64,
}

impl Model {
    fn free(&mut self, cluster: u64) {
        if let Some((place, _)) = self.places.remove(&cluster) {
            self.free.push(place);
        }
    }

    fn write(&mut self, cluster: u64) {
        if self.places.get(&cluster).is_some_and(|(_, own)| *own) {
            return;
        }
        // A new cluster is found before the old one is given up.
        let place = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        self.free(cluster);
        self.places.insert(cluster, (place, true));
    }

    fn told(&self, clusters: Range<u64>) -> Vec<Extent> {
        let all = self.places.range(clusters);
        all.map(|(cluster, (place, own))| told(*cluster, *place, *own))
            .collect()
    }
}

/// Something that is under way.
enum Under {
    /// The VMM's own transfer, to these places.
    Direct(u32, Vec<(u64, (u64, bool))>),
    /// The helper has it.
    Asked {
        kind: u8,
        clusters: Range<u64>,
        change: Option<u32>,
        slot: Option<usize>,
        since: Moment,
        /// What was told, once it has been done.
        answer: Option<Vec<Extent>>,
    },
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
    #[test]
    fn no_transfer_goes_to_a_cluster_that_has_become_another_ones(
        steps in proptest::collection::vec((0u8..8, 0u64..CLUSTERS, 1u64..4, 0usize..64), 1..200),
        shared in 0u64..CLUSTERS,
    ) {
        let mut desk = desk();
        let mut model = Model { places: BTreeMap::new(), free: vec![], next: 10 };
        for cluster in 0..shared {
            // As an image has them that has snapshots inside: not to be written where they are.
            model.places.insert(cluster, (cluster + 1, false));
        }
        let mut under: Vec<Under> = Vec::new();
        for (what, cluster, count, which) in steps {
            let clusters = cluster..(cluster + count).min(CLUSTERS);
            let (offset, len) = (cluster * CLUSTER, (clusters.end - clusters.start) * CLUSTER);
            match what {
                0 | 1 => {
                    let write = what == 1;
                    let one = (offset + 512, 512);
                    if let Some((spot, id)) = desk.direct(write, one.0, one.1) {
                        let at = offset_of(spot);
                        let real = model.places.get(&cluster).copied();
                        let (place, own) = real.expect("a place that is none any more");
                        assert_eq!(at, place * CLUSTER + 512);
                        assert!(own || !write, "a write to what is not its own");
                        under.push(Under::Direct(id, vec![(cluster, (place, own))]));
                    }
                }
                2..5 if under.len() < 12 => {
                    let change = (what > 2).then(|| desk.announce(what == 4, offset, len));
                    under.push(Under::Asked {
                        kind: what, clusters, change, slot: None, since: Moment::default(), answer: None,
                    });
                }
                _ if under.is_empty() => {}
                _ => {
                    let at = which % under.len();
                    let mut over = false;
                    match &mut under[at] {
                        Under::Direct(id, places) => {
                            for (cluster, place) in places.iter() {
                                assert_eq!(model.places.get(cluster), Some(place), "it has moved meanwhile");
                            }
                            desk.end_direct(*id);
                            over = true;
                        }
                        Under::Asked { kind, clusters, change, slot, since, answer } => match (&slot, &answer) {
                            (None, _) => {
                                *slot = desk.begin(*change);
                                *since = desk.moment();
                            }
                            (Some(_), None) => {
                                match kind {
                                    3 => clusters.clone().for_each(|c| model.write(c)),
                                    4 => clusters.clone().for_each(|c| model.free(c)),
                                    _ => {}
                                }
                                let window = if *kind == 2 { 0..CLUSTERS } else { clusters.clone() };
                                *answer = Some(model.told(window));
                            }
                            (Some(number), Some(told)) => {
                                let told = told.iter().copied();
                                match change {
                                    Some(id) => desk.end_change(*id, *since, told, &LENS),
                                    None => desk.learn(*since, told, &LENS),
                                }
                                desk.end(*number);
                                over = true;
                            }
                        },
                    }
                    if over {
                        under.swap_remove(at);
                    }
                }
            }
        }
    }
}

#[test]
fn a_change_waits_for_transfers_and_keeps_new_ones_away() {
    let mut desk = desk();
    desk.learn(
        desk.moment(),
        [told(0, 5, true), told(1, 6, true)].into_iter(),
        &LENS,
    );
    let (spot, transfer) = desk.direct(true, 512, 512).unwrap();
    assert_eq!(offset_of(spot), 5 * CLUSTER + 512);
    let discard = desk.announce(true, 0, CLUSTER);
    assert!(
        desk.begin(Some(discard)).is_none(),
        "a transfer is on its way"
    );
    assert!(desk.direct(false, 0, 512).is_none(), "no new one begins");
    assert!(desk.direct(true, CLUSTER, 512).is_some(), "but beside it");
    desk.wait(3);
    assert_eq!(desk.end_direct(transfer), 1 << 3, "who waits is told");
    let slot = desk.begin(Some(discard)).unwrap();
    let since = desk.moment();
    // A helper that says that the cluster is where it was is not asked any more whether that is so.
    desk.end_change(discard, since, [told(0, 5, true)].into_iter(), &LENS);
    desk.end(slot);
    assert!(desk.direct(false, 0, 512).is_none());
}

#[test]
fn a_flush_goes_to_the_helper_as_long_as_its_tables_may_have_changed() {
    let mut desk = desk();
    assert!(!desk.is_clean(), "it may have begun with something");
    desk.flushed(desk.moment());
    assert!(desk.is_clean());
    let write = desk.announce(false, 0, 512);
    assert!(!desk.is_clean());
    let since = desk.moment();
    desk.flushed(since);
    assert!(!desk.is_clean(), "it was not over");
    desk.end_change(write, since, [].into_iter(), &LENS);
    desk.flushed(since);
    assert!(!desk.is_clean(), "it ended after the flush had begun");
    desk.flushed(desk.moment());
    assert!(desk.is_clean());
}

#[test]
fn slots_are_given_out_once() {
    let mut desk = desk();
    let taken: Vec<_> = std::iter::from_fn(|| desk.begin(None)).collect();
    assert_eq!(taken.len(), SLOTS);
    desk.end(3);
    desk.end(3);
    desk.end(usize::MAX);
    assert_eq!(desk.begin(None), Some(3));
    assert_eq!(desk.begin(None), None);
}
