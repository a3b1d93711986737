//! Files that have no name before they are whole.
//!
//! A file that is opened with O_TMPFILE (open(2)) is in no folder: whatever ends the process before
//! the file has got its name, nothing is left behind. The name is given by linkat(2), which never
//! takes the place of a file that is there.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A new file for `folder`, open for reading and writing; `None` where the file system does not know
/// files without names.
///
/// # Errors
/// Those of the host.
pub fn create(folder: &Path, mode: u32) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(mode)
        .open(folder);
    match opened {
        Ok(file) => Ok(Some(file)),
        // EISDIR: a kernel that does not know O_TMPFILE.
        Err(error) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Gives a file of [`create`] its name, in the same file system.
///
/// # Errors
/// `AlreadyExists` when there is a file of that name, and others of the host.
pub fn give_name(file: &File, path: &Path) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: two C strings that outlive the call.
    let result = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives the file at `part` the name `path` instead, which nobody has yet: for file systems that do
/// not know files without names.
///
/// # Errors
/// `AlreadyExists` when there is a file of that name, and others of the host.
pub fn rename_to_free(part: &Path, path: &Path) -> io::Result<()> {
    match std::fs::hard_link(part, path) {
        Ok(()) => std::fs::remove_file(part),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // Without links there is no way to give a name only if it is free, but to look.
        Err(_) if path.symlink_metadata().is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => std::fs::rename(part, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once_and_takes_no_other_files_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("name");
        if let Some(file) = create(folder.path(), 0o600).unwrap() {
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
            give_name(&file, &path).unwrap();
            let other = create(folder.path(), 0o600).unwrap().unwrap();
            let taken = give_name(&other, &path).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        } else {
            std::fs::write(&path, b"").unwrap();
        }
        let part = folder.path().join("part");
        std::fs::write(&part, b"part").unwrap();
        let taken = rename_to_free(&part, &path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        let free = folder.path().join("free");
        rename_to_free(&part, &free).unwrap();
        assert_eq!(std::fs::read(free).unwrap(), b"part");
        assert!(!part.exists());
    }
}
