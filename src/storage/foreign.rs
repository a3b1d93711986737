//! Disk images in formats that are not ours, and what else is no disk by itself: told by their
//! content, or else by their name.
//!
//! Such a file must never be taken for a raw image. A guest would find nonsense on it and then write
//! over it; a conversion would give a copy of the nonsense, and call that a success. So where the
//! user has not said a format, a file that is known here is refused, with the command that makes an
//! image of it that can be used. Whoever says `format=raw` gets the bytes as they are.
//!
//! What a guest may well put at the beginning of its raw disk is not in the table: a partition
//! table, a file system, LUKS, LVM, an ISO, a squashfs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::aligned;
use super::format::QCOW2_MAGIC;

/// What a format is known by.
#[derive(Debug, Clone, Copy)]
enum Mark {
    /// These bytes at this offset.
    At(u64, &'static [u8]),
    /// The same, in capital or small letters.
    Text(u64, &'static [u8]),
    /// These bytes so far before the end of the file.
    BeforeEnd(u64, &'static [u8]),
}

/// What to do with a file of a format.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// qemu-img reads it, by this name.
    QemuImg(&'static str),
    /// A command that writes what is inside to its standard output.
    Unpack(&'static str),
    /// Something else, in words.
    Words(&'static str),
}

/// A format that is not ours.
#[derive(Debug)]
pub struct Foreign {
    /// With its article: `a VMDK image`.
    pub name: &'static str,
    extensions: &'static [&'static str],
    marks: &'static [Mark],
    way: Way,
}

/// How much of a file's beginning is looked at. All [`Mark`]s at the beginning lie in it.
const HEAD: usize = 1024;
/// How much of its end is looked at.
const TAIL: u64 = 512;

use Mark::{At, BeforeEnd, Text};
use Way::{QemuImg, Unpack, Words};

/// Magic numbers are those of QEMU (block/*.c) and of file(1).
static FORMATS: &[Foreign] = &[
    Foreign {
        name: "a VMDK image",
        extensions: &["vmdk"],
        marks: &[
            At(0, b"KDMV"),
            At(0, b"COWD"),
            Text(0, b"# Disk DescriptorFile"),
        ],
        way: QemuImg("vmdk"),
    },
    Foreign {
        name: "a VDI image",
        extensions: &["vdi"],
        marks: &[At(0x40, b"\x7f\x10\xda\xbe")],
        way: QemuImg("vdi"),
    },
    Foreign {
        name: "a VHDX image",
        extensions: &["vhdx", "avhdx"],
        marks: &[At(0, b"vhdxfile")],
        way: QemuImg("vhdx"),
    },
    Foreign {
        // One of fixed size has its header at the end alone; that of an old Virtual PC is a byte shorter.
        name: "a VHD image",
        extensions: &["vhd", "avhd", "vpc"],
        marks: &[
            At(0, b"conectix"),
            BeforeEnd(512, b"conectix"),
            BeforeEnd(511, b"conectix"),
        ],
        way: QemuImg("vpc"),
    },
    Foreign {
        name: "a QED image",
        extensions: &["qed"],
        marks: &[At(0, b"QED\0")],
        way: QemuImg("qed"),
    },
    Foreign {
        name: "a Parallels image",
        extensions: &["hdd", "hds"],
        marks: &[At(0, b"WithoutFreeSpace"), At(0, b"WithouFreSpacExt")],
        way: QemuImg("parallels"),
    },
    Foreign {
        name: "a qcow image of version 1",
        extensions: &["qcow"],
        marks: &[At(0, b"QFI\xfb\0\0\0\x01")],
        way: QemuImg("qcow"),
    },
    Foreign {
        name: "a DMG image",
        extensions: &["dmg"],
        marks: &[BeforeEnd(512, b"koly"), At(0, b"koly\0\0\0\x04")],
        way: QemuImg("dmg"),
    },
    Foreign {
        name: "a Bochs image",
        extensions: &[],
        marks: &[At(0, b"Bochs Virtual HD Image")],
        way: QemuImg("bochs"),
    },
    Foreign {
        name: "a cloop image",
        extensions: &["cloop"],
        marks: &[At(0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop")],
        way: QemuImg("cloop"),
    },
    Foreign {
        name: "an Apple sparse image",
        extensions: &["sparseimage"],
        marks: &[At(0, b"sprs\0\0\0\x03")],
        way: Words("make a raw image of it on a Mac: hdiutil convert -format UDTO"),
    },
    Foreign {
        name: "an Android sparse image",
        extensions: &["simg"],
        marks: &[At(0, b"\x3a\xff\x26\xed\x01\0")],
        way: Words("make a raw image of it: simg2img (package android-sdk-libsparse-utils)"),
    },
    Foreign {
        name: "a Windows image archive (WIM)",
        extensions: &["wim", "esd", "swm"],
        marks: &[At(0, b"MSWIM\0\0\0"), At(0, b"WLPWM\0\0\0")],
        way: Words(
            "it holds files and no disk; take them out with wimlib-imagex (package wimtools)",
        ),
    },
    Foreign {
        name: "an EnCase image",
        extensions: &["e01", "ex01"],
        marks: &[
            At(0, b"EVF\x09\x0d\x0a\xff\0"),
            At(0, b"EVF2\x0d\x0a\x81\0"),
        ],
        way: Words("make a raw image of it: ewfexport (package ewf-tools)"),
    },
    Foreign {
        name: "a partclone image",
        extensions: &[],
        marks: &[At(0, b"partclone-image")],
        way: Words("write it to a raw image: partclone.restore"),
    },
    Foreign {
        name: "compressed with gzip",
        extensions: &["gz", "tgz"],
        marks: &[At(0, b"\x1f\x8b\x08")],
        way: Unpack("gzip -dc"),
    },
    Foreign {
        name: "compressed with xz",
        extensions: &["xz", "txz"],
        marks: &[At(0, b"\xfd7zXZ\0")],
        way: Unpack("xz -dc"),
    },
    Foreign {
        name: "compressed with zstd",
        extensions: &["zst", "zstd"],
        marks: &[At(0, b"\x28\xb5\x2f\xfd")],
        way: Unpack("zstd -dc"),
    },
    Foreign {
        name: "compressed with bzip2",
        extensions: &["bz2", "tbz2"],
        marks: &[At(4, b"\x31\x41\x59\x26\x53\x59")],
        way: Unpack("bzip2 -dc"),
    },
    Foreign {
        name: "compressed with lz4",
        extensions: &["lz4"],
        marks: &[At(0, b"\x04\x22\x4d\x18")],
        way: Unpack("lz4 -dc"),
    },
    Foreign {
        name: "compressed with lzip",
        extensions: &["lz"],
        marks: &[At(0, b"LZIP\x01")],
        way: Unpack("lzip -dc"),
    },
    Foreign {
        name: "compressed with lzop",
        extensions: &["lzo"],
        marks: &[At(0, b"\x89LZO\0\x0d\x0a\x1a\x0a")],
        way: Unpack("lzop -dc"),
    },
    Foreign {
        name: "a ZIP archive",
        extensions: &["zip"],
        marks: &[At(0, b"PK\x03\x04")],
        way: Words("take the disk out of it with unzip"),
    },
    Foreign {
        name: "a 7z archive",
        extensions: &["7z"],
        marks: &[At(0, b"7z\xbc\xaf\x27\x1c")],
        way: Words("take the disk out of it with 7z x"),
    },
    Foreign {
        name: "a RAR archive",
        extensions: &["rar"],
        marks: &[At(0, b"Rar!\x1a\x07")],
        way: Words("take the disk out of it with unrar x"),
    },
    Foreign {
        // An OVA is one, with a VMDK image inside.
        name: "a tar archive",
        extensions: &["tar", "ova"],
        marks: &[At(257, b"ustar")],
        way: Words("take the disk out of it with tar -x; in an OVA that is a VMDK image"),
    },
];

/// What a file is, by its content.
///
/// # Errors
/// Those of the host.
pub fn by_content(file: &File, len: u64) -> io::Result<Option<&'static Foreign>> {
    let head = aligned::read(file, 0, HEAD)?;
    // The end of a qcow2 image is data of a guest's, who may keep a VHD image there. It says nothing.
    let tail = match head.starts_with(QCOW2_MAGIC) {
        true => Vec::new(),
        false => aligned::read(file, len.saturating_sub(TAIL), TAIL as usize)?,
    };
    Ok(FORMATS
        .iter()
        .find(|format| format.marks.iter().any(|mark| mark.is_in(&head, &tail))))
}

/// What a file is, by its name.
pub fn by_name(path: &Path) -> Option<&'static Foreign> {
    let extension = path.extension()?;
    FORMATS.iter().find(|format| {
        let mut known = format.extensions.iter();
        known.any(|known| extension.eq_ignore_ascii_case(known))
    })
}

impl Mark {
    fn is_in(&self, head: &[u8], tail: &[u8]) -> bool {
        match self {
            At(at, mark) => part(head, *at as usize, mark.len()) == Some(mark),
            Text(at, mark) => part(head, *at as usize, mark.len())
                .is_some_and(|bytes| bytes.eq_ignore_ascii_case(mark)),
            BeforeEnd(before, mark) => tail
                .len()
                .checked_sub(*before as usize)
                .and_then(|at| part(tail, at, mark.len()))
                .is_some_and(|bytes| bytes == *mark),
        }
    }
}

fn part(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

impl Foreign {
    /// Whether it is a disk image, and no archive or packed file.
    pub fn is_disk(&self) -> bool {
        matches!(self.way, QemuImg(_))
    }

    /// How to make an image of the file at `path` that can be used.
    pub fn way_out(&self, path: &Path) -> String {
        let from = shell_word(&path.display().to_string());
        match self.way {
            QemuImg(format) => {
                let to = shell_word(&beside(path, path.with_extension("qcow2")));
                format!("make one: qemu-img convert -f {format} -O qcow2 {from} {to}")
            }
            Unpack(command) => {
                let inside = path.with_extension("");
                let to = match inside.extension() {
                    Some(_) => inside,
                    None => path.with_extension("img"),
                };
                let to = shell_word(&beside(path, to));
                format!("unpack it: {command} {from} > {to}")
            }
            Words(words) => words.into(),
        }
    }
}

/// The name of a new file beside `path`: `wanted`, if that is another one. A command that writes to
/// the file that it reads would destroy it.
fn beside(path: &Path, wanted: PathBuf) -> String {
    let new = match wanted == path {
        false => wanted,
        true => {
            let mut name = std::ffi::OsString::from("new-");
            name.push(path.file_name().unwrap_or_default());
            path.with_file_name(name)
        }
    };
    new.display().to_string()
}

/// `text` as a shell takes it for one word.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    match !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        true => text.into(),
        false if text.starts_with('-') => format!("'./{}'", text.replace('\'', r"'\''")),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file_with(at: u64, bytes: &[u8], len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file.write_all_at(bytes, at).unwrap();
        file
    }

    #[test]
    fn every_mark_is_found_and_nothing_else_is() {
        for format in FORMATS {
            for mark in format.marks {
                let (at, bytes) = match *mark {
                    At(at, bytes) | Text(at, bytes) => (at, bytes),
                    BeforeEnd(before, bytes) => (8192 - before, bytes),
                };
                assert!(at + bytes.len() as u64 <= HEAD as u64 || at >= 8192 - TAIL);
                let file = file_with(at, bytes, 8192);
                let found = by_content(&file, 8192).unwrap().map(|f| f.name);
                assert_eq!(found, Some(format.name), "{mark:?}");
                let len = at + bytes.len() as u64 - 1;
                file.set_len(len).unwrap();
                assert!(by_content(&file, len).unwrap().is_none(), "cut: {mark:?}");
            }
        }
        for (at, bytes) in [
            (510, &b"\x55\xaa"[..]),    // a partition table
            (1080, b"\x53\xef"),        // ext4
            (0, b"LUKS\xba\xbe\0\x02"), // the guest's own encryption
            (0, b"hsqs"),               // squashfs
            (0x8001, b"CD001"),         // ISO 9660
            (512, b"LABELONE"),         // LVM
            (0, b"QFI\xfb\0\0\0\x03"),  // ours
        ] {
            let file = file_with(at, bytes, 65536);
            let found = by_content(&file, 65536).unwrap().map(|f| f.name);
            assert_eq!(found, None, "{bytes:?} at {at}");
        }
    }

    #[test]
    fn no_two_formats_have_a_name_in_common() {
        let mut all: Vec<_> = FORMATS.iter().flat_map(|f| f.extensions).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        let name = |path: &str| by_name(Path::new(path)).map(|f| f.name);
        assert_eq!(name("a/b.VMDK"), Some("a VMDK image"));
        assert_eq!(name("debian.raw.xz"), Some("compressed with xz"));
        for ours in ["a.img", "a.raw", "a.qcow2", "a.iso", "vmdk", "a.vmdk.img"] {
            assert_eq!(name(ours), None, "{ours}");
        }
    }

    #[test]
    fn commands_can_be_pasted() {
        let way = |path: &str| by_name(Path::new(path)).unwrap().way_out(Path::new(path));
        assert_eq!(
            way("my disk's.vdi"),
            r"make one: qemu-img convert -f vdi -O qcow2 'my disk'\''s.vdi' 'my disk'\''s.qcow2'"
        );
        assert!(way("a.raw.gz").ends_with("gzip -dc a.raw.gz > a.raw"));
        assert!(way("a.zst").ends_with("> a.img"));
        assert!(way("-x.qed").contains("'./-x.qed'"));
    }

    #[test]
    fn no_command_writes_to_the_file_that_it_reads() {
        for name in ["disk.img", "disk.qcow2", "disk", "a/disk.img"] {
            for format in FORMATS {
                let way = format.way_out(Path::new(name));
                let words: Vec<_> = way.split(' ').filter(|word| *word == name).collect();
                assert!(words.len() <= 1, "{way}");
            }
        }
        let gzip = by_name(Path::new("x.gz")).unwrap();
        assert!(
            gzip.way_out(Path::new("a/b.img"))
                .ends_with("gzip -dc a/b.img > a/new-b.img")
        );
    }

    #[test]
    fn what_a_guest_writes_to_the_end_of_a_qcow2_image_is_not_looked_at() {
        let file = file_with(8192 - 512, b"conectix", 8192);
        assert!(by_content(&file, 8192).unwrap().is_some());
        file.write_all_at(b"QFI\xfb\0\0\0\x03", 0).unwrap();
        assert!(by_content(&file, 8192).unwrap().is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_looked_at(bytes in proptest::collection::vec(0u8.., 0..2000)) {
            let file = file_with(0, &bytes, bytes.len() as u64);
            let _ = by_content(&file, bytes.len() as u64).unwrap();
        }
    }
}
