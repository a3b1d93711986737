//! The rows of the comparison, one file each.
//!
//! A row has a part for bare-metal guests, which any KVM runs, and one for Linux, which on some
//! hosts only the lab does.

pub mod block;
pub mod boot;
pub mod context;
pub mod density;
pub mod exits;
pub mod memory;
pub mod start;

use std::path::PathBuf;

use crate::host::Lab;
use context::Part;

/// A row of the comparison.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// As on the command line.
    pub name: &'static str,
    /// The part with bare-metal guests.
    pub bare: Option<Part>,
    /// The part with Linux.
    pub linux: Option<Part>,
    /// In the lab, the part with Linux is asked by these clocks.
    pub clocks: &'static [Lab],
    /// The files that it needs there, made where they are not.
    pub lab_files: Part<PathBuf>,
    /// It asks each question for each of [`boot::IMAGES`].
    pub images: bool,
}

/// In the order of the report.
pub const ROWS: [Row; 6] = [
    Row {
        name: "start",
        bare: Some(start::run),
        linux: None,
        clocks: &[],
        lab_files: |_| Ok(Vec::new()),
        images: false,
    },
    Row {
        name: "boot",
        bare: None,
        linux: Some(boot::linux),
        clocks: &[Lab::Virtual, Lab::Emulated],
        lab_files: boot::lab_files,
        images: true,
    },
    Row {
        name: "exits",
        bare: Some(exits::bare),
        linux: Some(exits::linux),
        clocks: &[Lab::Virtual],
        lab_files: boot::lab_files,
        images: false,
    },
    Row {
        name: "block",
        bare: Some(block::bare),
        linux: Some(block::linux),
        clocks: &[Lab::Emulated],
        lab_files: block::lab_files,
        images: false,
    },
    Row {
        name: "memory",
        bare: Some(memory::bare),
        linux: Some(memory::linux),
        clocks: &[Lab::Virtual],
        lab_files: boot::lab_files,
        images: false,
    },
    Row {
        name: "density",
        bare: Some(density::bare),
        linux: None,
        clocks: &[],
        lab_files: |_| Ok(Vec::new()),
        images: false,
    },
];
