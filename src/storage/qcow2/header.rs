//! What is checked of a header before the library sees it: what it would not survive, what it would
//! change before it refuses, and what can be said better.
//!
//! ```text
//!    0 magic u32      20 cluster_bits u32   36 l1_size u32     72 incompatible features u64 (v3)
//!    4 version u32    24 size u64           40 l1_offset u64  100 header_length u32 (v3)
//!    8 backing name   32 crypt_method u32   48 refcounts_at u64
//!                                           56 refcount clusters u32
//!                                           60 snapshots u32
//! ```
//!
//! All numbers are big-endian (QEMU, docs/interop/qcow2.txt). Extensions follow the header: a type,
//! a length, and so many bytes, padded to 8.

use std::fs::File;
use std::io;

use crate::error::io_reason;
use crate::storage::{SECTOR_BYTES, aligned};

/// Bytes that every header has: version 2, the shorter one.
pub const HEADER_BYTES: usize = 72;
/// The first of them.
pub const MAGIC: &[u8] = b"QFI\xfb";

/// Header, extensions and the backing file's name are in the first cluster; this much of it is
/// looked at.
const LOOKED_AT: usize = 64 << 10;
/// What the library makes at the most.
const MAX_REFCOUNT_TABLE: u64 = 32 << 20;
const CHECK: &str = "'qemu-img check' tells more, and may repair it with -r all";

/// Incompatible features, by their bits, and what to do about them. Bit 2, an external data file,
/// is refused by the one who opens.
const FEATURES: [(u32, &str, &str); 4] = [
    (
        0,
        "it was not closed properly (feature 'dirty')",
        "'qemu-img check -r all' makes it good again",
    ),
    (1, "it is marked as corrupt (feature 'corrupt')", CHECK),
    (
        3,
        "its compression is not supported (feature 'compression type')",
        "make it anew: qemu-img convert -O qcow2",
    ),
    (
        4,
        "it has subclusters (feature 'extended L2')",
        "make it anew: qemu-img convert -O qcow2",
    ),
];
const EXTERNAL_DATA: u32 = 2;

/// The table of names of features: entries of 48 bytes.
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const FEATURE_NAME_BYTES: u32 = 48;

/// What is wrong.
pub struct Fault {
    /// In words.
    pub reason: String,
    /// What to do.
    pub help: &'static str,
    /// The host's, where reading failed.
    pub direct: Option<io::Error>,
}

fn fault(reason: impl Into<String>, help: &'static str) -> Fault {
    Fault {
        reason: reason.into(),
        help,
        direct: None,
    }
}

