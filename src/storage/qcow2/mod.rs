//! qcow2 images, by the imago library: sparse files that may rest on a backing file.
//!
//! [`manage`] makes and changes images as files. `header` and `verify` look at an image before the
//! library does: what is written to has good tables. [`backing`] says which files an image may name, as a header can
//! come from anywhere.
//!
//! imago keeps the format's tables; here is what a request means to it. For a machine's disk all this runs in a
//! process of its own ([`helper`](super::helper)); `bantam image` has it in its only one.

pub mod backing;
mod counts;
mod header;
pub mod manage;
mod tables;
mod verify;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use imago::file::File as ImagoFile;
use imago::{FormatAccess, Mapping, qcow2, raw};

use crate::error::io_reason;
use crate::storage::access::{Access, CacheMode};
use crate::storage::error::OpenError;
use crate::storage::format::Format;
use backing::BackingFiles;
use header::CHECK;

/// The longest piece of a discard that imago is given at a time. It keeps a list of its clusters, and other requests wait
/// meanwhile.
const DISCARD_PIECE_BYTES: u64 = 64 << 20;
/// What imago keeps of an image's tables: 128 of where clusters are, and 32 of how often they are used, each of
/// a cluster's length (`Qcow2::do_open`).
pub const CACHED_TABLES: u64 = 128 + 32;

/// An image that another one rests on: qcow2 or raw.
type BackingImage = Arc<FormatAccess<ImagoFile>>;

/// What opening an image needs from outside of it.
pub trait Surroundings {
    /// Something for the log.
    fn warn(&mut self, text: String);

    /// Opens the file on which the last image rests, by the name and the format that stand in it.
    ///
    /// # Errors
    /// Says why not.
    fn below(&mut self, name: &str, format: Option<&str>) -> Result<(File, Format), OpenError>;
}

/// Why an image cannot be opened.
pub enum Refusal {
    /// Something is wrong with one of its files.
    Damaged(Damaged),
    /// The file that it rests on cannot be had.
    Below(OpenError),
}

/// What is wrong with a file.
pub struct Damaged {
    /// Which one of the chain: 0 is the first.
    pub depth: usize,
    /// In words.
    pub reason: String,
    /// What to do.
    pub help: String,
    /// The error of the host, if the file could not be read.
    pub errno: Option<i32>,
}

impl Damaged {
    /// The same for the user. `path` is that of the file.
    pub fn told(self, path: &Path, cache: CacheMode) -> OpenError {
        match (cache, self.errno) {
            (CacheMode::Direct, Some(errno)) => OpenError::Direct {
                path: path.into(),
                source: io::Error::from_raw_os_error(errno),
            },
            _ => OpenError::Damaged {
                path: path.into(),
                reason: self.reason,
                help: self.help,
            },
        }
    }
}

/// Bytes of the disk that lie in one file, one after the other, or that are zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where they are on the disk.
    pub disk: u64,
    /// How many.
    pub len: u64,
    /// Where the first of them is.
    pub spot: Spot,
}

/// Where a byte of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// Nowhere: it is zero.
    Zero,
    /// In a file.
    At {
        /// Which one of the chain: 0 is the image's own.
        file: usize,
        /// Where.
        offset: u64,
        /// It may be written there.
        writable: bool,
    },
}

/// An open image.
pub struct Qcow2 {
    // A lock, because imago discards and zeroes clusters only while nothing else is going on.
    access: RwLock<FormatAccess<ImagoFile>>,
    len: u64,
    cluster: u64,
}

impl Qcow2 {
    /// The image in `file`, which is locked, for requests as `access` says.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn open(
        file: File,
        access: Access,
        around: &mut dyn Surroundings,
    ) -> Result<Self, Refusal> {
        let cluster = header::check(&file).map_or(0, |layout| layout.cluster());
        let access = open_chain(file, access, around)?;
        Ok(Qcow2 {
            len: access.size(),
            access: RwLock::new(access),
            cluster,
        })
    }

    /// The image in `file`, which was opened from `path` and is locked, as imago's own type.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn access(
        file: File,
        path: &Path,
        access: Access,
    ) -> Result<FormatAccess<ImagoFile>, OpenError> {
        let mut here = Here(BackingFiles::of(&file, path, access));
        open_chain(file, access, &mut here).map_err(|refusal| here.0.told(refusal))
    }

    /// Length of the disk in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: such an image is refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    fn shared<T>(
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

    /// Fills `data` from `offset` on.
    ///
    /// # Errors
    /// Those of the host, and what is wrong with the image.
    pub fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.shared(|access| access.read(data, offset))
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// The same.
    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.shared(|access| access.write(data, offset))
    }

    /// Makes durable what has been written.
    ///
    /// # Errors
    /// Those of the host.
    pub fn flush(&self) -> io::Result<()> {
        self.shared(|access| {
            // First the tables go from memory to the file, then the file goes to the host's disk.
            access.flush()?;
            access.sync()
        })
    }

    /// Waits until nobody is at work on it, and writes what is kept in memory into the file.
    ///
    /// # Errors
    /// Those of the host.
    pub fn close(&self) -> io::Result<()> {
        self.alone(|access| access.flush())
    }

    /// Lets the content become anything.
    ///
    /// # Errors
    /// Those of the host, and what is wrong with the image.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let piece = DISCARD_PIECE_BYTES.min(len.saturating_sub(done));
            let from = offset.saturating_add(done);
            match self.alone(|access| access.discard_to_any(from, piece)) {
                // A discard is only a hint, and images of version 2 have no way to take it.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
                result => result?,
            }
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    /// Makes the content zeros; with `unmap`, the space may go.
    ///
    /// # Errors
    /// Those of the host, and what is wrong with the image.
    pub fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        // imago looks whether the rest of a cluster is zeros, and then makes all of it zeros: a
        // write to that rest must not come between.
        self.alone(|access| {
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
        })
    }

    /// Where the bytes from `from` to before `end` are, as far as they lie plainly in a file or are zeros; the first
    /// `most` pieces of them.
    pub fn extents(&self, from: u64, end: u64, most: usize) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut at = from;
        let end = end.min(self.len);
        // Nobody waits for this, so an error only ends it.
        let _ = self.shared(|access| {
            // From the lowest file of the chain to the image's own.
            let files = access.inner().collect_storage_dependencies();
            for _ in 0..most.saturating_mul(2) {
                if at >= end || extents.len() >= most {
                    break;
                }
                let (mapping, len) = access.get_mapping(at, end.saturating_sub(at))?;
                let spot = match mapping {
                    Mapping::Raw {
                        storage,
                        offset,
                        writable,
                        ..
                    } => {
                        let file = files.iter().rev().position(|f| std::ptr::eq(*f, storage));
                        file.map(|file| Spot::At {
                            file,
                            offset,
                            // Also where the library knows of a backing file's own clusters.
                            writable: writable && file == 0,
                        })
                    }
                    Mapping::Zero { .. } => Some(Spot::Zero),
                    _ => None,
                };
                extents.extend(spot.map(|spot| Extent {
                    disk: at,
                    len,
                    spot,
                }));
                if len == 0 {
                    break;
                }
                at = at.saturating_add(len);
            }
            Ok(())
        });
        extents
    }
}

