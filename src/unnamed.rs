//! Files that have no name: not yet, or never.
//!
//! A file that is opened with O_TMPFILE (open(2)) is in no folder: whatever ends the process before
//! the file has got its name, nothing is left behind. The name is given by linkat(2), which never
//! takes the place of a file that is there. On file systems that know no such files (9p, vfat) the
//! file has a name of its own for as long as it must have one.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// linkat(2) finds a file without a name by this folder alone.
const DESCRIPTORS: &str = "/proc/self/fd";

/// The right to give a file of [`create`] its name. Without that, the file is gone at the end.
pub struct Unnamed {
    /// Its name until then, where the file system knows no files without one.
    part: Option<PathBuf>,
}

/// A new file in `folder`, open for reading and writing, that gets its name later.
///
/// # Errors
/// Those of the host.
pub fn create(folder: &Path, mode: u32) -> io::Result<(Unnamed, File)> {
    let nameless = match Path::new(DESCRIPTORS).exists() {
        true => without_name(folder, mode, 0)?,
        false => None,
    };
    match nameless {
        Some(file) => Ok((Unnamed { part: None }, file)),
        None => {
            let (file, part) = with_own_name(folder, mode)?;
            Ok((Unnamed { part: Some(part) }, file))
        }
    }
}

/// A new file in `folder` of `len` bytes that never gets a name, open for reading and writing by this
/// process and nobody else. It takes no space as yet.
///
/// # Errors
/// Those of the host.
pub fn create_for_ever(folder: &Path, len: u64) -> io::Result<File> {
    const MODE: u32 = 0o600;
    // With O_EXCL nobody can give it a name later.
    if let Some(file) = without_name(folder, MODE, libc::O_EXCL)? {
        file.set_len(len)?;
        return Ok(file);
    }
    let (file, path) = with_own_name(folder, MODE)?;
    // Before it loses its name: 9p looks for a file by its name to change its length.
    let sized = file.set_len(len);
    std::fs::remove_file(&path)?;
    sized.map(|()| file)
}

impl Unnamed {
    /// Gives `file` its name, in the same file system, in whose folder it was made.
    ///
    /// # Errors
    /// `AlreadyExists` when there is a file of that name, and others of the host.
    pub fn give_name(mut self, file: &File, path: &Path) -> io::Result<()> {
        match self.part.take() {
            None => link(file, path),
            Some(part) => rename_to_free(&part, path).inspect_err(|_| {
                let _ = std::fs::remove_file(&part);
            }),
        }
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(part) = self.part.take() {
            let _ = std::fs::remove_file(part);
        }
    }
}

/// `None` where the kernel or the file system does not know files without names.
fn without_name(folder: &Path, mode: u32, flags: i32) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | flags)
        .mode(mode)
        .open(folder);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

fn with_own_name(folder: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    const MOST: u32 = 100;
    let pid = std::process::id();
    let mut number = 0u32;
    loop {
        let path = folder.join(format!(".bantam-{pid}-{number}"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(mode);
        match options.open(&path) {
            Ok(file) => return Ok((file, path)),
            // Of another container's process of the same number, or of one that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < MOST => {
                number = number.saturating_add(1);
            }
            Err(error) => return Err(error),
        }
    }
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    let from = CString::new(format!("{DESCRIPTORS}/{}", file.as_raw_fd()))?;
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

/// Gives the file at `part` the name `path` instead, if nobody has that yet.
fn rename_to_free(part: &Path, path: &Path) -> io::Result<()> {
    let from = CString::new(part.as_os_str().as_bytes())?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: two C strings that outlive the call.
    let result = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Not on this file system: a link takes nobody's place either.
        Some(libc::EINVAL | libc::ENOSYS) => {
            std::fs::hard_link(part, path)?;
            std::fs::remove_file(part)
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn names(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_name_is_given_once_and_takes_no_other_files_place() {
        let folder = tempfile::tempdir().unwrap();
        for (index, known) in [true, false].into_iter().enumerate() {
            let make = |folder: &Path| match known {
                true => create(folder, 0o600).unwrap(),
                // As where files without names are not known.
                false => {
                    let (file, part) = with_own_name(folder, 0o600).unwrap();
                    (Unnamed { part: Some(part) }, file)
                }
            };
            let path = folder.path().join(format!("name{index}"));
            let (unnamed, file) = make(folder.path());
            file.write_all_at(b"first", 0).unwrap();
            unnamed.give_name(&file, &path).unwrap();
            let (unnamed, other) = make(folder.path());
            let taken = unnamed.give_name(&other, &path).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
            drop(make(folder.path()));
            assert_eq!(std::fs::read(&path).unwrap(), b"first");
            assert_eq!(names(folder.path()), index + 1, "nothing else is left");
        }
    }

    #[test]
    fn no_name_no_space_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let left = format!(".bantam-{}-0", std::process::id());
        std::fs::write(folder.path().join(left), "another's").unwrap();
        let file = create_for_ever(folder.path(), 1 << 40).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.nlink()), (1 << 40, 0));
        assert!(meta.blocks() < 64, "{}", meta.blocks());
        assert_eq!(meta.mode() & 0o777, 0o600);
        file.write_all_at(b"x", 1 << 39).unwrap();
        let (_file, path) = with_own_name(folder.path(), 0o600).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(names(folder.path()), 1, "the file that was there before");
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_an_error() {
        assert!(create_for_ever(Path::new("/nonexistent"), 1).is_err());
        assert!(create_for_ever(Path::new("/proc"), 1).is_err());
        assert!(create(Path::new("/nonexistent"), 0o600).is_err());
    }
}
