//! Where sectors live, and how they move.
//!
//! ```text
//!   a virtqueue's worker                         the host
//!   ────────────────────                         ────────
//!   Job { work, buffers } ──▶ Engine::submit ─▶ io_uring, or threads ─┐
//!                             Engine::commit                           ├─▶ Image ─▶ file
//!   Job, io::Result       ◀── Engine::complete ◀── an event fd ────────┘
//! ```
//!
//! - an [`Image`] knows which bytes of the disk are where: [`raw`], [`qcow2`], and over one of them,
//!   for a disk whose writes are thrown away, an [`overlay`];
//! - an [`Engine`] keeps many requests going at once and tells of their ends by an event fd;
//! - [`IoBuffers`](crate::memory::buffers): guest memory as the kernel wants it; nothing is copied on the way;
//! - a [`helper`] is the process that reads a qcow2 image: what it says of the image's places is enough for most requests;
//! - [`mod@format`]: which formats of images there are; [`access`], [`open`]: from a path to an image;
//!   [`foreign`]: what is refused there, as it is no disk of ours;
//! - [`flushes`]: what a failed flush leaves behind.
//!
//! Nothing here knows of virtio: the same types serve a test that has a file and two buffers.

pub mod access;
pub mod aligned;
pub mod engine;
pub mod error;
pub mod flushes;
pub mod foreign;
pub mod format;
pub mod helper;
pub mod image;
pub mod lock;
pub mod open;
pub mod overlay;
pub mod qcow2;
pub mod raw;

pub use crate::memory::IoBuffers;
pub use access::{Access, CacheMode};
pub use engine::{Engine, IoMode};
pub use error::OpenError;
pub use flushes::Flushes;
pub use format::Format;
pub use image::{Image, Job, SECTOR_BYTES, Work};
pub use open::Opened;
pub use overlay::{Overlay, OverlayError};
