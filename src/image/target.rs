//! A file that gets its name when it is whole.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::{ImageError, host};
use crate::unnamed;

/// The file in the making.
pub struct Target {
    path: PathBuf,
    /// `None` where the file system knows files without names; else its name until it is whole.
    named: Option<PathBuf>,
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
        let nameless = unnamed::create(folder, 0o666).map_err(host("create", path))?;
        let (file, named) = match nameless {
            Some(file) => (file, None),
            None => {
                let mut name = std::ffi::OsString::from(".");
                name.push(path.file_name().unwrap_or_default());
                name.push(format!(".part-{}", std::process::id()));
                let part = folder.join(name);
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).create_new(true).open(&part);
                (file.map_err(host("create", path))?, Some(part))
            }
        };
        let target = Target {
            path: path.into(),
            named,
        };
        Ok((target, file))
    }

    /// Gives `file` its name. Its content is on the disk by then.
    ///
    /// # Errors
    /// When somebody else has used the name meanwhile, or the host refuses.
    pub fn finish(self, file: &File) -> Result<(), ImageError> {
        file.sync_all().map_err(host("write", &self.path))?;
        let named = match &self.named {
            None => unnamed::give_name(file, &self.path),
            Some(part) => unnamed::rename_to_free(part, &self.path),
        };
        named.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => ImageError::Exists {
                path: self.path.clone(),
            },
            _ => host("create", &self.path)(error),
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(part) = self.named.take() {
            // Gone already where it was renamed.
            let _ = std::fs::remove_file(part);
        }
    }
}

/// Makes a write past the limit of `ulimit -f` an error of that write, not our end.
pub fn limits_are_errors() {
    // SAFETY: SIG_IGN is no handler of ours; nothing runs in its place.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
