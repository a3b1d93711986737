//! The formats of disk images that Bantam reads and writes, and what they are known by.
//!
//! This is the lowest file of [`storage`](super): what opens, reads, refuses and makes images all take
//! the formats from here.

use std::path::Path;

/// The first bytes of every qcow2 image (QEMU, docs/interop/qcow2.txt).
pub const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// How the bytes of a disk lie in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Byte n of the disk is byte n of the file
    #[default]
    Raw,
    /// QEMU's format, which grows with what is written
    Qcow2,
}

impl Format {
    /// What a name promises. The content is never believed: whoever can write a raw disk can write a
    /// qcow2 header into it, and with that the name of any file of the host as its backing file. It
    /// can only be a reason to ask the user ([`check_content`](super::open::check_content)).
    pub fn of_name(path: &Path) -> Format {
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("qcow2") => Format::Qcow2,
            _ => Format::Raw,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        })
    }
}
