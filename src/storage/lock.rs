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
use std::time::Duration;

/// What the name of a process begins with that reads an image for a VMM ([`helper`](super::helper)).
pub const HELPER_NAME: &str = "bantam: ";

/// What the holder of the lock may do with the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Read it; others may read it as well.
    Shared,
    /// Write it; nobody else may have it open under a lock.
    Exclusive,
}

/// QEMU's locks are on single bytes (block/file-posix.c): a process holds a read lock on byte 100 + p
/// for each permission p that it uses, and on byte 200 + p for each that it lets nobody else have.
/// The permissions to write and to resize are 1 and 3.
const QEMU: (i64, i64) = (100, 204);
const QEMU_USES: [i64; 2] = [101, 103];

/// Takes the lock; `Ok(false)` when somebody else holds one that excludes it, be it one of ours or
/// one of QEMU's.
///
/// A writer has all bytes to itself. A reader leaves those of QEMU alone, so that readers of both
/// kinds can share, but for the two that say that nobody else may write.
///
/// # Errors
/// Those of fcntl(2) other than the lock being held.
pub fn try_lock(file: &File, kind: LockKind) -> io::Result<bool> {
    let read = libc::F_RDLCK;
    match kind {
        LockKind::Exclusive => set(file, libc::F_WRLCK, 0, 0),
        LockKind::Shared => {
            let ranges = [
                (0, QEMU.0),
                (201, 1), // forbids to write
                (203, 1), // and to resize
                (QEMU.1, 0),
            ];
            for (start, len) in ranges {
                if !set(file, read, start, len)? {
                    set(file, libc::F_UNLCK, 0, 0)?;
                    return Ok(false);
                }
            }
            // The look at the others comes last, as it does in QEMU: each has its own lock by then, so of
            // two that come at the same time at least one sees the other.
            for byte in QEMU_USES {
                if is_held(file, byte)? {
                    set(file, libc::F_UNLCK, 0, 0)?;
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

/// A length of 0 reaches to the end, however far that moves.
fn request(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0, // required to be 0 for OFD locks
    }
}

fn set(file: &File, kind: libc::c_int, start: i64, len: i64) -> io::Result<bool> {
    let request = request(kind, start, len);
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

/// Whether anybody else has a lock of any kind on a byte.
fn is_held(file: &File, byte: i64) -> io::Result<bool> {
    let mut request = request(libc::F_WRLCK, byte, 1);
    // SAFETY: F_OFD_GETLK reads and writes one `struct flock`, valid for the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) };
    match result {
        0 => Ok(request.l_type != libc::F_UNLCK as libc::c_short),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The processes that hold a lock on `file`, but for helpers of one that holds it as well.
pub fn holders(file: &File) -> Vec<u32> {
    let all = all_holders(file);
    let helps = |pid: &&u32| !(is_helper(**pid) && all.contains(&parent(**pid)));
    all.iter().filter(helps).copied().collect()
}

/// How long it may be worth to wait for the lock on `file`. The helper of a VMM that has been killed keeps it to the end
/// of the write that it was at work on; and a process that is about to be gone is not found any more while it closes
/// its files. For all others it is not worth it.
pub fn ends_within(file: &File) -> Duration {
    let all = all_holders(file);
    let orphan = |pid: &u32| is_helper(*pid) && !all.contains(&parent(*pid));
    match all.as_slice() {
        [] => Duration::from_millis(100),
        all if all.iter().all(orphan) => Duration::from_secs(2),
        _ => Duration::ZERO,
    }
}

/// Whether the process is one that reads an image for a VMM.
fn is_helper(pid: u32) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    comm.is_ok_and(|comm| comm.starts_with(HELPER_NAME))
}

/// The parent of a process; 0 if there is none.
fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// The processes that hold a lock on `file`. A lock of an open file description has no owner that
/// fcntl(2) would tell of; but each process's `fdinfo` names the locks of its open files. Those of
/// other users' processes cannot be read.
fn all_holders(file: &File) -> Vec<u32> {
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
