//! Guest RAM, populated as the guest touches it.
//!
//! RAM is one mapping of this process for each stretch of guest physical memory. The host gives it no
//! page before somebody touches one, so a guest of 4 GiB that uses 100 MiB costs 100 MiB. The mapping
//! stays until the process ends: whatever still works with it, such as a transfer of the host's kernel,
//! never finds it gone.
//!
//! What is in it is the guest's. So a core dump of this program leaves it out, unless the user wants it in.

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
    leave_out_of_core_dumps(&memory);
    Ok(memory)
}

/// Has a core dump of this process leave `memory` out (MADV_DONTDUMP).
pub fn leave_out_of_core_dumps(memory: &GuestMemoryMmap) {
    advise(memory, libc::MADV_DONTDUMP);
}

/// Has a core dump of this process have `memory` in it, as far as /proc/self/coredump_filter allows (core(5)).
pub fn have_in_core_dumps(memory: &GuestMemoryMmap) {
    advise(memory, libc::MADV_DODUMP);
}

/// Gives the host `advice` about all of `memory`, of a kind that changes no content.
fn advise(memory: &GuestMemoryMmap, advice: libc::c_int) {
    for region in memory.iter() {
        let Ok(len) = usize::try_from(region.len()) else {
            continue;
        };
        // SAFETY: the range is the region's own mapping, and the callers' kinds of advice change no content.
        if unsafe { libc::madvise(region.as_ptr().cast(), len, advice) } != 0 {
            let error = io::Error::last_os_error();
            log::warn!("core dumps: madvise of guest memory: {}", io_reason(&error));
        }
    }
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
///
/// What is long gets a mapping of its own, which the host has back when it is freed. glibc would raise the bound
/// of "long" to whatever was freed last, up to 32 MiB, and keep twice as much at the end of the heap.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets numbers of the allocator under its lock; trims what is free under the same lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LONG_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LONG_BYTES);
        // Where address space is short, it may not come back.
        if limits::address_space().is_none() {
            libc::malloc_trim(0);
        }
    }
}

/// An allocation of so many bytes has a mapping of its own; as much may stay free at the end of the heap.
const LONG_BYTES: libc::c_int = 256 << 10;

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

/// A file without a name, of `len` bytes, which stays as long as it is: another process of the same user can
/// open it below /proc, and if it could shorten it, the next access of ours would be a SIGBUS (memfd_create(2),
/// "File sealing"). Content is not sealed: it is RAM, out of which pages can be given back as well.
fn memfd(len: u64) -> io::Result<File> {
    // SAFETY: the name is a C string; the file descriptor is new and ours.
    let file = unsafe {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        let fd = libc::memfd_create(c"bantam-ram".as_ptr(), flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(len)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the call sets a property of our file, and touches no memory.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    /// The flags that the host shows of the mapping which begins at `address` (proc(5), VmFlags).
    fn flags_of(address: usize) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begins = format!("{address:x}-");
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&begins));
        let flags = lines
            .find_map(|line| line.strip_prefix("VmFlags:"))
            .unwrap();
        flags.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn core_dumps_leave_guest_memory_out_unless_it_is_wanted() {
        for backing in [Backing::Thp, Backing::Shared] {
            let memory = map(16 << 20, backing).unwrap();
            let start = memory.iter().next().unwrap().as_ptr();
            // The first page, and one of those that are to be huge.
            for at in [start.addr(), start.addr() + HUGE_PAGE] {
                let is_out = || flags_of(at).contains(&"dd".to_owned());
                // With a memfd all of it is one mapping.
                if backing == Backing::Shared && at != start.addr() {
                    continue;
                }
                assert!(is_out(), "{backing:?}");
                have_in_core_dumps(&memory);
                assert!(!is_out(), "{backing:?}");
                leave_out_of_core_dumps(&memory);
            }
        }
    }

    #[test]
    fn a_memfd_keeps_its_length_and_gives_pages_back() {
        let file = memfd(8 << 20).unwrap();
        for len in [0, 4 << 20, 16 << 20] {
            assert!(file.set_len(len).is_err(), "{len} bytes");
        }
        // SAFETY: the call asks for a property of our file.
        let unsealed =
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
        assert_eq!(unsealed, -1, "nobody can make it read-only");
        let memory = map(8 << 20, Backing::Shared).unwrap();
        memory.write_obj(7u64, GuestAddress(4 << 20)).unwrap();
        clear(&memory, Backing::Shared).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(4 << 20)).unwrap(), 0);
    }
}
