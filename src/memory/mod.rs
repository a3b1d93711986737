//! Guest RAM.
//!
//! - [`ram`]: maps it, empties it, and says what it is on the host ([`Backing`]);
//! - [`reclaim`]: gives pages of it back to the host while the guest runs;
//! - [`objects`]: small things in it, such as descriptors and headers, read or written once;
//! - [`buffers`]: ranges of it as the kernel's `struct iovec`, checked once: no copy on the way to a file;
//! - [`bounce`]: memory of our own for the few whose addresses direct I/O cannot use.
//!
//! All writes of the VMM into guest RAM go through these files and vm-memory, and so do the addresses
//! that a host's system call is to write to.

pub mod bounce;
pub mod buffers;
pub mod objects;
pub mod ram;
pub mod reclaim;

pub use bounce::BouncePool;
pub use buffers::IoBuffers;
pub use ram::{Backing, MapError};
pub use reclaim::Reclaim;
