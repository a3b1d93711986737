//! Guest RAM and the memory map that the guest is told (after INT 15h, AX=E820h).

use super::layout;

/// What a range of physical addresses is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// RAM, free for use.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// One line of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What is there.
    pub kind: Kind,
}

impl Entry {
    /// First address past the range.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Where `memory` bytes of RAM are: `(start, length)`, around the MMIO hole.
pub fn ram_regions(memory: u64) -> Vec<(u64, u64)> {
    let below = memory.min(layout::MMIO_HOLE_START);
    let mut regions = vec![(0, below)];
    let above = memory.saturating_sub(below);
    if above > 0 {
        regions.push((layout::MMIO_HOLE_END, above));
    }
    regions
}

/// The map for `memory` bytes of RAM.
pub fn map(memory: u64) -> Vec<Entry> {
    let mut entries = vec![
        Entry {
            start: 0,
            len: layout::LOW_RAM_END,
            kind: Kind::Ram,
        },
        Entry {
            start: layout::LOW_RAM_END,
            len: layout::HIGH_RAM_START - layout::LOW_RAM_END,
            kind: Kind::Reserved,
        },
    ];
    entries.extend(ram_regions(memory).into_iter().map(|(start, len)| {
        let skipped = layout::HIGH_RAM_START.saturating_sub(start);
        Entry {
            start: start.saturating_add(skipped),
            len: len.saturating_sub(skipped),
            kind: Kind::Ram,
        }
    }));
    entries.retain(|entry| entry.len > 0);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn small_guests_have_one_region() {
        assert_eq!(ram_regions(GIB), [(0, GIB)]);
        assert_eq!(ram_regions(3 * GIB), [(0, 3 * GIB)]);
    }

    #[test]
    fn large_guests_have_a_hole_below_4_gib() {
        assert_eq!(ram_regions(4 * GIB), [(0, 3 * GIB), (4 * GIB, GIB)]);
        let map = map(4 * GIB);
        let last = map.last().unwrap();
        assert_eq!(
            (last.start, last.end(), last.kind),
            (4 * GIB, 5 * GIB, Kind::Ram)
        );
    }

    proptest::proptest! {
        #[test]
        fn the_map_is_sorted_and_covers_the_ram(memory in (2u64 << 20)..(1 << 46)) {
            let map = map(memory);
            for pair in map.windows(2) {
                proptest::prop_assert!(pair[0].end() <= pair[1].start);
            }
            let ram: u64 = map.iter().filter(|e| e.kind == Kind::Ram).map(|e| e.len).sum();
            proptest::prop_assert_eq!(ram, memory - (layout::HIGH_RAM_START - layout::LOW_RAM_END));
        }
    }
}
