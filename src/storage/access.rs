//! How an image is to be used, and its file, opened and locked for that.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::OpenError;
use super::format::Format;
use super::lock::{self, LockKind};

/// Whose memory writes go to first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// The host's page cache; FLUSH makes them durable.
    #[default]
    Writeback,
    /// None: O_DIRECT.
    Direct,
}

/// How to open an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// What is in the file.
    pub format: Format,
    /// The user has not said the format, so it comes from the name. Then it is an error if the content or
    /// the name speaks against it.
    pub guessed: bool,
    /// Not to be written.
    pub read_only: bool,
    /// Whether the host's page cache is used.
    pub cache: CacheMode,
    /// A qcow2 image may have a backing file.
    pub backing: bool,
    /// All is done that a start would do, but nothing in the image is touched (`--dry-run`).
    pub look_only: bool,
}

/// Opens a regular file or block device, and nothing else.
///
/// # Errors
/// See [`OpenError`].
pub fn open_file(path: &Path, access: Access) -> Result<File, OpenError> {
    let refused = |source| OpenError::Open {
        path: path.into(),
        read_only: access.read_only,
        source,
    };
    let kind = |what| {
        Err(OpenError::Kind {
            path: path.into(),
            what,
        })
    };
    // Look before the open: opening a FIFO would block, opening a tape or tty has effects.
    let file_type = std::fs::metadata(path).map_err(refused)?.file_type();
    if file_type.is_dir() {
        return kind("a directory");
    }
    if file_type.is_fifo() || file_type.is_socket() {
        return kind("a pipe or socket");
    }
    if file_type.is_char_device() {
        return kind("a character device");
    }
    let flags = match access.cache {
        CacheMode::Writeback => 0,
        CacheMode::Direct => libc::O_DIRECT,
    };
    OpenOptions::new()
        .read(true)
        .write(!access.read_only)
        .custom_flags(flags)
        .open(path)
        .map_err(|source| match (access.cache, source.raw_os_error()) {
            (CacheMode::Direct, Some(libc::EINVAL)) => OpenError::Direct {
                path: path.into(),
                source,
            },
            _ => refused(source),
        })
}

/// Locks the image in `file`: for a reader, others may read it as well; for a writer, nobody may.
///
/// # Errors
/// [`OpenError::Locked`].
pub fn take_lock(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    let kind = match read_only {
        true => LockKind::Shared,
        false => LockKind::Exclusive,
    };
    let mut taken = lock::try_lock(file, kind);
    let begin = Instant::now();
    while matches!(taken, Ok(false)) && begin.elapsed() < lock::ends_within(file) {
        std::thread::sleep(Duration::from_millis(1));
        taken = lock::try_lock(file, kind);
    }
    match taken {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenError::Locked {
            path: path.into(),
            pids: lock::holders(file),
            read_only,
        }),
        // Some network and FUSE file systems have no locks. The machine starts all the same, and a warning
        // says what is missing.
        Err(error) => {
            log::warn!(
                "disk {}: no lock could be taken ({error}); nothing keeps a second writer away",
                path.display()
            );
            Ok(())
        }
    }
}