/// What is around an image that this process reads by itself.
struct Here(BackingFiles);

impl Surroundings for Here {
    fn warn(&mut self, text: String) {
        log::warn!("disk {}: {text}", self.0.path(0).display());
    }

    fn below(&mut self, name: &str, format: Option<&str>) -> Result<(File, Format), OpenError> {
        self.0.open(name, format)
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
fn open_chain(
    file: File,
    access: Access,
    around: &mut dyn Surroundings,
) -> Result<FormatAccess<ImagoFile>, Refusal> {
    let writable = !access.read_only && !access.look_only;
    let image = open_image(file, 0, access, writable, around)?;
    Ok(FormatAccess::new(image))
}

/// Opens the image in `file`, which is the one with the number `depth` of its chain, and what it rests on. There are
/// no more than [`backing::MAX_CHAIN`].
fn open_image(
    file: File,
    depth: usize,
    access: Access,
    writable: bool,
    around: &mut dyn Surroundings,
) -> Result<qcow2::Qcow2<ImagoFile, BackingImage>, Refusal> {
    let faulty = |fault: header::Fault| {
        Refusal::Damaged(Damaged {
            depth,
            reason: fault.reason,
            help: fault.help.into(),
            errno: fault.direct.and_then(|error| error.raw_os_error()),
        })
    };
    let broken = |error: io::Error| damaged(depth, error_text(&error), CHECK);
    let layout = header::check(&file).map_err(faulty)?;
    // Only the first image of a chain is written to. A dry run checks it as well, for the machine that
    // it is about.
    if depth == 0 && !access.read_only {
        let uncounted = verify::verify(&file, &layout).map_err(faulty)?;
        if writable && layout.bitmaps.is_some() {
            around.warn(
                "its bitmaps of what has changed will not be kept up to date, and are marked so"
                    .into(),
            );
        }
        if writable && !uncounted.is_empty() {
            around.warn(format!(
                "{} of its tables were not counted, as after the end of a machine that was killed; now they are",
                uncounted.len()
            ));
            uncounted.count(&file).map_err(broken)?;
        }
    }
    let storage = ImagoFile::try_from(file).map_err(broken)?;
    let mut image =
        qcow2::Qcow2::<ImagoFile, BackingImage>::open_image(storage, writable).map_err(broken)?;
    if image.requires_external_data_file() {
        return Err(damaged(
            depth,
            "its data is in another file, which is not supported",
            "make one file of it: qemu-img convert -O qcow2",
        ));
    }
    let backing = match image.implicit_backing_file().cloned() {
        None => None,
        Some(name) => {
            let format = image.implicit_backing_format().cloned();
            let below = around.below(&name, format.as_deref());
            let (file, format) = below.map_err(Refusal::Below)?;
            let depth = depth.saturating_add(1);
            Some(match format {
                Format::Qcow2 => {
                    let image = open_image(file, depth, access, false, around)?;
                    Arc::new(FormatAccess::new(image))
                }
                Format::Raw => ImagoFile::try_from(file)
                    .and_then(|storage| raw::Raw::open_image(storage, false))
                    .map(|image| Arc::new(FormatAccess::new(image)))
                    .map_err(|error| damaged(depth, error_text(&error), CHECK))?,
            })
        }
    };
    image.set_backing(backing);
    Ok(image)
}

fn damaged(depth: usize, reason: impl Into<String>, help: &str) -> Refusal {
    Refusal::Damaged(Damaged {
        depth,
        reason: reason.into(),
        help: help.into(),
        errno: None,
    })
}

/// What an error says, in one line also where it has several.
fn error_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => io_reason(error),
        None => error.to_string().lines().collect::<Vec<_>>().join("; "),
    }
}
