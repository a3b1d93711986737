//! Unpacked kernels, kept from one start to the next.
//!
//! ```text
//!   $XDG_CACHE_HOME/bantam/kernels/   (else ~/.cache), 0700
//!     v2-DEVICE-INODE-LENGTH-MTIME-CTIME    the vmlinux of the bzImage that stat(2) describes so,
//!                                           and at its end a mark: whose entry it is, and its name
//! ```
//!
//! An entry is found by what stat(2) says of the bzImage: its inode's change time moves with every
//! change of its content and cannot be set back, so nothing has to be read or hashed to find it.
//! A file that was changed a moment ago could change again in the same tick of the clock, and is
//! not kept yet.
//!
//! Entries get their name when they are whole ([`unnamed`]), so any number of machines may start at
//! once; they are read-only and never written again. An entry is believed no more than a kernel that
//! a user names: only a regular file of our own that nobody else may write is opened, and its headers
//! are checked like any other's.
//!
//! The folder may be anything, a link to the user's own files too. So only a file that ends with the
//! mark is used, counted or removed, and no other is ever replaced, whatever its name is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::source::Source;
use crate::unnamed;

/// All entries together; the oldest go first.
const MAX_BYTES: u64 = 512 << 20;
/// A change this long ago is followed by a later time stamp at the next one.
const SETTLED: Duration = Duration::from_secs(2);
/// Goes up when entries of before would be misread.
const VERSION: u32 = 2;
/// Before the name, at the end of each entry.
const MARK: &[u8] = b"\nentry of bantam's cache of kernels: ";

/// The folder of entries.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The user's; `None` where the environment names no place for one.
    pub fn of_user() -> Option<Self> {
        let absolute = |name| {
            let path = PathBuf::from(std::env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(Cache::at(base.join("bantam/kernels")))
    }

    /// In this folder.
    pub fn at(folder: PathBuf) -> Self {
        Cache { folder }
    }

    /// The entry for an image; `None` without one, or with one that is not to be trusted.
    pub fn find(&self, image: &Source) -> Option<Source> {
        let path = self
            .folder
            .join(name(image, &image.file().metadata().ok()?));
        path.symlink_metadata().ok()?;
        match open_entry(&path) {
            Some((file, _)) => Source::of_file(file, path).ok(),
            None => {
                log::warn!(
                    "{}: not used: it is not an entry of our own",
                    path.display()
                );
                None
            }
        }
    }

    /// Keeps `vmlinux` for `image`; `None` when the image is too new. `seen` is what stat(2) said
    /// before the image was read: if it has changed since, the entry is found by nobody.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep(
        &self,
        image: &Source,
        seen: &fs::Metadata,
        vmlinux: &[u8],
    ) -> io::Result<Option<Source>> {
        let meta = seen;
        let changed = Duration::new(
            u64::try_from(meta.ctime()).unwrap_or(0),
            u32::try_from(meta.ctime_nsec()).unwrap_or(0),
        );
        // A time that a clock cannot show counts as the future.
        let age = SystemTime::UNIX_EPOCH
            .checked_add(changed)
            .and_then(|changed| SystemTime::now().duration_since(changed).ok());
        if age.is_none_or(|age| age < SETTLED) || vmlinux.len() as u64 > MAX_BYTES {
            return Ok(None);
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let path = self.folder.join(name(image, meta));
        if open_entry(&path).is_some() {
            // Damaged, or made by another machine a moment ago; nobody else's in any case.
            fs::remove_file(&path)?;
        }
        self.make_room(vmlinux.len() as u64);
        match write_new(&self.folder, &path, vmlinux) {
            // Somebody else's file has the name: that one stays.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(self.find(image)),
        }
    }

    /// Removes the oldest entries until `more` bytes fit.
    fn make_room(&self, more: u64) {
        let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some((_, meta)) = open_entry(&path) else {
                continue;
            };
            let time = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            entries.push((time, meta.len(), path));
        }
        entries.sort();
        let mut total = entries
            .iter()
            .fold(more, |sum, (_, len, _)| sum.saturating_add(*len));
        for (_, len, path) in entries {
            if total <= MAX_BYTES {
                return;
            }
            if fs::remove_file(path).is_ok() {
                total = total.saturating_sub(len);
            }
        }
    }
}

