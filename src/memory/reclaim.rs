//! Guest RAM that goes back to the host while its guest runs.
//!
//! The host finds pages for guest RAM when the guest touches them first, and does not hear when the guest has
//! no more use for them. A guest with a balloon driver tells, and then they
//! are given back here: with madvise(2) the mapping stays, its content is lost, and the guest's next
//! access finds a new page of zeros. KVM hears of it from the host's memory management (an MMU notifier), and
//! forgets its own translations of these pages.
//!
//! What the guest names is any number it likes. So a range is cut to what is in RAM, and then inwards to whole
//! pages, before the host is asked for anything.

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::ram::Backing;

/// Guest RAM, as that out of which pages can be given back.
pub struct Reclaim {
    memory: Arc<GuestMemoryMmap>,
    backing: Backing,
}

impl Reclaim {
    /// Of `memory`, which was mapped with this `backing`.
    pub fn new(memory: Arc<GuestMemoryMmap>, backing: Backing) -> Self {
        Reclaim { memory, backing }
    }

    /// Gives the whole pages among the `len` bytes at `start` back to the host; how many bytes those are.
    /// What is not RAM is left out.
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn give_back(&self, start: GuestAddress, len: u64) -> io::Result<u64> {
        let end = start.0.saturating_add(len);
        let mut bytes = 0u64;
        for region in self.memory.iter() {
            let base = region.start_addr().0;
            let limit = base.saturating_add(region.len());
            let Some(pages) = whole_pages(
                start.0.max(base)..end.min(limit),
                self.backing.page_bytes(),
                base,
            ) else {
                continue;
            };
            let len = pages.end.saturating_sub(pages.start);
            let (Ok(offset), Ok(size)) = (
                usize::try_from(pages.start.saturating_sub(base)),
                usize::try_from(len),
            ) else {
                continue;
            };
            // SAFETY: the range was cut to the region's own mapping, which stays; all that is lost is its
            // content, and that is guest memory, which may change at any time.
            let refused = unsafe {
                let at = region.as_ptr().add(offset);
                libc::madvise(at.cast(), size, self.backing.emptying())
            };
            if refused != 0 {
                return Err(io::Error::last_os_error());
            }
            bytes = bytes.saturating_add(len);
        }
        Ok(bytes)
    }
}

