//! What is checked of a header before the library sees it: what it would not survive, what it would
//! change before it refuses, and what can be said better.
//!
//! ```text
//!    0 magic u32      20 cluster_bits u32   36 l1_size u32     72 incompatible features u64 (v3)
//!    4 version u32    24 size u64           40 l1_offset u64   88 autoclear features u64 (v3)
//!    8 backing name   32 crypt_method u32   48 refcounts_at u64
//!                                           56 refcount clusters u32
//!                                           60 snapshots u32   96 refcount_order u32 (v3)
//!                                           64 snapshots_at   100 header_length u32 (v3)
//! ```
//!
//! All numbers are big-endian (QEMU, docs/interop/qcow2.txt). Extensions follow the header: a type,
//! a length, and so many bytes, padded to 8.

use std::fs::File;
use std::io;

use crate::error::io_reason;
use crate::storage::aligned;
use crate::storage::format::QCOW2_MAGIC;
use crate::storage::image::SECTOR_BYTES;

/// Bytes that every header has. It is the length of a header of version 2; those of version 3 are longer.
pub const HEADER_BYTES: usize = 72;

/// How much of the file is looked at. Header, extensions and the backing file's name lie in the first
/// cluster.
const LOOKED_AT: usize = 64 << 10;
/// The longest table of refcounts that the library makes, in bytes.
const MAX_REFCOUNT_TABLE: u64 = 32 << 20;
/// The longest L1 table that QEMU takes, in bytes.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// What to do with an image that may be damaged.
pub const CHECK: &str = "'qemu-img check' tells more, and may repair it with -r all";

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
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
/// This extension is there only with an encryption, and such an image is refused before.
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

/// What is wrong.
pub struct Fault {
    /// In words.
    pub reason: String,
    /// What to do.
    pub help: &'static str,
    /// The error of the host, if the file could not be read.
    pub direct: Option<io::Error>,
}