/// A number of the header.
pub fn be32(header: &[u8], at: usize) -> Option<u32> {
    let bytes = header.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The `len` bytes of `file` at `offset`, or those that there are.
fn read(file: &File, offset: u64, len: usize) -> Result<Vec<u8>, Fault> {
    aligned::read(file, offset, len).map_err(|source| Fault {
        reason: io_reason(&source),
        help: CHECK,
        direct: Some(source),
    })
}

/// A number of the header, or of a table.
pub fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// Where the refcount table is.
pub struct Refcounts {
    at: u64,
    bytes: u64,
}

/// Looks at the header of `file`.
pub fn check(file: &File) -> Result<Refcounts, Fault> {
    let header = read(file, 0, LOOKED_AT)?;
    let field = |at| be32(&header, at).unwrap_or(0);
    let field64 = |at| be64(&header, at).unwrap_or(0);
    if header.len() < HEADER_BYTES || !header.starts_with(MAGIC) {
        return Err(fault(
            "it is not a qcow2 image",
            "for a raw image write 'format=raw', or let its name not end in .qcow2",
        ));
    }
    let version = field(4);
    if !matches!(version, 2 | 3) {
        return Err(fault(
            format!("qcow2 version {version} is not known"),
            "versions 2 and 3 are; 'qemu-img convert -O qcow2' makes one of them",
        ));
    }
    if field(32) != 0 {
        return Err(fault(
            "it is encrypted",
            "decrypt it first: qemu-img convert, with the image's secret",
        ));
    }
    let cluster_bits = field(20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(fault(
            format!("a cluster of 2^{cluster_bits} bytes is not possible"),
            CHECK,
        ));
    }
    let (len, tables) = (field64(24), field(36));
    // Each entry of the L1 table stands for a cluster of entries of 8 bytes, one for a cluster each.
    let covered = u128::from(tables) << (2 * cluster_bits - 3);
    if u128::from(len) > covered || i64::try_from(len).is_err() {
        return Err(fault(
            format!("its length, {len} bytes, is more than its tables are for"),
            CHECK,
        ));
    }
    if len == 0 || !len.is_multiple_of(SECTOR_BYTES) {
        return Err(fault(
            format!("a disk of {len} bytes does not divide into sectors of {SECTOR_BYTES}"),
            "'qemu-img resize' gives it another length",
        ));
    }
    if version == 3 {
        features(field64(72))?;
    }
    let header_bytes = if version == 2 { 72 } else { field(100) };
    extensions(&header, header_bytes)?;
    Ok(Refcounts {
        at: field64(48),
        bytes: u64::from(field(56)) << cluster_bits,
    })
}

/// Looks at the refcount table of `file` before clusters are given to it.
///
/// A free cluster is looked for from one counted cluster to the next. In a table whose entries all
/// name the same block, full of counts, that takes as long as the table is, times what a block
/// counts: hours, for an image of a few MiB. So none may be named twice; then the search takes time
/// in proportion to the bytes that the file really has.
pub fn check_refcounts(file: &File, table: &Refcounts) -> Result<(), Fault> {
    let Refcounts { at, bytes } = *table;
    if bytes > MAX_REFCOUNT_TABLE {
        return Err(fault(
            format!("a refcount table of {bytes} bytes is longer than any image needs"),
            CHECK,
        ));
    }
    if i64::try_from(at).is_err() {
        return Err(fault("its refcount table is outside of the file", CHECK));
    }
    let table = read(file, at, bytes as usize)?;
    // The lowest bits are reserved: a block is at the start of a cluster.
    let mut blocks: Vec<u64> = (0..table.len())
        .step_by(8)
        .filter_map(|at| be64(&table, at))
        .map(|entry| entry >> 9)
        .filter(|block| *block != 0)
        .collect();
    let named = blocks.len();
    blocks.sort_unstable();
    blocks.dedup();
    match blocks.len() == named {
        true => Ok(()),
        false => Err(fault("its refcount table names a block twice", CHECK)),
    }
}

fn features(bits: u64) -> Result<(), Fault> {
    for (bit, what, help) in FEATURES {
        if bits & 1 << bit != 0 {
            return Err(fault(what, help));
        }
    }
    let known = FEATURES
        .iter()
        .fold(1 << EXTERNAL_DATA, |all, f| all | 1u64 << f.0);
    match bits & !known {
        0 => Ok(()),
        rest => Err(fault(
            format!("its feature {} is not known", rest.trailing_zeros()),
            "make it anew without: qemu-img convert -O qcow2",
        )),
    }
}

fn extensions(header: &[u8], start: u32) -> Result<(), Fault> {
    let mut at = start as usize;
    // Past what was read there is nothing that the library would look at either.
    while let (Some(kind @ 1..), Some(len)) = (be32(header, at), be32(header, at.saturating_add(4)))
    {
        if kind == EXTENSION_FEATURE_NAMES && !len.is_multiple_of(FEATURE_NAME_BYTES) {
            return Err(fault("its table of features is damaged", CHECK));
        }
        let padded = (len as usize).div_ceil(8).saturating_mul(8);
        at = at.saturating_add(8).saturating_add(padded);
    }
    Ok(())
}