fn name(image: &Source, meta: &fs::Metadata) -> String {
    // A kernel inside of an ISO: where.
    let window = match image.start() {
        0 => String::new(),
        start => format!("-at-{start:x}"),
    };
    format!(
        "v{VERSION}-{:x}-{:x}-{:x}-{:x}.{:x}-{:x}.{:x}{window}",
        meta.dev(),
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    )
}

/// What stands at the end of the entry at `path`; `None` for a name that no entry has.
fn mark_of(path: &Path) -> Option<Vec<u8>> {
    let name = path.file_name()?.to_str()?;
    name.starts_with('v')
        .then(|| [MARK, name.as_bytes()].concat())
}

/// The file at `path`, if it is an entry that was made here.
fn open_entry(path: &Path) -> Option<(File, fs::Metadata)> {
    let mark = mark_of(path)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let meta = file.metadata().ok()?;
    // SAFETY: no arguments, cannot fail.
    let ours = meta.uid() == unsafe { libc::geteuid() };
    if !meta.is_file() || !ours || meta.mode() & 0o022 != 0 {
        return None;
    }
    let mut end = vec![0; mark.len()];
    let at = meta.len().checked_sub(mark.len() as u64)?;
    file.read_exact_at(&mut end, at).ok()?;
    (end == mark).then_some((file, meta))
}

