//! Guest RAM, populated as the guest touches it.
//!
//! RAM is one mapping of this process for each stretch of guest physical memory. The host gives it no
//! page before somebody touches one, so a guest of 4 GiB that uses 100 MiB costs 100 MiB. The mapping
//! stays until the process ends: whatever still works with it, such as a transfer of the host's kernel,
//! never finds it gone.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::arch::x86_64::e820;
use crate::error::{Help, io_reason, more_address_space};
use crate::limits;

/// A huge page. KVM uses one only where guest physical and host virtual addresses agree below
/// this, so regions are aligned to it.
const HUGE_PAGE: usize = 2 << 20;

/// Below this address, RAM is populated by small pages: a guest that needs no more than a corner
/// of it, as programs of the bare machine do, stays small.
const HUGE_PAGES_FROM: u64 = HUGE_PAGE as u64;

/// What guest RAM is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Backing {
    /// Anonymous memory, on transparent huge pages where the host has them
    #[default]
    Thp,
    /// Pages of 2 MiB from the pool that the administrator has set aside (vm.nr_hugepages)
    Hugetlbfs,
    /// A memfd, which other processes can map
    Shared,
}

impl Backing {
    /// Bytes of the smallest piece that can be given back to the host.
    pub(super) fn page_bytes(self) -> u64 {
        match self {
            Backing::Thp | Backing::Shared => 4096,
            Backing::Hugetlbfs => HUGE_PAGE as u64,
        }
    }

    /// The advice to madvise(2) that makes pages zeros and gives them back.
    pub(super) fn emptying(self) -> libc::c_int {
        match self {
            Backing::Thp | Backing::Hugetlbfs => libc::MADV_DONTNEED,
            // The pages belong to the memfd, not to our mapping of it.
            Backing::Shared => libc::MADV_REMOVE,
        }
    }
}

/// The host has no room for guest RAM.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {} MiB of guest memory: {reason}", bytes >> 20)]
pub struct MapError {
    /// Asked for.
    bytes: u64,
    /// Asked of.
    backing: Backing,
    /// The host's reason.
    reason: String,
}

impl Help for MapError {
    fn help(&self) -> String {
        if self.backing == Backing::Hugetlbfs {
            return format!(
                "have that many huge pages free: 'sysctl vm.nr_hugepages={}' as root, \
                 if no others are in use",
                self.bytes >> 21
            );
        }
        match limits::address_space() {
            Some(_) => format!(
                "{}; or give the machine less with --memory",
                more_address_space()
            ),
            None => {
                "give the machine less with --memory; 'free -m' shows what this host has".into()
            }
        }
    }
}

/// Maps `bytes` of RAM, around the MMIO hole.
///
/// # Errors
/// When the host has no room for them.
pub fn map(bytes: u64, backing: Backing) -> Result<GuestMemoryMmap, MapError> {
    let refused = |reason: String| MapError {
        bytes,
        backing,
        reason,
    };
    let mut regions = Vec::new();
    for (start, len) in e820::ram_regions(bytes) {
        let len =
            usize::try_from(len).map_err(|_| refused("more than a process can map".into()))?;
        regions.push(region(start, len, backing).map_err(|error| refused(io_reason(&error)))?);
    }
    let memory =
        GuestMemoryMmap::from_regions(regions).map_err(|error| refused(error.to_string()))?;
    if backing != Backing::Hugetlbfs {
        prefer_huge_pages(&memory);
    }
    Ok(memory)
}

/// Makes `memory`, which was mapped with this `backing`, all zeros again, and gives its pages back to
/// the host. Nobody works with it meanwhile, or the guest would find what is written late.
///
/// # Errors
/// Those of madvise(2).
pub fn clear(memory: &GuestMemoryMmap, backing: Backing) -> io::Result<()> {
    let advice = backing.emptying();
    for region in memory.iter() {
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        // SAFETY: the range is the region's own mapping, which stays; all that is lost is its
        // content, and that is guest memory, which may change at any time.
        if unsafe { libc::madvise(region.as_ptr().cast(), len, advice) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives all threads of this process one malloc heap, and what is free in it back to the host.
///
/// glibc would map 64 MiB of address space for each vCPU thread, before its first entry; threads that hardly
/// allocate gain nothing from that. And what the command line and the configuration needed while they were
/// read, some 100 KiB, would stay with the process as long as the machine runs.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator under its lock; trims what is free under the same lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // Where address space is short, it may not come back.
        if limits::address_space().is_none() {
            libc::malloc_trim(0);
        }
    }
}

fn region(start: u64, len: usize, backing: Backing) -> io::Result<GuestRegionMmap> {
    let (flags, file) = match backing {
        Backing::Thp => (
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            None,
        ),
        // Reserved now: a pool that is too small is an error here and not a SIGBUS later.
        Backing::Hugetlbfs => (
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            None,
        ),
        Backing::Shared => (
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            Some(memfd(len as u64)?),
        ),
    };
    let address = place(len, flags, file.as_ref())?;
    // SAFETY: `place` has mapped these bytes for us alone, and they stay mapped until the
    // process ends: a machine's RAM outlives whatever still works with it.
    let builder = unsafe { MmapRegionBuilder::new(len).with_raw_mmap_pointer(address) };
    let mapping = builder
        .with_mmap_prot(PROT)
        .with_mmap_flags(flags)
        .build()
        .map_err(io::Error::other)?;
    // Whoever wants to share the RAM finds it as a file descriptor of this process.
    std::mem::forget(file);
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| io::Error::other("it would end past the address space"))
}

const PROT: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// A file without a name, of `len` bytes.
fn memfd(len: u64) -> io::Result<File> {
    // SAFETY: the name is a C string; the file descriptor is new and ours.
    let file = unsafe {
        let fd = libc::memfd_create(c"bantam-ram".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(len)?;
    Ok(file)
}

/// Maps `len` bytes of zeros, or of `file`, at a multiple of [`HUGE_PAGE`].
fn place(len: usize, flags: libc::c_int, file: Option<&File>) -> io::Result<*mut u8> {
    let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
    let room = len.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
    let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: a new mapping; what is unmapped or replaced below is a part of it that nobody else
    // knows of.
    unsafe {
        let whole = libc::mmap(std::ptr::null_mut(), room, PROT, reserve, -1, 0);
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
        if flags != reserve {
            let again = libc::mmap(start, len, PROT, flags | libc::MAP_FIXED, fd, 0);
            if again == libc::MAP_FAILED {
                let error = io::Error::last_os_error();
                libc::munmap(start, len);
                return Err(error);
            }
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
