//! The files of a chain of images: which files an image may name, and opened, checked and locked.
//!
//! A header can come from anywhere, and can hold any name. It is followed only if that was allowed, only to a file in
//! the folder of the first image once all symbolic links are resolved, and only for reading.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Refusal;
use crate::error::io_reason;
use crate::storage::access::{Access, open_file, take_lock};
use crate::storage::error::OpenError;
use crate::storage::format::Format;

/// How many images may rest on each other: an image, its backing file, that one's, and so on.
pub const MAX_CHAIN: usize = 16;

/// See the [module](self).
pub struct BackingFiles {
    /// Backing files are looked for here and nowhere else.
    folder: PathBuf,
    /// Device and inode number of each, and its path; the first is the image itself.
    seen: Vec<((u64, u64), PathBuf)>,
    access: Access,
}

impl BackingFiles {
    /// None as yet, below the image in `file`, which was opened from `path`.
    pub fn of(file: &File, path: &Path, access: Access) -> Self {
        BackingFiles {
            folder: folder_of(path),
            seen: vec![(identity(file), path.into())],
            access,
        }
    }

    /// The path of the file with this number; of the first one if there is none.
    pub fn path(&self, depth: usize) -> &Path {
        let one = self.seen.get(depth).or_else(|| self.seen.first());
        one.map_or(Path::new(""), |(_, path)| path)
    }

    /// A refusal in words for the user.
    pub fn told(&self, refusal: Refusal) -> OpenError {
        match refusal {
            Refusal::Damaged(damaged) => {
                let path = self.path(damaged.depth);
                damaged.told(path, self.access.cache)
            }
            Refusal::Below(error) => error,
        }
    }

    /// Opens the file on which the last one rests, by the name and the format that stand in that.
    ///
    /// # Errors
    /// Says why not.
    pub fn open(&mut self, name: &str, format: Option<&str>) -> Result<(File, Format), OpenError> {
        let above = self.path(self.seen.len().saturating_sub(1)).to_owned();
        let wrong = |reason: String, help: &str| {
            Err(OpenError::Damaged {
                path: above.clone(),
                reason,
                help: help.into(),
            })
        };
        if !self.access.backing {
            return Err(OpenError::Rests {
                path: above,
                name: name.into(),
            });
        }
        let format = match format {
            Some("qcow2") => Format::Qcow2,
            Some("raw" | "file") => Format::Raw,
            Some(other) => {
                return wrong(
                    format!("its backing file is of format '{other}'"),
                    "backing files may be raw or qcow2",
                );
            }
            None => {
                return wrong(
                    "it does not say of which format its backing file is".into(),
                    "say so in it: qemu-img rebase -u -b FILE -F FORMAT IMAGE",
                );
            }
        };
        let beside = above.parent().unwrap_or(Path::new("")).join(name);
        let path = match beside.canonicalize() {
            Ok(path) if path.starts_with(&self.folder) => path,
            Ok(path) => {
                return wrong(
                    format!("its backing file {} is in another folder", path.display()),
                    "keep a chain of images in one folder",
                );
            }
            Err(error) => {
                return wrong(
                    format!("its backing file '{name}': {}", io_reason(&error)),
                    "put it beside the image",
                );
            }
        };
        let access = Access {
            format,
            read_only: true,
            ..self.access
        };
        let file = open_file(&path, access)?;
        if self.seen.iter().any(|(one, _)| *one == identity(&file)) {
            return wrong(
                format!("its backing file '{name}' rests on the image itself"),
                "somebody has made a circle: qemu-img rebase -u -b mends it",
            );
        }
        if self.seen.len() >= MAX_CHAIN {
            return wrong(
                format!("more than {MAX_CHAIN} images rest on each other"),
                "make fewer of them: qemu-img commit",
            );
        }
        take_lock(&file, &path, true)?;
        self.seen.push((identity(&file), path));
        Ok((file, format))
    }
}

fn identity(file: &File) -> (u64, u64) {
    file.metadata().map_or((0, 0), |m| (m.dev(), m.ino()))
}

fn folder_of(path: &Path) -> PathBuf {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A folder that cannot be found has no backing file in it either, so none will be accepted.
    parent.canonicalize().unwrap_or_else(|_| parent.into())
}