/// A new entry, read-only, its bytes on the disk.
fn write_new(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mark = mark_of(path).unwrap_or_default();
    let write = |mut file: &File| {
        file.write_all(bytes)?;
        file.write_all(&mark)?;
        file.sync_data()
    };
    let (name, file) = unnamed::create(folder, 0o400)?;
    write(&file)?;
    name.give_name(&file, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A cache, and an image that was changed long enough ago.
    fn settled() -> (tempfile::TempDir, Cache, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("bzImage");
        fs::write(&image, b"packed").unwrap();
        std::thread::sleep(SETTLED + Duration::from_millis(50));
        let cache = Cache::at(folder.path().join("cache"));
        (folder, cache, image)
    }

    fn keep(cache: &Cache, image: &Source, vmlinux: &[u8]) -> io::Result<Option<Source>> {
        cache.keep(image, &image.file().metadata()?, vmlinux)
    }

    #[test]
    fn an_image_that_changes_while_it_is_read_leaves_nothing_to_be_found() {
        let (_folder, cache, path) = settled();
        let image = Source::open(&path).unwrap();
        let seen = image.file().metadata().unwrap();
        fs::write(&path, b"PACKED").unwrap();
        assert!(cache.keep(&image, &seen, b"old").unwrap().is_none());
        assert!(cache.find(&image).is_none());
    }

    #[test]
    fn what_is_kept_is_found_until_the_image_changes() {
        let (_folder, cache, path) = settled();
        let image = Source::open(&path).unwrap();
        assert!(cache.find(&image).is_none());
        let kept = keep(&cache, &image, b"vmlinux").unwrap().unwrap();
        assert_eq!(kept.read(0, 7).unwrap(), b"vmlinux");
        assert!(cache.find(&image).is_some());

        fs::write(&path, b"PACKED").unwrap();
        let image = Source::open(&path).unwrap();
        assert!(cache.find(&image).is_none(), "same length, same name");
        assert!(keep(&cache, &image, b"x").unwrap().is_none(), "too new");
    }

    #[test]
    fn an_entry_that_others_could_have_made_is_not_used() {
        let (folder, cache, path) = settled();
        let image = Source::open(&path).unwrap();
        let kept = keep(&cache, &image, b"vmlinux").unwrap().unwrap();
        let entry = kept.path().to_owned();
        fs::set_permissions(&entry, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(cache.find(&image).is_none(), "writable by others");
        fs::remove_file(&entry).unwrap();
        std::os::unix::fs::symlink(folder.path().join("bzImage"), &entry).unwrap();
        assert!(cache.find(&image).is_none(), "a link");
        fs::remove_file(&entry).unwrap();
        fs::create_dir(&entry).unwrap();
        assert!(cache.find(&image).is_none(), "a directory");
    }

    /// An entry of `len` bytes, as an older start has left it.
    fn old_entry(folder: &Path, name: &str, len: u64) -> PathBuf {
        let path = folder.join(name);
        let file = File::create(&path).unwrap();
        let mark = mark_of(&path).unwrap();
        file.set_len(len - mark.len() as u64).unwrap();
        file.write_all_at(&mark, len - mark.len() as u64).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        path
    }

    #[test]
    fn the_oldest_entries_make_room() {
        let (_folder, cache, path) = settled();
        fs::create_dir_all(&cache.folder).unwrap();
        let old = old_entry(&cache.folder, "v2-old", MAX_BYTES);
        let image = Source::open(&path).unwrap();
        keep(&cache, &image, b"vmlinux").unwrap().unwrap();
        assert!(!old.exists());
        assert!(cache.find(&image).is_some());
    }

    #[test]
    fn nothing_that_was_not_made_here_is_removed_or_replaced() {
        let (folder, _, path) = settled();
        // The cache's folder is a link to one of the user's own.
        let own = folder.path().join("photos");
        fs::create_dir(&own).unwrap();
        std::os::unix::fs::symlink(&own, folder.path().join("link")).unwrap();
        let cache = Cache::at(folder.path().join("link"));
        let image = Source::open(&path).unwrap();
        let entry = name(&image, &image.file().metadata().unwrap());
        let huge = |name: &str| {
            let file = File::create(own.join(name)).unwrap();
            file.set_len(MAX_BYTES + 1).unwrap();
            fs::set_permissions(own.join(name), fs::Permissions::from_mode(0o400)).unwrap();
        };
        let mut names = vec![
            "v1-old",
            "v2-1-2-3-4.5-6.7",
            ".v2-1.123",
            "photo.jpg",
            &entry,
        ];
        names.iter().for_each(|name| huge(name));
        // One of ours under another name is a copy that somebody has made.
        let copy = old_entry(&own, "v2-ours", MAX_BYTES);
        fs::rename(&copy, own.join("v2-copy")).unwrap();
        names.push("v2-copy");
        fs::create_dir(own.join("v2-folder")).unwrap();
        std::os::unix::fs::symlink(&path, own.join("v2-link")).unwrap();
        names.extend(["v2-folder", "v2-link"]);
        let old = old_entry(&own, "v2-old", MAX_BYTES);

        assert!(cache.find(&image).is_none(), "somebody else's file");
        assert!(keep(&cache, &image, b"vmlinux").unwrap().is_none());
        assert!(!old.exists(), "ours has made room");
        let mut left: Vec<_> = fs::read_dir(&own)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort_unstable();
        names.sort_unstable();
        assert_eq!(left, names);
        assert_eq!(fs::metadata(own.join(&entry)).unwrap().len(), MAX_BYTES + 1);
    }

    #[test]
    fn a_damaged_entry_is_made_anew() {
        let (_folder, cache, path) = settled();
        let image = Source::open(&path).unwrap();
        keep(&cache, &image, b"damaged").unwrap().unwrap();
        let kept = keep(&cache, &image, b"whole").unwrap().unwrap();
        assert_eq!(kept.read(0, 5).unwrap(), b"whole");
        assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_and_no_more() {
        let (folder, _, path) = settled();
        let image = Source::open(&path).unwrap();
        let cache = Cache::at(folder.path().join("bzImage/kernels"));
        assert!(cache.find(&image).is_none());
        assert!(keep(&cache, &image, b"vmlinux").is_err());
    }
}
