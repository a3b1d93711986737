//! The list of parts, and who is where: names, register pages and interrupt lines are given out here.

use std::collections::BTreeMap;

use super::part::{Names, Need, Part};
use super::place::{PAGE_BYTES, Place, Range};
use crate::arch::x86_64::layout;
use crate::error::Help;

/// A part and its place.
pub struct Placed {
    /// Where.
    pub place: Place,
    /// What.
    pub part: Box<dyn Part>,
}

/// There is no page and no interrupt line for another part.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for {what}: a machine has at most {max} devices with an interrupt line of their own"
)]
pub struct BoardFull {
    /// The part that did not fit.
    what: String,
    /// How many fit.
    max: usize,
}

impl Help for BoardFull {
    fn help(&self) -> String {
        "leave that device away, or another one".into()
    }
}

/// All parts of a machine, in the order in which they were listed.
#[derive(Default)]
pub struct Board {
    parts: Vec<Placed>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.parts.iter().map(|part| &part.place))
            .finish()
    }
}

impl Board {
    /// Gives each of `parts` its place. Pages and lines go in the order of the list.
    ///
    /// # Errors
    /// When a part does not fit.
    pub fn of(parts: Vec<Box<dyn Part>>) -> Result<Self, BoardFull> {
        let max = layout::VIRTIO_GSIS.len();
        let starts = (layout::VIRTIO_MMIO_START..).step_by(PAGE_BYTES as usize);
        let mut free = layout::VIRTIO_GSIS.into_iter().zip(starts).zip(0u32..);
        let mut counts = BTreeMap::new();
        let mut board = Board::default();
        for part in parts {
            let place = match part.need() {
                Need::Ports { first, count, gsi } => Place {
                    name: String::new(),
                    range: Range::Ports(first, count),
                    gsi,
                    slot: 0,
                },
                Need::Page(names) => {
                    let name = next_name(names, &mut counts);
                    let Some(((gsi, start), slot)) = free.next() else {
                        let what = part.describe(&name);
                        return Err(BoardFull { what, max });
                    };
                    Place {
                        name,
                        // Below 4 GiB: see layout.
                        range: Range::Page(start as u32, PAGE_BYTES),
                        gsi: Some(gsi),
                        slot,
                    }
                }
            };
            board.parts.push(Placed { place, part });
        }
        Ok(board)
    }

    /// Whether there is a page of registers, with its line, for another part beside `parts`.
    pub fn has_room(parts: &[Box<dyn Part>]) -> bool {
        let pages = parts
            .iter()
            .filter(|part| matches!(part.need(), Need::Page(_)));
        pages.count() < layout::VIRTIO_GSIS.len()
    }

    /// The parts, in the order of the list.
    pub fn parts(&self) -> &[Placed] {
        &self.parts
    }

    /// Gives the parts away.
    pub fn into_parts(self) -> Vec<Placed> {
        self.parts
    }

    /// What all parts together have under `\_SB` in the DSDT.
    pub fn aml(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for placed in &self.parts {
            placed.part.aml(&placed.place, &mut bytes);
        }
        bytes
    }
}

fn next_name(names: Names, counts: &mut BTreeMap<&'static str, u32>) -> String {
    let (Names::Letters(prefix) | Names::Numbers(prefix)) = names;
    let count = counts.entry(prefix).or_default();
    let number = *count;
    *count = count.saturating_add(1);
    match names {
        // There are fewer lines than letters.
        Names::Letters(_) => format!("{prefix}{}", char::from(b'a'.saturating_add(number as u8))),
        Names::Numbers(_) => format!("{prefix}{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::site::{Site, SiteError};

    struct Fake(Need);

    impl Part for Fake {
        fn need(&self) -> Need {
            self.0
        }
        fn describe(&self, name: &str) -> String {
            format!("fake {name}")
        }
        fn build(&self, _place: &Place, _site: &mut Site<'_>) -> Result<(), SiteError> {
            Ok(())
        }
    }

    fn page(names: Names) -> Box<dyn Part> {
        Box::new(Fake(Need::Page(names)))
    }

    const DISK: Names = Names::Letters("vd");
    const NET: Names = Names::Numbers("net");

    #[test]
    fn pages_lines_and_names_go_in_the_order_of_the_list() {
        let ports = Box::new(Fake(Need::Ports {
            first: 0x3f8,
            count: 8,
            gsi: Some(4),
        }));
        let parts = vec![page(DISK), ports, page(NET), page(DISK)];
        let board = Board::of(parts).unwrap();
        let found: Vec<_> = board
            .parts()
            .iter()
            .map(|p| (p.place.name.as_str(), p.place.range.bounds().0, p.place.gsi))
            .collect();
        assert_eq!(
            found,
            [
                ("vda", 0xd000_0000, Some(16)),
                ("", 0x3f8, Some(4)),
                ("net0", 0xd000_1000, Some(17)),
                ("vdb", 0xd000_2000, Some(18)),
            ]
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let disks = |count| (0..count).map(|_| page(DISK));
        assert_eq!(Board::of(disks(16).collect()).unwrap().parts().len(), 16);
        let full = Board::of(disks(16).chain([page(NET)]).collect()).unwrap_err();
        assert!(full.to_string().contains("fake net0"), "{full}");
    }
}
