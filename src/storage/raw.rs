//! A raw image: byte n of the disk is byte n of a file or block device.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::lock::{self, Access};
use super::{IoBuffers, SECTOR_BYTES, Storage};
use crate::error::{Help, io_reason};

/// Why a disk image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// open(2) refused.
    #[error("disk {}: {}", path.display(), io_reason(source))]
    Open {
        /// The image.
        path: PathBuf,
        /// Whether it was to be written as well.
        read_only: bool,
        /// The host's reason.
        source: io::Error,
    },
    /// Not a regular file or block device.
    #[error("disk {} is {what}, not an image file or block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Empty, or a length that does not divide into sectors.
    #[error("disk {} is {len} bytes long, which is not a multiple of {SECTOR_BYTES}", path.display())]
    Length {
        /// The image.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// No sectors at all.
    #[error("disk {} is empty", path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// A lock is held.
    #[error("disk {} is in use by another machine{}", path.display(), if *read_only { " that may write to it" } else { "" })]
    Locked {
        /// The image.
        path: PathBuf,
        /// Whether this machine only wanted to read.
        read_only: bool,
    },
}

impl Help for OpenError {
    fn help(&self) -> String {
        match self {
            OpenError::Open {
                source, read_only, ..
            } if source.kind() == io::ErrorKind::PermissionDenied
                || source.kind() == io::ErrorKind::ReadOnlyFilesystem =>
            {
                if *read_only {
                    "give yourself read access to it (ls -l shows who has)".into()
                } else {
                    "add ',ro' to attach it read-only, or give yourself write access".into()
                }
            }
            OpenError::Open { .. } => {
                "check the path; 'truncate -s 1G disk.img' makes an empty raw image".into()
            }
            OpenError::Kind { .. } => "give the path of a raw image or of a block device".into(),
            OpenError::Length { path, len } => format!(
                "if it is a raw image that lost its end, 'truncate -s {} {}' pads it with zeros",
                len.next_multiple_of(SECTOR_BYTES),
                path.display()
            ),
            OpenError::Empty { path } => {
                format!("'truncate -s 1G {}' gives it a size", path.display())
            }
            OpenError::Locked {
                read_only: false, ..
            } => "stop the other machine, or attach the image with ',ro' to both".into(),
            OpenError::Locked { .. } => {
                "stop the other machine, or attach the image with ',ro' there as well".into()
            }
        }
    }
}

/// A raw image, open and locked.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    len: u64,
    identity: (u64, u64),
}

impl RawDisk {
    /// Opens and locks the image at `path`.
    ///
    /// # Errors
    /// Says which file and what to do about it, see [`OpenError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OpenError> {
        let refused = |source| OpenError::Open {
            path: path.into(),
            read_only,
            source,
        };
        let kind = |what| {
            Err(OpenError::Kind {
                path: path.into(),
                what,
            })
        };
        // Look before the open: opening a FIFO would block, opening a tape or tty has effects.
        let meta = std::fs::metadata(path).map_err(refused)?;
        let file_type = meta.file_type();
        if file_type.is_dir() {
            return kind("a directory");
        }
        if file_type.is_fifo() || file_type.is_socket() {
            return kind("a pipe or socket");
        }
        if file_type.is_char_device() {
            return kind("a character device");
        }
        let file = File::options()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(refused)?;
        // Also right for block devices, whose metadata says 0.
        let len = (&file).seek(SeekFrom::End(0)).map_err(refused)?;
        if len == 0 {
            return Err(OpenError::Empty { path: path.into() });
        }
        if len % SECTOR_BYTES != 0 {
            return Err(OpenError::Length {
                path: path.into(),
                len,
            });
        }
        let access = if read_only {
            Access::Shared
        } else {
            Access::Exclusive
        };
        match lock::try_lock(&file, access) {
            Ok(true) => {}
            Ok(false) => {
                return Err(OpenError::Locked {
                    path: path.into(),
                    read_only,
                });
            }
            // A file system without locks (some network and FUSE ones): the user knows.
            Err(error) => log::warn!(
                "disk {}: no lock could be taken ({error}); nothing keeps a second writer away",
                path.display()
            ),
        }
        let meta = file.metadata().map_err(refused)?;
        let identity = (meta.dev(), meta.ino());
        Ok(RawDisk {
            file,
            len,
            identity,
        })
    }

    /// Device and inode number: the same for two paths of one image.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }
}

