//! From a path to an [`Image`]: looked at, opened, locked.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::access::{Access, open_file, take_lock};
use super::aligned;
use super::error::OpenError;
use super::foreign::{self, Foreign};
use super::format::{Format, QCOW2_MAGIC};
use super::helper::Client;
use super::image::{Image, SECTOR_BYTES};
use super::raw::Raw;

/// An image, open and locked.
pub struct Opened {
    /// Its content.
    pub image: Arc<dyn Image>,
    /// Device and inode number: the same for two paths of one image.
    pub identity: (u64, u64),
    /// Holds the lock.
    pub locked: File,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Opens and locks the image at `path`.
///
/// # Errors
/// Says which file and what to do about it, see [`OpenError`].
pub fn open(path: &Path, access: Access) -> Result<Opened, OpenError> {
    open_as(path, access, "disk")
}

/// The same for the disk called `name`, for which the process is named that reads a qcow2 image. This process should
/// have only one thread as yet, see [`helper::process`](super::helper::process).
///
/// # Errors
/// The same.
pub fn open_as(path: &Path, access: Access, name: &str) -> Result<Opened, OpenError> {
    let refused = |source| OpenError::Open {
        path: path.into(),
        read_only: access.read_only,
        source,
    };
    let locked = open_file(path, access)?;
    take_lock(&locked, path, access.read_only)?;
    // Also right for block devices, whose metadata says 0.
    let len = (&locked).seek(SeekFrom::End(0)).map_err(refused)?;
    if len == 0 {
        return Err(OpenError::Empty { path: path.into() });
    }
    let identity = identity_of(&locked).map_err(refused)?;
    // The file is opened a second time, for the requests. io_uring keeps its files for a moment after a
    // process has died and all of its requests have ended, and the lock must not stay held for that long.
    let only_read = Access {
        read_only: access.read_only || access.look_only,
        ..access
    };
    let file = open_file(path, only_read)?;
    if identity_of(&file).map_err(refused)? != identity {
        return Err(refused(io::Error::other(
            "it was replaced while it was opened",
        )));
    }
    check_content(&file, path, len, access)?;
    let image: Arc<dyn Image> = match access.format {
        Format::Raw => {
            whole_sectors(path, len)?;
            warn_of_header(&file, path);
            let raw = Raw::new(file, len, access.cache).map_err(|source| OpenError::Direct {
                path: path.into(),
                source,
            })?;
            Arc::new(raw)
        }
        Format::Qcow2 => Arc::new(Client::open(file, &locked, path, access, name)?),
    };
    Ok(Opened {
        image,
        identity,
        locked,
    })
}

/// Whether the content is what `access` takes it for, as far as that can be told.
///
/// # Errors
/// [`OpenError::Foreign`], [`OpenError::Unnamed`]. A file that cannot be read is another's error.
pub fn check_content(file: &File, path: &Path, len: u64, access: Access) -> Result<(), OpenError> {
    if !access.guessed && access.format == Format::Raw {
        return Ok(());
    }
    match (content(file, len), access.format) {
        (Content::Foreign(format), _) => Err(OpenError::Foreign {
            path: path.into(),
            format,
            named: false,
        }),
        (Content::Qcow2, Format::Raw) => Err(OpenError::Unnamed { path: path.into() }),
        (Content::Unknown, Format::Raw) => match foreign::by_name(path) {
            None => Ok(()),
            Some(format) => Err(OpenError::Foreign {
                path: path.into(),
                format,
                named: true,
            }),
        },
        // If this is no qcow2 image, the reader of its header says so, and says what is wrong.
        (_, Format::Qcow2) => Ok(()),
    }
}

/// What the bytes of a file look like.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// Ours, whatever its name is.
    Qcow2,
    /// Not ours.
    Foreign(&'static Foreign),
    /// Nothing that is known: a raw image.
    Unknown,
}

/// Looks at the beginning and the end of `file`. One that cannot be read is unknown: whoever needs
/// it will say why.
pub fn content(file: &File, len: u64) -> Content {
    match foreign::by_content(file, len) {
        Ok(Some(format)) => Content::Foreign(format),
        _ if is_qcow2(file) => Content::Qcow2,
        _ => Content::Unknown,
    }
}

/// Whether the file begins as a qcow2 image does.
fn is_qcow2(file: &File) -> bool {
    aligned::read(file, 0, 4).is_ok_and(|magic| magic == QCOW2_MAGIC)
}

fn identity_of(file: &File) -> io::Result<(u64, u64)> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

fn whole_sectors(path: &Path, len: u64) -> Result<(), OpenError> {
    match len % SECTOR_BYTES {
        0 => Ok(()),
        _ => Err(OpenError::Length {
            path: path.into(),
            len,
        }),
    }
}

/// A qcow2 header in a disk that is used as raw may be a guest's doing, or the user's oversight.
fn warn_of_header(file: &File, path: &Path) {
    if is_qcow2(file) {
        log::warn!(
            "disk {} begins like a qcow2 image but is used as raw; 'format=qcow2' if it is one",
            path.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::access::CacheMode;
    use std::io::Write;

    const RW: Access = Access {
        format: Format::Raw,
        guessed: false,
        read_only: false,
        cache: CacheMode::Writeback,
        backing: false,
        look_only: false,
    };

    fn open_with(path: &Path, read_only: bool) -> Result<Opened, OpenError> {
        open(path, Access { read_only, ..RW })
    }

    fn image(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            open_with(dir.path(), true),
            Err(OpenError::Kind { .. })
        ));
        assert!(matches!(
            open_with(&dir.path().join("none"), true),
            Err(OpenError::Open { .. })
        ));
        assert!(matches!(
            open_with(image(b"").path(), true),
            Err(OpenError::Empty { .. })
        ));
        assert!(matches!(
            open_with(image(&[0; 513]).path(), true),
            Err(OpenError::Length { len: 513, .. })
        ));
        assert!(matches!(
            open_with(Path::new("/dev/null"), true),
            Err(OpenError::Kind { .. })
        ));
    }

    #[test]
    fn formats_come_from_names_and_never_from_content() {
        for (name, format) in [
            ("a.qcow2", Format::Qcow2),
            ("a.QCOW2", Format::Qcow2),
            ("a.img", Format::Raw),
            ("qcow2", Format::Raw),
            ("a.qcow2.img", Format::Raw),
        ] {
            assert_eq!(Format::of_name(Path::new(name)), format, "{name}");
        }
        let mut header = [0; 512];
        header[..4].copy_from_slice(b"QFI\xfb");
        let file = image(&header);
        assert_eq!(open_with(file.path(), true).unwrap().image.len(), 512);
        let guess = Access {
            guessed: true,
            ..RW
        };
        assert!(matches!(
            open(file.path(), guess),
            Err(OpenError::Unnamed { .. })
        ));
    }

    #[test]
    fn two_writers_are_refused_and_two_readers_are_not() {
        let file = image(&[0; 512]);
        let writer = open_with(file.path(), false).unwrap();
        let refused = open_with(file.path(), true).unwrap_err();
        let ours = std::process::id();
        assert!(
            matches!(&refused, OpenError::Locked { pids, .. } if *pids == [ours]),
            "{refused}"
        );
        drop(writer);
        let _a = open_with(file.path(), true).unwrap();
        let _b = open_with(file.path(), true).unwrap();
    }
}
