//! Guest RAM: anonymous memory of this process, populated as the guest touches it.

use std::io;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use super::error::StartError;
use crate::arch::x86_64::e820;

/// A huge page. KVM uses one only where guest physical and host virtual addresses agree below
/// this, so regions are aligned to it.
const HUGE_PAGE: usize = 2 << 20;

/// Below this address, RAM is populated by small pages: a guest that needs no more than a corner
/// of it, as programs of the bare machine do, stays small.
const HUGE_PAGES_FROM: u64 = HUGE_PAGE as u64;

/// Maps `bytes` of RAM, around the MMIO hole.
///
/// # Errors
/// When the host has no room for them.
pub fn map(bytes: u64) -> Result<GuestMemoryMmap, StartError> {
    let refused = |reason: String| StartError::Memory { bytes, reason };
    let mut regions = Vec::new();
    for (start, len) in e820::ram_regions(bytes) {
        let len =
            usize::try_from(len).map_err(|_| refused("more than a process can map".into()))?;
        regions.push(region(start, len).map_err(|error| refused(error.to_string()))?);
    }
    let memory =
        GuestMemoryMmap::from_regions(regions).map_err(|error| refused(error.to_string()))?;
    prefer_huge_pages(&memory);
    Ok(memory)
}

/// Gives all threads of this process one malloc heap. glibc would map 64 MiB of address space for
/// each vCPU thread, before its first entry; threads that hardly allocate gain nothing from that.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator under its lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn region(start: u64, len: usize) -> io::Result<GuestRegionMmap> {
    let address = reserve(len)?;
    // SAFETY: `reserve` has mapped these bytes for us alone, and they stay mapped until the
    // process ends: a machine's RAM outlives whatever still works with it.
    let builder = unsafe { MmapRegionBuilder::new(len).with_raw_mmap_pointer(address) };
    let mapping = builder
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(FLAGS)
        .build()
        .map_err(io::Error::other)?;
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| io::Error::other("it would end past the address space"))
}

const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps `len` bytes of zeros at a multiple of [`HUGE_PAGE`].
fn reserve(len: usize) -> io::Result<*mut u8> {
    let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
    let room = len.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping; what is unmapped again below is its own head and tail.
    unsafe {
        let whole = libc::mmap(std::ptr::null_mut(), room, prot, FLAGS, -1, 0);
        if whole == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let head = whole.align_offset(HUGE_PAGE).min(HUGE_PAGE);
        let start = whole.byte_add(head);
        if head > 0 {
            libc::munmap(whole, head);
        }
        if let Some(tail @ 1..) = HUGE_PAGE.checked_sub(head) {
            libc::munmap(start.byte_add(len), tail);
        }
        Ok(start.cast())
    }
}

/// Asks for transparent huge pages: a guest that boots touches most of its RAM's 2 MiB pages, and
/// one fault for each of them costs less than five hundred.
fn prefer_huge_pages(memory: &GuestMemoryMmap) {
    for region in memory.iter() {
        let skip = HUGE_PAGES_FROM.saturating_sub(region.start_addr().0);
        let Some(len) = region.len().checked_sub(skip) else {
            continue;
        };
        let (Ok(skip), Ok(len)) = (usize::try_from(skip), usize::try_from(len)) else {
            continue;
        };
        // SAFETY: the range is within the region's own mapping, and the advice changes no content.
        let refused = unsafe {
            let start = region.as_ptr().add(skip);
            libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE)
        };
        if refused != 0 {
            // A kernel without them: the guest runs on small pages.
            log::debug!("no huge pages: {}", std::io::Error::last_os_error());
        }
    }
}
