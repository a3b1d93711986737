//! What a kernel image is, and how it is entered.
//!
//! ```text
//!   file ─▶ Source ─▶ Kernel::open: ELF? bzImage? ─▶ Placement: which bytes go where, entry
//!                                                        │
//!         initrd ─▶ Initrd::place ──────────────────────▶│
//!         command line ─────────────────────────────────▶▼
//!                                                load into guest memory
//! ```
//!
//! The format is found by looking at the file, not at its name. Everything that an image says of
//! itself is checked against the file's length and the machine's memory before any of it is used,
//! and all of that happens before KVM is asked for anything.

pub mod bootconfig;
pub mod bzimage;
pub mod cache;
pub mod cmdline;
pub mod drivers;
pub mod elf;
pub mod error;
pub mod initrd;
pub mod inspect;
pub mod iso;
pub mod kconfig;
pub mod kernel;
pub mod linux;
pub mod payload;
pub mod placement;
pub mod pvh;
pub mod pvm;
pub mod recognize;
pub mod setup;
pub mod source;
pub mod unpacked;

pub use cache::Cache;
pub use error::KernelError;
pub use initrd::Initrd;
pub use iso::{Iso, IsoError};
pub use kernel::Kernel;
pub use placement::{Placement, Protocol, ProtocolChoice, Segment};
pub use source::Source;
pub use unpacked::Unpack;