/// A fault, and what to do about it.
pub fn fault(reason: impl Into<String>, help: &'static str) -> Fault {
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

/// What the header says of the rest of the file. Nothing of it is checked against the file yet.
pub struct Layout {
    /// Of the format: 2 or 3.
    pub version: u32,
    /// A cluster is 2 to the power of this.
    pub cluster_bits: u32,
    /// The L1 table of the disk as it is now.
    pub l1_at: u64,
    /// Its entries.
    pub l1_entries: u64,
    /// The refcount table.
    pub refcounts_at: u64,
    /// Its length.
    pub refcount_clusters: u32,
    /// A refcount has 2 to the power of this many bits.
    pub refcount_order: u32,
    /// The table of snapshots.
    pub snapshots_at: u64,
    /// Its entries.
    pub snapshots: u32,
    /// The bitmaps, where they are up to date.
    pub bitmaps: Option<Bitmaps>,
}

/// Where the directory of bitmaps is.
pub struct Bitmaps {
    /// Its first byte.
    pub at: u64,
    /// Its length.
    pub bytes: u64,
    /// Its entries.
    pub count: u32,
}

impl Layout {
    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the refcount table.
    pub fn refcount_bytes(&self) -> u64 {
        u64::from(self.refcount_clusters) << self.cluster_bits
    }
}

/// Looks at the header of `file`.
pub fn check(file: &File) -> Result<Layout, Fault> {
    let header = read(file, 0, LOOKED_AT)?;
    let field = |at| be32(&header, at).unwrap_or(0);
    let field64 = |at| be64(&header, at).unwrap_or(0);
    if header.len() < HEADER_BYTES || !header.starts_with(QCOW2_MAGIC) {
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
    if u64::from(tables).saturating_mul(8) > MAX_L1_BYTES {
        return Err(fault(
            format!("an L1 table of {tables} entries is longer than any image needs"),
            CHECK,
        ));
    }
    if len == 0 || !len.is_multiple_of(SECTOR_BYTES) {
        return Err(fault(
            format!("a disk of {len} bytes does not divide into sectors of {SECTOR_BYTES}"),
            "'qemu-img resize' gives it another length",
        ));
    }
    let (mut header_bytes, mut refcount_order) = (72, 4);
    if version == 3 {
        features(field64(72))?;
        (refcount_order, header_bytes) = (field(96), field(100));
        if refcount_order > 6 {
            return Err(fault(
                format!("refcounts of 2^{refcount_order} bits are not possible"),
                CHECK,
            ));
        }
        let most = (1 << cluster_bits).min(LOOKED_AT as u32);
        if !(104..=most).contains(&header_bytes) {
            return Err(fault(
                format!("a header of {header_bytes} bytes is not possible"),
                CHECK,
            ));
        }
        // The image is compressed by something else than deflate, without the feature that says so.
        if header_bytes > 104 && header.get(104).is_some_and(|kind| *kind != 0) {
            return Err(fault(
                "its header says two things of its compression",
                CHECK,
            ));
        }
    }
    let layout = Layout {
        version,
        cluster_bits,
        l1_at: field64(40),
        l1_entries: tables.into(),
        refcounts_at: field64(48),
        refcount_clusters: field(56),
        refcount_order,
        snapshots_at: field64(64),
        snapshots: field(60),
        bitmaps: None,
    };
    if layout.refcount_bytes() > MAX_REFCOUNT_TABLE {
        let bytes = layout.refcount_bytes();
        return Err(fault(
            format!("a refcount table of {bytes} bytes is longer than any image needs"),
            CHECK,
        ));
    }
    // The extensions end where the backing file's name begins.
    let room = match field64(8) {
        0 => layout.cluster(),
        name if name < header_bytes.into() => {
            return Err(fault("its backing file's name is inside its header", CHECK));
        }
        name => name.min(layout.cluster()),
    };
    let bitmaps = extensions(&header, header_bytes, room)?;
    let up_to_date = version == 3 && field64(88) & 1 != 0;
    if up_to_date && bitmaps.is_none() {
        return Err(fault("its header says two things of its bitmaps", CHECK));
    }
    Ok(Layout {
        bitmaps: bitmaps.filter(|_| up_to_date),
        ..layout
    })
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

/// Looks at the extensions of the header, which lie from `start` on and before `end`; returns that
/// of the bitmaps.
fn extensions(header: &[u8], start: u32, end: u64) -> Result<Option<Bitmaps>, Fault> {
    let wrong = |what: &str| Err(fault(what, CHECK));
    let mut bitmaps = None;
    let mut at = start as usize;
    while (at as u64) < end {
        let data = at.saturating_add(8);
        let number = |at: usize| be32(header, at);
        let (Some(kind), Some(len)) = (number(at), number(at.saturating_add(4))) else {
            // The library does not look further than this either.
            break;
        };
        if (data as u64).saturating_add(len.into()) > end {
            return wrong("its header has an extension that does not fit into it");
        }
        if kind == EXTENSION_END {
            break;
        }
        if kind == EXTENSION_FEATURE_NAMES && !len.is_multiple_of(FEATURE_NAME_BYTES) {
            return wrong("its table of features is damaged");
        }
        if kind == EXTENSION_ENCRYPTION || (kind == EXTENSION_BACKING_FORMAT && len >= 16) {
            return wrong("its header has a damaged extension");
        }
        if kind == EXTENSION_BITMAPS {
            let number = |offset: usize| be64(header, data.saturating_add(offset)).unwrap_or(0);
            let count = be32(header, data).unwrap_or(0);
            let reserved = be32(header, data.saturating_add(4)).unwrap_or(0);
            if len != 24 || reserved != 0 || bitmaps.is_some() {
                return wrong("its header has a damaged extension for bitmaps");
            }
            bitmaps = Some(Bitmaps {
                at: number(16),
                bytes: number(8),
                count,
            });
        }
        let padded = (len as usize).div_ceil(8).saturating_mul(8);
        at = data.saturating_add(padded);
    }
    Ok(bitmaps)
}
