//! Image locks: one writer, or any number of readers.
//!
//! Open file description locks (fcntl(2), F_OFD_SETLK) belong to the open file: they end with the
//! last file descriptor, however the process ends, and two disks of one machine exclude each other
//! just as two machines do.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What the holder of the lock may do with the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it; others may read it as well.
    Shared,
    /// Write it; nobody else may have it open under a lock.
    Exclusive,
}

/// Takes the lock; `Ok(false)` when somebody else holds one that excludes it.
///
/// # Errors
/// Those of fcntl(2) other than the lock being held.
pub fn try_lock(file: &File, access: Access) -> io::Result<bool> {
    let kind = match access {
        Access::Shared => libc::F_RDLCK,
        Access::Exclusive => libc::F_WRLCK,
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
        assert!(try_lock(&a, Access::Shared).unwrap());
        assert!(try_lock(&b, Access::Shared).unwrap());
        assert!(!try_lock(&c, Access::Exclusive).unwrap());
        drop((a, b));
        assert!(try_lock(&c, Access::Exclusive).unwrap());
        assert!(!try_lock(&open(), Access::Shared).unwrap());
    }
}
