//! qcow2 images, by the imago library: sparse files that may rest on a backing file.
//!
//! [`manage`] makes and changes images as files. `header` and `verify` look at an image before the
//! library does: what is written to has good tables.
//!
//! imago keeps the format's tables; here is what a VMM decides for itself: which files an image may
//! name (a header can come from anywhere), and what each request means.

mod counts;
mod header;
pub mod manage;
mod tables;
mod verify;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use imago::file::File as ImagoFile;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::{FormatAccess, qcow2, raw};

use crate::error::io_reason;
use crate::memory::IoBuffers;
use crate::storage::access::{Access, CacheMode};
use crate::storage::access::{open_file, take_lock};
use crate::storage::error::OpenError;
use crate::storage::format::Format;
use crate::storage::image::{Image, Work};
use header::CHECK;

/// How many images may rest on each other: an image, its backing file, that one's, and so on.
const MAX_CHAIN: usize = 16;

/// The longest piece of a read or write that imago is given at a time. It keeps a list of the clusters of one, and
/// copies all of it where direct I/O cannot use the guest's addresses.
pub const PIECE_BYTES: u64 = 1 << 20;
/// The longest piece of a discard, of whose clusters it keeps a list as well; other requests wait meanwhile.
const DISCARD_PIECE_BYTES: u64 = 64 << 20;
/// What imago keeps of an image's tables: 128 of where clusters are, and 32 of how often they are used, each of
/// a cluster's length (`Qcow2::do_open`).
pub const CACHED_TABLES: u64 = 128 + 32;

/// An image that another one rests on: qcow2 or raw.
type BackingImage = Arc<FormatAccess<ImagoFile>>;

/// See the [module](self).
pub struct Qcow2 {
    // A lock, because imago discards and zeroes clusters only while nothing else is going on.
    access: RwLock<FormatAccess<ImagoFile>>,
    len: u64,
}

