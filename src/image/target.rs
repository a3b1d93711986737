//! A file that gets its name when it is whole.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{ImageError, host};

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
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let nameless = options
            .clone()
            .custom_flags(libc::O_TMPFILE)
            .mode(0o666)
            .open(folder);
        let (file, named) = match nameless {
            Ok(file) => (file, None),
            // EISDIR: a kernel or file system that does not know O_TMPFILE.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
                ) =>
            {
                let mut name = std::ffi::OsString::from(".");
                name.push(path.file_name().unwrap_or_default());
                name.push(format!(".part-{}", std::process::id()));
                let part = folder.join(name);
                let file = options.create_new(true).open(&part);
                (file.map_err(host("create", path))?, Some(part))
            }
            Err(error) => return Err(host("create", path)(error)),
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
            None => link(file, &self.path),
            // A file system without links has no way to give a name only if it is free.
            Some(part) => std::fs::hard_link(part, &self.path).or_else(|error| {
                if error.kind() == io::ErrorKind::AlreadyExists {
                    return Err(error);
                }
                std::fs::rename(part, &self.path)
            }),
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

fn link(file: &File, path: &Path) -> io::Result<()> {
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