impl Storage for RawDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, buffers: &mut IoBuffers, offset: u64) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        buffers.drive(offset, |segments, at| {
            // SAFETY: every segment was checked to be guest RAM that `buffers` keeps mapped; the
            // kernel writes only into them, and guest RAM has no Rust references into it.
            unsafe { libc::preadv(fd, segments.as_ptr(), segments.len() as libc::c_int, at) }
        })
    }

    fn write_at(&mut self, buffers: &mut IoBuffers, offset: u64) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        buffers.drive(offset, |segments, at| {
            // SAFETY: as above; the kernel only reads from the segments.
            unsafe { libc::pwritev(fd, segments.as_ptr(), segments.len() as libc::c_int, at) }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    fn image(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn sectors_go_out_and_come_back() {
        let file = image(&[7; 4096]);
        let mut disk = RawDisk::open(file.path(), false).unwrap();
        let memory: Arc<GuestMemoryMmap> =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap());
        memory.write_slice(&[9; 512], GuestAddress(0x100)).unwrap();
        let mut buffers = IoBuffers::new(memory.clone());
        assert!(buffers.push(GuestAddress(0x100), 512));
        disk.write_at(&mut buffers, 1024).unwrap();
        disk.flush().unwrap();

        buffers.clear();
        assert!(buffers.push(GuestAddress(0x1000), 1000));
        assert!(buffers.push(GuestAddress(0x2000), 1048));
        disk.read_at(&mut buffers, 0).unwrap();
        let mut back = vec![0; 2048];
        memory
            .read_slice(&mut back[..1000], GuestAddress(0x1000))
            .unwrap();
        memory
            .read_slice(&mut back[1000..], GuestAddress(0x2000))
            .unwrap();
        assert!(back[..1024].iter().all(|&b| b == 7));
        assert!(back[1024..1536].iter().all(|&b| b == 9));
        assert!(back[1536..].iter().all(|&b| b == 7));
    }

    #[test]
    fn a_file_cut_short_at_run_time_is_an_error() {
        let file = image(&[7; 4096]);
        let mut disk = RawDisk::open(file.path(), true).unwrap();
        file.as_file().set_len(512).unwrap();
        let memory: Arc<GuestMemoryMmap> =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap());
        let mut buffers = IoBuffers::new(memory);
        assert!(buffers.push(GuestAddress(0), 4096));
        assert_eq!(
            disk.read_at(&mut buffers, 0).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            RawDisk::open(dir.path(), true),
            Err(OpenError::Kind { .. })
        ));
        assert!(matches!(
            RawDisk::open(&dir.path().join("none"), true),
            Err(OpenError::Open { .. })
        ));
        assert!(matches!(
            RawDisk::open(image(b"").path(), true),
            Err(OpenError::Empty { .. })
        ));
        assert!(matches!(
            RawDisk::open(image(&[0; 513]).path(), true),
            Err(OpenError::Length { len: 513, .. })
        ));
        assert!(matches!(
            RawDisk::open(Path::new("/dev/null"), true),
            Err(OpenError::Kind { .. })
        ));
    }

    #[test]
    fn two_writers_are_refused_and_two_readers_are_not() {
        let file = image(&[0; 512]);
        let writer = RawDisk::open(file.path(), false).unwrap();
        assert!(matches!(
            RawDisk::open(file.path(), true),
            Err(OpenError::Locked { .. })
        ));
        drop(writer);
        let _a = RawDisk::open(file.path(), true).unwrap();
        let _b = RawDisk::open(file.path(), true).unwrap();
    }
}