impl Qcow2 {
    /// The image in `file`, which was opened from `path` and is locked.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(file: File, path: &Path, access: Access) -> Result<Self, OpenError> {
        let access = Self::access(file, path, access)?;
        Ok(Qcow2 {
            len: access.size(),
            access: RwLock::new(access),
        })
    }

    /// The same as imago's own type.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn access(
        file: File,
        path: &Path,
        access: Access,
    ) -> Result<FormatAccess<ImagoFile>, OpenError> {
        let mut chain = BackingChain {
            folder: folder_of(path),
            seen: vec![identity(&file)],
            access,
        };
        let writable = !access.read_only && !access.look_only;
        let image = chain.open(file, path, writable)?;
        Ok(FormatAccess::new(image))
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&FormatAccess<ImagoFile>) -> io::Result<T>,
    ) -> io::Result<T> {
        work(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn alone<T>(
        &self,
        work: impl FnOnce(&mut FormatAccess<ImagoFile>) -> io::Result<T>,
    ) -> io::Result<T> {
        work(&mut self.access.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn sync(&self) -> io::Result<()> {
        self.read(|access| {
            // First the tables go from memory to the file, then the file goes to the host's disk.
            access.flush()?;
            access.sync()
        })
    }
}

impl Qcow2 {
    /// Does what is short enough for imago.
    fn piece(&self, work: Work, buffers: &mut IoBuffers) -> io::Result<()> {
        match work {
            Work::Read { offset } => {
                let mut vector = IoVectorMut::with_capacity(buffers.rest().len());
                for segment in buffers.rest() {
                    // SAFETY: the segment is guest RAM that `buffers` keeps mapped. The guest may
                    // write there as well: imago stores bytes into it, or reads back bytes that
                    // it has stored while it inflates, with every access checked, and believes
                    // none of them.
                    let slice = unsafe {
                        std::slice::from_raw_parts_mut(segment.iov_base.cast(), segment.iov_len)
                    };
                    vector.push_ioslice(IoSliceMut::new(slice));
                }
                self.read(|access| access.readv(vector, offset))
            }
            Work::Write { offset, durable } => {
                let mut vector = IoVector::with_capacity(buffers.rest().len());
                for segment in buffers.rest() {
                    // SAFETY: as above; bytes are only copied from it.
                    let slice = unsafe {
                        std::slice::from_raw_parts(segment.iov_base.cast(), segment.iov_len)
                    };
                    vector.push_ioslice(IoSlice::new(slice));
                }
                self.read(|access| access.writev(vector, offset))?;
                if durable { self.sync() } else { Ok(()) }
            }
            Work::Flush => self.sync(),
            Work::Discard { offset, len } => {
                match self.alone(|access| access.discard_to_any(offset, len)) {
                    // A discard is only a hint, and images of version 2 have no way to take it.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
                    result => result,
                }
            }
            // imago looks whether the rest of a cluster is zeros, and then makes all of it zeros: a
            // write to that rest must not come between.
            Work::Zero { offset, len, unmap } => self.alone(|access| {
                if unmap {
                    match access.discard_to_zero(offset, len) {
                        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                        result => return result,
                    }
                }
                match access.write_zeroes(offset, len) {
                    // Images of version 2 cannot mark a cluster as zeros.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        write_zeros(access, offset, len)
                    }
                    result => result,
                }
            }),
        }
    }
}

impl Image for Qcow2 {
    fn len(&self) -> u64 {
        self.len
    }

    fn run(&self, work: Work, buffers: &mut IoBuffers) -> io::Result<()> {
        let total = buffers.len();
        match work {
            Work::Read { offset } | Work::Write { offset, .. } if total > PIECE_BYTES => {
                let mut done = 0;
                while done < total {
                    let len = PIECE_BYTES.min(total.saturating_sub(done));
                    let offset = offset.saturating_add(done);
                    done = done.saturating_add(len);
                    let work = match work {
                        Work::Write { durable, .. } => Work::Write {
                            offset,
                            // The last one makes all of them durable.
                            durable: durable && done == total,
                        },
                        _ => Work::Read { offset },
                    };
                    buffers.part(len, |part| self.piece(work, part))?;
                }
                Ok(())
            }
            Work::Discard { offset, len } => {
                let mut done = 0;
                while done < len {
                    let piece = DISCARD_PIECE_BYTES.min(len.saturating_sub(done));
                    let work = Work::Discard {
                        offset: offset.saturating_add(done),
                        len: piece,
                    };
                    self.piece(work, buffers)?;
                    done = done.saturating_add(piece);
                }
                Ok(())
            }
            _ => self.piece(work, buffers),
        }
    }
}

fn write_zeros(access: &FormatAccess<ImagoFile>, mut offset: u64, mut len: u64) -> io::Result<()> {
    let zeros = [0; 16 << 10];
    while len > 0 {
        let part = len.min(zeros.len() as u64);
        access.write(zeros.get(..part as usize).unwrap_or_default(), offset)?;
        offset = offset.saturating_add(part);
        len = len.saturating_sub(part);
    }
    Ok(())
}

/// Opens an image and those below it.
struct BackingChain {
    /// Backing files are looked for here and nowhere else.
    folder: PathBuf,
    seen: Vec<(u64, u64)>,
    access: Access,
}

impl BackingChain {
    fn open(
        &mut self,
        file: File,
        path: &Path,
        writable: bool,
    ) -> Result<qcow2::Qcow2<ImagoFile, BackingImage>, OpenError> {
        let told = |fault| told(fault, path, self.access.cache);
        let layout = header::check(&file).map_err(told)?;
        // Only the first image of a chain is written to. A dry run checks it as well, for the machine that
        // it is about.
        if self.seen.len() == 1 && !self.access.read_only {
            let uncounted = verify::verify(&file, &layout).map_err(told)?;
            if writable && layout.bitmaps.is_some() {
                log::warn!(
                    "disk {}: its bitmaps of what has changed will not be kept up to date, and are marked so",
                    path.display()
                );
            }
            if writable && !uncounted.is_empty() {
                log::warn!(
                    "disk {}: {} of its tables were not counted, as after the end of a machine that was killed; now they are",
                    path.display(),
                    uncounted.len()
                );
                uncounted
                    .count(&file)
                    .map_err(|error| damaged(path, error_text(&error), CHECK))?;
            }
        }
        let broken = |error: io::Error| damaged(path, error_text(&error), CHECK);
        let storage = ImagoFile::try_from(file).map_err(broken)?;
        let mut image = qcow2::Qcow2::<ImagoFile, BackingImage>::open_image(storage, writable)
            .map_err(broken)?;
        if image.requires_external_data_file() {
            return Err(damaged(
                path,
                "its data is in another file, which is not supported",
                "make one file of it: qemu-img convert -O qcow2",
            ));
        }
        let backing = match image.implicit_backing_file().cloned() {
            None => None,
            Some(name) => {
                let format = image.implicit_backing_format().cloned();
                Some(self.open_backing(path, &name, format.as_deref())?)
            }
        };
        image.set_backing(backing);
        Ok(image)
    }

    fn open_backing(
        &mut self,
        above: &Path,
        name: &str,
        format: Option<&str>,
    ) -> Result<BackingImage, OpenError> {
        let wrong = |reason: String, help: &str| Err(damaged(above, reason, help));
        if !self.access.backing {
            return Err(OpenError::Rests {
                path: above.into(),
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
        if self.seen.contains(&identity(&file)) {
            return wrong(
                format!("its backing file '{name}' rests on the image itself"),
                "somebody has made a circle: qemu-img rebase -u -b mends it",
            );
        }
        self.seen.push(identity(&file));
        if self.seen.len() > MAX_CHAIN {
            return wrong(
                format!("more than {MAX_CHAIN} images rest on each other"),
                "make fewer of them: qemu-img commit",
            );
        }
        take_lock(&file, &path, true)?;
        match format {
            Format::Qcow2 => Ok(Arc::new(FormatAccess::new(self.open(file, &path, false)?))),
            Format::Raw => ImagoFile::try_from(file)
                .and_then(|storage| raw::Raw::open_image(storage, false))
                .map(|image| Arc::new(FormatAccess::new(image)))
                .map_err(|error| damaged(&path, error_text(&error), CHECK)),
        }
    }
}

fn damaged(path: &Path, reason: impl Into<String>, help: &str) -> OpenError {
    OpenError::Damaged {
        path: path.into(),
        reason: reason.into(),
        help: help.into(),
    }
}

/// What an error says, in one line also where it has several.
fn error_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => io_reason(error),
        None => error.to_string().lines().collect::<Vec<_>>().join("; "),
    }
}

fn told(fault: header::Fault, path: &Path, cache: CacheMode) -> OpenError {
    match (cache, fault.direct) {
        (CacheMode::Direct, Some(source)) => OpenError::Direct {
            path: path.into(),
            source,
        },
        _ => damaged(path, fault.reason, fault.help),
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
