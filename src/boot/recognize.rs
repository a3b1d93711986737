//! What a file is that was given for a kernel, an initrd or an ISO, and where it belongs: one table.
//!
//! Somebody who gives the wrong file, or the right ones in the wrong order, is told what the file
//! is. Only what is certain by its first bytes is in the table.

use std::io::Read;

use super::payload;
use super::setup;
use super::source::Source;
use crate::storage::foreign;

/// An ISO 9660 volume descriptor has this at 16 sectors of 2048 bytes, behind its type.
const ISO_MAGIC_AT: u64 = 16 * 2048 + 1;
const ISO_MAGIC: &[u8] = b"CD001";

/// What is done with a file of some kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A bootable kernel.
    Kernel,
    /// An initrd.
    Initrd,
    /// Compressed: an initrd, or a kernel that must be unpacked.
    Packed,
    /// A disk with a file system and no partitions; as an initrd it is the old kind.
    FileSystem,
    /// A disk image.
    Disk,
    /// A live system or an installer.
    Iso,
    /// Something else, with what its owner can do.
    Other(&'static str),
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// "a ...", for messages.
    pub what: &'static str,
    /// Where it belongs.
    pub belongs: Use,
}

const OTHER_PROCESSOR: Use = Use::Other("Bantam runs x86_64 guests: take the amd64 kernel package");
const KERNEL_FORMATS: &str = "give a vmlinux (ELF) or a bzImage, such as Debian's /boot/vmlinuz-*";
const PACKAGE: Use = Use::Other("unpack the kernel with 'dpkg -x PACKAGE FOLDER'");
const ARCHIVE: Use = Use::Other("unpack it, and give the kernel or disk image that is in it");

/// Offset, bytes there, what it is.
const MAGICS: &[(usize, &[u8], &str, Use)] = &[
    (0x38, b"ARM\x64", "an arm64 Image", OTHER_PROCESSOR),
    (0x38, b"RSC\x05", "a RISC-V Image", OTHER_PROCESSOR),
    (0, b"070701", "a cpio archive (an initramfs)", Use::Initrd),
    (0, b"070702", "a cpio archive (an initramfs)", Use::Initrd),
    (0, b"\x1f\x8b", "gzip-compressed data", Use::Packed),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data", Use::Packed),
    (0, b"\xfd7zXZ\0", "xz-compressed data", Use::Packed),
    (0, b"\x02\x21\x4c\x18", "lz4-compressed data", Use::Packed),
    (0, b"BZh", "bzip2-compressed data", Use::Packed),
    (0, b"\x5d\0\0", "lzma-compressed data", Use::Packed),
    (0, b"\x89LZO", "lzo-compressed data", Use::Packed),
    (0, b"QFI\xfb", "a qcow2 disk image", Use::Disk),
    (0x200, b"EFI PART", "a disk image with a GPT", Use::Disk),
    (
        0x438,
        b"\x53\xef",
        "an ext2, ext3 or ext4 file system",
        Use::FileSystem,
    ),
    (0, b"hsqs", "a squashfs file system", Use::FileSystem),
    (0, b"XFSB", "an XFS file system", Use::FileSystem),
    (
        0x400,
        b"\xe2\xe1\xf5\xe0",
        "an EROFS file system",
        Use::FileSystem,
    ),
    (0, b"!<arch>\n", "a Debian package or ar archive", PACKAGE),
    (
        0,
        b"\xed\xab\xee\xdb",
        "an RPM package",
        Use::Other("unpack the kernel with 'rpm2cpio PACKAGE | cpio -id'"),
    ),
    (0, b"PK\x03\x04", "a zip archive", ARCHIVE),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", ARCHIVE),
    (0x101, b"ustar", "a tar archive", ARCHIVE),
    (0, b"#!", "a script", Use::Other(KERNEL_FORMATS)),
    (
        0,
        b"<!DOCTYPE",
        "a web page",
        Use::Other("the download went wrong: get the file itself"),
    ),
    (
        0,
        b"<!doctype",
        "a web page",
        Use::Other("the download went wrong: get the file itself"),
    ),
    (
        0,
        b"<html",
        "a web page",
        Use::Other("the download went wrong: get the file itself"),
    ),
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer",
        Use::Other("'git lfs pull' gets the file itself"),
    ),
    (
        0,
        b"-----BEGIN PGP",
        "a signature",
        Use::Other("give the file that was signed"),
    ),
    (
        0,
        b"MZ",
        "a PE or EFI program without a Linux setup header",
        Use::Other(KERNEL_FORMATS),
    ),
    (0x1fe, b"\x55\xaa", "a boot sector or disk image", Use::Disk),
    (
        0,
        b"\0\0\0\0\0\0\0\0",
        "all zeros at its start",
        Use::Other(KERNEL_FORMATS),
    ),
];

