//! A file that gets its name when it is whole.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{ImageError, host};
use crate::unnamed::{self, Unnamed};

/// The file in the making.
pub struct Target {
    path: PathBuf,
    name: Unnamed,
}

impl Target {
    /// A new file that will be `path`, open for reading and writing.
    ///
    /// # Errors
    /// When there is such a file, or the host refuses.
    pub fn create(path: &Path) -> Result<(Self, File), ImageError> {
        if path.symlink_metadata().is_ok() {
            return Err(ImageError::Exists { path: path.into() });
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let (name, file) = unnamed::create(folder, 0o666).map_err(host("create", path))?;
        let target = Target {
            path: path.into(),
            name,
        };
        Ok((target, file))
    }

    /// Gives `file` its name. Its content is on the disk by then.
    ///
    /// # Errors
    /// When somebody else has used the name meanwhile, or the host refuses.
    pub fn finish(self, file: &File) -> Result<(), ImageError> {
        file.sync_all().map_err(host("write", &self.path))?;
        self.name
            .give_name(file, &self.path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => ImageError::Exists {
                    path: self.path.clone(),
                },
                _ => host("create", &self.path)(error),
            })
    }
}

/// Makes a write past the limit of `ulimit -f` an error of that write, not our end.
pub fn limits_are_errors() {
    // SAFETY: SIG_IGN is no handler of ours; nothing runs in its place.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