/// The part of `range` that is whole pages of `page` bytes, a power of two, counted from `base`.
fn whole_pages(range: std::ops::Range<u64>, page: u64, base: u64) -> Option<std::ops::Range<u64>> {
    let from = range
        .start
        .checked_sub(base)?
        .checked_next_multiple_of(page)?;
    let to = range.end.checked_sub(base)?;
    let to = to.checked_sub(to.checked_rem(page)?)?;
    (from < to).then(|| base.saturating_add(from)..base.saturating_add(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ram;
    use vm_memory::Bytes;

    const PAGE: u64 = 4096;
    const RAM: u64 = 16 << 20;

    /// Whether the host has each of the first `pages` pages of the RAM's first region in memory.
    fn resident(memory: &GuestMemoryMmap, pages: u64) -> Vec<bool> {
        let region = memory.iter().next().unwrap();
        let mut there = vec![0u8; pages as usize];
        let len = (pages * PAGE) as usize;
        // SAFETY: mincore reads the state of our own mapping, and writes a byte for each of its pages.
        let result = unsafe { libc::mincore(region.as_ptr().cast(), len, there.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        there.iter().map(|page| page & 1 == 1).collect()
    }

    /// RAM that is all in use.
    fn full(backing: Backing) -> Arc<GuestMemoryMmap> {
        let memory = Arc::new(ram::map(RAM, backing).unwrap());
        for at in (0..RAM).step_by(PAGE as usize) {
            memory.write_obj(at | 1, GuestAddress(at)).unwrap();
        }
        memory
    }

    #[test]
    fn whole_pages_leave_the_process_and_come_back_as_zeros() {
        for backing in [Backing::Thp, Backing::Shared] {
            let memory = full(backing);
            assert!(resident(&memory, RAM / PAGE).iter().all(|page| *page));
            let reclaim = Reclaim::new(memory.clone(), backing);
            // From the middle of page 1024 to the middle of page 2048: 1023 whole ones.
            let given = reclaim.give_back(GuestAddress(1024 * PAGE + 8), 1024 * PAGE);
            assert_eq!(given.unwrap(), 1023 * PAGE, "{backing:?}");
            let there = resident(&memory, RAM / PAGE);
            for (page, there) in (0..).zip(there) {
                assert_eq!(
                    there,
                    !(1025..2048).contains(&page),
                    "{backing:?}, page {page}"
                );
            }
            for page in 0..RAM / PAGE {
                let found: u64 = memory.read_obj(GuestAddress(page * PAGE)).unwrap();
                let lost = (1025..2048).contains(&page);
                assert_eq!(
                    found,
                    if lost { 0 } else { (page * PAGE) | 1 },
                    "{backing:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_ram_is_left_out() {
        let memory = full(Backing::Thp);
        let reclaim = Reclaim::new(memory.clone(), Backing::Thp);
        for (start, len) in [
            (RAM, 1 << 30),
            (0, 0),
            (0, PAGE - 1),
            (1, PAGE),
            (u64::MAX, u64::MAX),
            (u64::MAX - PAGE, 2 * PAGE),
            (0xd000_0000, 1 << 32),
        ] {
            let given = reclaim.give_back(GuestAddress(start), len).unwrap();
            assert_eq!(given, 0, "{start:#x} {len:#x}");
        }
        assert!(resident(&memory, RAM / PAGE).iter().all(|page| *page));
        // The last page, whatever is said to follow it.
        let last = GuestAddress(RAM - PAGE);
        assert_eq!(reclaim.give_back(last, u64::MAX).unwrap(), PAGE);
        let there = resident(&memory, RAM / PAGE);
        assert_eq!(there.iter().filter(|page| !**page).count(), 1);
    }

    #[test]
    fn a_range_over_two_regions_is_given_back_in_both() {
        let regions = [(GuestAddress(0), 0x4000), (GuestAddress(0x4000), 0x4000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        memory.write_slice(&[1; 0x8000], GuestAddress(0)).unwrap();
        let reclaim = Reclaim::new(memory.clone(), Backing::Thp);
        assert_eq!(
            reclaim.give_back(GuestAddress(0x2000), 0x4000).unwrap(),
            0x4000
        );
        let mut bytes = [0; 0x8000];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        for (at, byte) in bytes.into_iter().enumerate() {
            assert_eq!(byte == 0, (0x2000..0x6000).contains(&at), "{at:#x}");
        }
    }

    #[test]
    fn pages_of_two_mib_are_given_back_whole() {
        assert_eq!(
            whole_pages(1..(6 << 20) - 1, 2 << 20, 0),
            Some(2 << 20..4 << 20)
        );
        assert_eq!(whole_pages(1..(4 << 20) - 1, 2 << 20, 0), None);
        // Counted from where the region begins.
        assert_eq!(
            whole_pages(0x1000..0x5000, 0x2000, 0x1000),
            Some(0x1000..0x5000)
        );
        assert_eq!(whole_pages(4097..8191, 4096, 0), None);
        assert_eq!(whole_pages(0..u64::MAX, 4096, 0), Some(0..u64::MAX - 4095));
    }

    proptest::proptest! {
        #[test]
        fn any_range_loses_nothing_around_it(start in 0u64..0xa000, len in 0u64..0xc000) {
            let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap());
            memory.write_slice(&[1; 0x8000], GuestAddress(0)).unwrap();
            let reclaim = Reclaim::new(memory.clone(), Backing::Thp);
            let given = reclaim.give_back(GuestAddress(start), len).unwrap();
            let mut bytes = [0; 0x8000];
            memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            let lost = bytes.iter().filter(|byte| **byte == 0).count() as u64;
            proptest::prop_assert_eq!(given, lost);
            for (at, byte) in (0u64..).zip(bytes) {
                proptest::prop_assert!(byte == 1 || (start..start + len).contains(&at));
            }
        }
    }
}
