//! Image locks: one writer, or any number of readers.
//!
//! Open file description locks (fcntl(2), F_OFD_SETLK) belong to the open file: they end with the
//! last file descriptor, however the process ends, and two disks of one machine exclude each other
//! just as two machines do.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the holder of the lock may do with the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Read it; others may read it as well.
    Shared,
    /// Write it; nobody else may have it open under a lock.
    Exclusive,
}

/// Takes the lock; `Ok(false)` when somebody else holds one that excludes it.
///
/// # Errors
/// Those of fcntl(2) other than the lock being held.
pub fn try_lock(file: &File, kind: LockKind) -> io::Result<bool> {
    let kind = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    };
    let request = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0, // to the end, however far that moves
        l_pid: 0, // required to be 0 for OFD locks
    };
    // SAFETY: F_OFD_SETLK reads one `struct flock` through a pointer that is valid for the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// The processes that hold a lock on `file`. A lock of an open file description has no owner that
/// fcntl(2) would tell of; but each process's `fdinfo` names the locks of its open files. Those of
/// other users' processes cannot be read.
pub fn holders(file: &File) -> Vec<u32> {
    let Ok(meta) = file.metadata() else {
        return Vec::new();
    };
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let mut pids: Vec<u32> = names(Path::new("/proc"))
        .filter_map(|name| name.parse().ok())
        .filter(|pid| {
            let folder = format!("/proc/{pid}/fdinfo");
            names(Path::new(&folder)).any(|fd| {
                std::fs::read_to_string(format!("{folder}/{fd}"))
                    .is_ok_and(|info| info.lines().any(|line| is_lock_on(line, &place)))
            })
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// `lock:  1: OFDLCK  ADVISORY  WRITE -1 08:01:1234 0 EOF`
fn is_lock_on(line: &str, place: &str) -> bool {
    line.starts_with("lock:") && line.split_whitespace().any(|word| word == place)
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writer_or_many_readers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .open(file.path())
                .unwrap()
        };
        let (a, b, c) = (open(), open(), open());
        assert!(try_lock(&a, LockKind::Shared).unwrap());
        assert!(try_lock(&b, LockKind::Shared).unwrap());
        assert!(!try_lock(&c, LockKind::Exclusive).unwrap());
        drop((a, b));
        assert!(try_lock(&c, LockKind::Exclusive).unwrap());
        assert!(!try_lock(&open(), LockKind::Shared).unwrap());
    }
}