impl Kind {
    /// What `source` is; `None` where nothing is known of it.
    pub fn of(source: &Source) -> Option<Kind> {
        let start = source.read_up_to(0, 0x800);
        let kind = |what, belongs| Some(Kind { what, belongs });
        // An ISO that can be put on a USB stick as well begins with a boot sector.
        if source.read_up_to(ISO_MAGIC_AT, ISO_MAGIC.len()) == ISO_MAGIC {
            return kind("an ISO image", Use::Iso);
        }
        if setup::recognize(&start) {
            return kind("a kernel (a bzImage)", Use::Kernel);
        }
        if start.starts_with(b"\x7fELF") {
            return kind("an ELF file (a kernel or program)", Use::Kernel);
        }
        let known = MAGICS.iter().find(|(at, magic, ..)| {
            let there = start.get(*at..);
            there.is_some_and(|bytes| bytes.starts_with(magic))
        });
        match known {
            Some((_, _, what, belongs)) => kind(what, *belongs),
            // A file inside of an ISO is no disk image.
            None if source.start() != 0 => None,
            None => match foreign::by_content(source.file(), source.len()) {
                Ok(Some(format)) if format.is_disk() => kind(format.name, Use::Disk),
                _ => None,
            },
        }
    }

    /// The same, with a look at what is inside of compressed data. That takes memory, so it is for
    /// what cannot be used anyway.
    pub fn of_content(source: &Source) -> Option<Kind> {
        let kind = Kind::of(source)?;
        if kind.belongs != Use::Packed {
            return Some(kind);
        }
        let start = source.read_up_to(0, 0x800);
        match first_unpacked(&start) {
            Some(bytes) if bytes.starts_with(b"07070") => Some(Kind {
                what: "a compressed cpio archive (an initramfs)",
                belongs: Use::Initrd,
            }),
            _ => Some(kind),
        }
    }

    /// What its owner can do who has given it for a kernel.
    pub fn help_for_kernel(self, path: &std::path::Path) -> String {
        let path = path.display();
        match self.belongs {
            Use::Kernel => KERNEL_FORMATS.into(),
            Use::Initrd => "use --initrd for it, and give a kernel as well".into(),
            Use::Packed => {
                "if it is a compressed vmlinux, unpack it; if an initrd, use --initrd".into()
            }
            Use::FileSystem | Use::Disk => {
                "attach it with --disk, and give a kernel as well".into()
            }
            Use::Iso => format!("use --iso: 'bantam run --iso {path}' boots the kernel in it"),
            Use::Other(help) => help.into(),
        }
    }

    /// What its owner can do who has given it for an initrd; `None` where it may be one.
    pub fn help_for_initrd(self, path: &std::path::Path) -> Option<String> {
        match self.belongs {
            Use::Kernel => Some(format!(
                "a kernel stands alone or behind --kernel: 'bantam run {} --initrd INITRD'",
                path.display()
            )),
            Use::Initrd | Use::Packed | Use::FileSystem => None,
            Use::Disk => Some("attach it with --disk".into()),
            Use::Iso => Some(self.help_for_kernel(path)),
            // Whatever begins with zeros.
            Use::Other(_) if self.what.starts_with("all zeros") => None,
            Use::Other(_) => Some("give an initramfs, such as Debian's /boot/initrd.img-*".into()),
        }
    }
}

/// Some bytes of what `packed` is the beginning of.
fn first_unpacked(packed: &[u8]) -> Option<Vec<u8>> {
    const ENOUGH: u64 = 16;
    let mut bytes = Vec::new();
    // Each fails at the end of the piece that was read; what came before is all that is wanted.
    let mut take = |decoder: &mut dyn Read| decoder.take(ENOUGH).read_to_end(&mut bytes).is_ok();
    let read = if packed.starts_with(b"\x1f\x8b") {
        take(&mut flate2::read::GzDecoder::new(packed))
    } else if packed.starts_with(b"\xfd7zXZ\0") {
        take(&mut payload::xz(packed))
    } else if packed.starts_with(b"\x28\xb5\x2f\xfd") {
        take(&mut payload::zstd(packed).ok()?)
    } else {
        false
    };
    (read || !bytes.is_empty()).then_some(bytes)
}
