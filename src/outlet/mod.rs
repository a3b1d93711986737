//! Bytes that leave this process: what the guest prints, and lines of our own on standard error.
//!
//! Whoever reads them may stop reading, and what a file is on may stop answering. Nobody here waits for that:
//! neither the event loop, which has to hear of the end, nor a vCPU, nor a disk's thread that has something to
//! complain of.
//!
//! ```text
//!   terminal, pipe, FIFO, socket ◀── write(2) that never blocks ◀── Output ◀── the guest's console
//!   file, block device  ◀── thread ◀── pipe of 64 KiB ◀────────────┘  ▲
//!                            Keeper (max=)                            └───────── stderr ◀── say, the log
//!                                                                               64 KiB, then counted
//! ```
//!
//! - [`output`]: one output, of any kind;
//! - [`thread`]: files, whose writes may block whatever flags they have been opened with;
//! - [`keeper`]: a file that does not grow without end;
//! - [`stderr`]: lines of our own. What nobody reads is counted.

pub mod keeper;
pub mod output;
pub mod stderr;
pub mod thread;

pub use output::{Output, Wrote, duplicate};
pub use stderr::say;
