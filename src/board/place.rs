//! Where a part is.
//!
//! A part on ports has its place by tradition, as a guest looks for COM1 at port 0x3f8. A virtio device
//! may be anywhere, as the DSDT tells the guest where it is. So these get pages from
//! [`VIRTIO_MMIO_START`](crate::arch::x86_64::layout::VIRTIO_MMIO_START) on and the lines of [`VIRTIO_GSIS`](crate::arch::x86_64::layout::VIRTIO_GSIS), one after the other in the
//! order of the list, and names that are counted for each kind.

/// Bytes of a register page.
pub const PAGE_BYTES: u32 = 0x1000;

/// Where on the machine's two buses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Ports, the first and how many.
    Ports(u16, u16),
    /// Guest physical addresses, the first and how many.
    Page(u32, u32),
}

impl Range {
    /// The first port or address, and how many.
    pub fn bounds(self) -> (u64, u64) {
        match self {
            Range::Ports(first, count) => (first.into(), count.into()),
            Range::Page(first, count) => (first.into(), count.into()),
        }
    }
}

/// Where a part is, and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `vda`, `net0`; empty for a part with ports, of which there is only one.
    pub name: String,
    /// Ports or a page.
    pub range: Range,
    /// The interrupt line.
    pub gsi: Option<u32>,
    /// Which of the pages it has, counted from 0.
    pub slot: u32,
}
