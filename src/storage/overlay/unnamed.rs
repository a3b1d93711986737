//! A file without a name, which is gone when nobody has it open any more, however that ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::OverlayError;

/// Where files go that are in nobody's way but large, where TMPDIR does not say. `/tmp` is second: on
/// many hosts it is memory.
const FOLDERS: [&str; 2] = ["/var/tmp", "/tmp"];

/// Makes a file of `len` bytes that takes no space as yet, and says in which folder.
///
/// # Errors
/// See [`OverlayError`].
pub fn make(len: u64) -> Result<(File, PathBuf), OverlayError> {
    let folders = match std::env::var_os("TMPDIR") {
        // Asked for by name: not another one instead.
        Some(folder) if !folder.is_empty() => vec![PathBuf::from(folder)],
        _ => FOLDERS.map(PathBuf::from).to_vec(),
    };
    let mut refused = None;
    for folder in folders {
        match make_in(&folder, len) {
            Ok(file) => return Ok((file, folder)),
            Err(source) => {
                refused.get_or_insert(OverlayError::Make { folder, source });
            }
        }
    }
    // There is at least one folder.
    Err(refused.unwrap_or(OverlayError::Make {
        folder: PathBuf::new(),
        source: io::ErrorKind::NotFound.into(),
    }))
}

fn make_in(folder: &Path, len: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let nameless = options
        .clone()
        // With O_EXCL nobody can give it a name later.
        .custom_flags(libc::O_TMPFILE | libc::O_EXCL)
        .open(folder);
    match nameless {
        Ok(file) => {
            file.set_len(len)?;
            Ok(file)
        }
        // A kernel or file system (9p, older overlayfs) that does not know O_TMPFILE.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
            ) =>
        {
            named_for_a_moment(&options, folder, len)
        }
        Err(error) => Err(error),
    }
}

/// The same where a file must have a name at first.
fn named_for_a_moment(options: &OpenOptions, folder: &Path, len: u64) -> io::Result<File> {
    let pid = std::process::id();
    let mut number = 0u32;
    loop {
        let path = folder.join(format!(".bantam-{pid}-{number}"));
        match options.clone().create_new(true).open(&path) {
            Ok(file) => {
                // Before it loses its name: 9p looks for a file by its name to change its length.
                let sized = file.set_len(len);
                std::fs::remove_file(&path)?;
                return sized.map(|()| file);
            }
            // Another container's process of the same number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 100 => {
                number = number.saturating_add(1);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn no_name_no_space_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let options = {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600);
            options
        };
        std::fs::write(
            folder
                .path()
                .join(format!(".bantam-{}-0", std::process::id())),
            "another's",
        )
        .unwrap();
        for file in [
            make_in(folder.path(), 1 << 40).unwrap(),
            named_for_a_moment(&options, folder.path(), 1 << 40).unwrap(),
        ] {
            let meta = file.metadata().unwrap();
            assert_eq!((meta.len(), meta.nlink()), (1 << 40, 0));
            assert!(meta.blocks() < 64, "{}", meta.blocks());
            assert_eq!(meta.mode() & 0o777, 0o600);
            file.write_all_at(b"x", 1 << 39).unwrap();
        }
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "the file that was there before");
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_an_error() {
        assert!(make_in(Path::new("/nonexistent"), 1).is_err());
        assert!(make_in(Path::new("/proc"), 1).is_err());
    }
}
