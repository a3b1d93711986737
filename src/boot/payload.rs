//! The vmlinux inside a bzImage, unpacked on the host.
//!
//! Decompressors are libraries, and all of them are written in Rust: the bytes are a stranger's, and a
//! decoder in C would be one more place where they could overwrite memory of ours. What is ours is the bound: a few
//! kilobytes of crafted input can claim to unpack to any size.

use std::io::{self, Read};

use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::StreamingDecoder;

use super::bzimage::{BzImage, Compression};
use super::source::Source;

/// No kernel unpacks to more. Debian's has about 60 MiB.
pub const MAX_UNPACKED: u64 = 512 << 20;
/// The kernel's own decoder takes windows of up to 128 MiB.
const ZSTD_WINDOW: u64 = 128 << 20;
/// What a decoder of xz or LZMA may need, in KiB: a dictionary as large as the largest kernel, and its tables.
const XZ_KIB: u32 = (MAX_UNPACKED >> 10) as u32 + (64 << 10);
/// Linux packs LZ4 in blocks of 8 MiB (the legacy frame format of lz4_Frame_format.md).
const LZ4_BLOCK: usize = 8 << 20;

/// Why a payload cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The header names none.
    #[error("the setup header names no compressed kernel")]
    Absent,
    /// There is no decoder here.
    #[error("{0} compression is not known here")]
    Format(&'static str),
    /// The decoder's complaint.
    #[error("the compressed kernel is damaged: {0}")]
    Data(#[from] io::Error),
    /// More than any kernel.
    #[error("the compressed kernel unpacks to more than {} MiB", MAX_UNPACKED >> 20)]
    TooLarge,
}

/// Unpacks the vmlinux of `image`.
///
/// # Errors
/// See [`UnpackError`].
pub fn unpack(source: &Source, image: &BzImage) -> Result<Vec<u8>, UnpackError> {
    let Some((offset, len)) = image.setup.payload else {
        return Err(UnpackError::Absent);
    };
    if len > MAX_UNPACKED {
        return Err(UnpackError::TooLarge);
    }
    let len = len as usize; // at most 512 MiB
    let packed = source
        .read(offset, len)
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    unpack_bytes(&packed, image.compression)
}

/// Unpacks `packed`. The kernel's build appends the unpacked length to most formats; decoders stop
/// at the end of their stream and leave it.
fn unpack_bytes(packed: &[u8], compression: Compression) -> Result<Vec<u8>, UnpackError> {
    match compression {
        Compression::Gzip => bounded(flate2::read::GzDecoder::new(packed)),
        Compression::Xz => bounded(xz(packed)),
        Compression::Lzma => bounded(LzmaReader::new_mem_limit(packed, XZ_KIB, None)?),
        Compression::Zstd => bounded(zstd(packed)?),
        Compression::Lz4 => lz4_blocks(packed),
        Compression::None => Ok(packed.to_vec()),
        other => Err(UnpackError::Format(other.name())),
    }
}

/// What the xz stream at the beginning of `packed` unpacks to. Streams behind it are none of a kernel's.
pub(super) fn xz(packed: &[u8]) -> impl Read {
    XzReader::new_mem_limit(packed, false, XZ_KIB)
}

/// What the zstd frame at the beginning of `packed` unpacks to.
///
/// # Errors
/// When there is none, or it wants too large a window.
pub(super) fn zstd(packed: &[u8]) -> io::Result<impl Read> {
    StreamingDecoder::new_with_max_window_size(packed, ZSTD_WINDOW).map_err(io::Error::other)
}

fn bounded(decoder: impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut unpacked = Vec::new();
    decoder.take(MAX_UNPACKED + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > MAX_UNPACKED {
        return Err(UnpackError::TooLarge);
    }
    Ok(unpacked)
}

/// ```text
///   magic u32 │ length u32, LZ4 block │ length u32, LZ4 block │ ... │ unpacked length u32
/// ```
fn lz4_blocks(packed: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let damaged = |why: &str| UnpackError::Data(io::Error::other(why.to_owned()));
    let mut rest = packed.get(4..).unwrap_or_default();
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((len, after)) = rest.split_first_chunk() {
        let len = u32::from_le_bytes(*len) as usize;
        let Some((data, after)) = after.split_at_checked(len) else {
            // Less than a block is left: this was the unpacked length at the end.
            return if after.is_empty() && !unpacked.is_empty() {
                Ok(unpacked)
            } else {
                Err(damaged("a block is cut short"))
            };
        };
        let count = lz4_flex::block::decompress_into(data, &mut block)
            .map_err(|error| UnpackError::Data(io::Error::other(error)))?;
        unpacked.extend_from_slice(block.get(..count).unwrap_or_default());
        if unpacked.len() as u64 > MAX_UNPACKED {
            return Err(UnpackError::TooLarge);
        }
        rest = after;
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn gzip_and_xz_with_a_length_behind_them() {
        let text = b"vmlinux".repeat(10_000);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&text).unwrap();
        let mut packed = gz.finish().unwrap();
        packed.extend(70_000u32.to_le_bytes());
        assert_eq!(unpack_bytes(&packed, Compression::Gzip).unwrap(), text);
        let mut xz =
            lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        xz.write_all(&text).unwrap();
        let mut packed = xz.finish().unwrap();
        packed.extend(70_000u32.to_le_bytes());
        assert_eq!(unpack_bytes(&packed, Compression::Xz).unwrap(), text);
    }

    #[test]
    fn lz4_as_the_kernel_packs_it() {
        let text = b"vmlinux".repeat(2_000_000);
        let mut packed = b"\x02\x21\x4c\x18".to_vec();
        for part in text.chunks(LZ4_BLOCK) {
            let block = lz4_flex::block::compress(part);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        packed.extend((text.len() as u32).to_le_bytes());
        assert_eq!(unpack_bytes(&packed, Compression::Lz4).unwrap(), text);
        packed.truncate(packed.len() - 8);
        assert!(unpack_bytes(&packed, Compression::Lz4).is_err());
    }

    proptest::proptest! {
        #[test]
        fn damaged_payloads_are_errors(bytes in proptest::collection::vec(0u8.., 0..400)) {
            for (magic, compression) in [
                (&b"\x1f\x8b\x08"[..], Compression::Gzip),
                (b"\xfd7zXZ\0", Compression::Xz),
                (b"\x28\xb5\x2f\xfd", Compression::Zstd),
                (b"\x02\x21\x4c\x18", Compression::Lz4),
            ] {
                let mut packed = magic.to_vec();
                packed.extend(&bytes);
                let _ = unpack_bytes(&packed, compression);
            }
        }
    }
}
