//! Guest RAM: anonymous memory of this process, populated as the guest touches it.

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::StartError;
use crate::arch::x86_64::e820;

/// Maps `bytes` of RAM, around the MMIO hole.
///
/// # Errors
/// When the host has no room for them.
pub fn map(bytes: u64) -> Result<GuestMemoryMmap, StartError> {
    let ranges: Option<Vec<_>> = e820::ram_regions(bytes)
        .into_iter()
        .map(|(start, len)| Some((GuestAddress(start), usize::try_from(len).ok()?)))
        .collect();
    let refused = |reason: String| StartError::Memory { bytes, reason };
    let ranges = ranges.ok_or_else(|| refused("more than a process can map".into()))?;
    GuestMemoryMmap::from_ranges(&ranges).map_err(|error| refused(error.to_string()))
}
