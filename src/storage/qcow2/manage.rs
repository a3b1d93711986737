//! Makes qcow2 images, reads what their headers say, and gives them other lengths.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use imago::file::File as ImagoFile;
use imago::format::PreallocateMode;
use imago::{FormatAccess, FormatCreateBuilder, qcow2};

use super::BackingImage;
use crate::storage::format::{Format, QCOW2_MAGIC};

/// What a new image is like.
#[derive(Debug, Clone)]
pub struct New {
    /// Length of the disk in bytes.
    pub len: u64,
    /// Bytes of a cluster, the unit by which the file grows.
    pub cluster: usize,
    /// The file below, by its name as it is to stand in the image.
    pub backing: Option<(String, Format)>,
}

/// Bytes of a cluster where nobody says otherwise.
pub const CLUSTER: usize = 64 << 10;

/// Writes an image without content into `file`, which is empty, and returns it open.
///
/// # Errors
/// Those of the host, and what the format cannot have.
pub fn make(file: File, new: &New) -> io::Result<FormatAccess<ImagoFile>> {
    let storage = ImagoFile::try_from(file)?;
    let mut builder = qcow2::Qcow2::<ImagoFile, BackingImage>::create_builder(storage)
        .size(new.len)
        .cluster_size(new.cluster);
    if let Some((name, format)) = &new.backing {
        builder = builder.backing(name.clone(), format.to_string());
    }
    let image = builder.create_open(imago::DenyImplicitOpenGate::default(), |storage| {
        use imago::FormatDriverBuilder;
        let open = qcow2::Qcow2::<ImagoFile, BackingImage>::builder(storage);
        Ok(open.backing(None).write(true))
    })?;
    let access = FormatAccess::new(image);
    access.flush()?;
    Ok(access)
}

/// What an image's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Of the format: 2 or 3.
    pub version: u32,
    /// Length of the disk in bytes.
    pub len: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// The file below.
    pub backing: Option<String>,
    /// And its format.
    pub backing_format: Option<String>,
    /// Snapshots inside of the image.
    pub snapshots: u32,
    /// The content is encrypted.
    pub encrypted: bool,
}

/// Reads the header of `file`; `None` for what is no qcow2 image.
///
/// # Errors
/// Those of the host, and what is wrong with the image.
pub fn facts(file: &File) -> io::Result<Option<Facts>> {
    let mut header = [0; super::header::HEADER_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    if !header.starts_with(QCOW2_MAGIC) {
        return Ok(None);
    }
    let word = |at: usize| super::header::be32(&header, at).unwrap_or(0);
    let mut facts = Facts {
        version: word(4),
        len: super::header::be64(&header, 24).unwrap_or(0),
        cluster: 1u64.checked_shl(word(20)).unwrap_or(0),
        backing: None,
        backing_format: None,
        snapshots: word(60),
        encrypted: word(32) != 0,
    };
    // Much is told also of an image that cannot be used; what lies behind the header is not.
    if super::header::check(file).is_ok() {
        let storage = ImagoFile::try_from(file.try_clone()?)?;
        let image = qcow2::Qcow2::<ImagoFile, BackingImage>::open_image(storage, false)?;
        facts.backing = image.implicit_backing_file().cloned();
        facts.backing_format = image.implicit_backing_format().cloned();
    }
    Ok(Some(facts))
}

/// Gives a disk another length. It is open with what it rests on, as the last cluster of the old
/// length may have to be completed from there.
///
/// # Errors
/// Those of the host, and what is wrong with the image.
pub fn resize(
    mut access: FormatAccess<ImagoFile>,
    rests: bool,
    cluster: u64,
    len: u64,
) -> io::Result<()> {
    let old = access.size();
    if len < old {
        access.resize_shrink(len)?;
    } else {
        // What the backing file has past the old end must not show through.
        let how = match rests {
            true => PreallocateMode::Zero,
            false => PreallocateMode::None,
        };
        access.resize_grow(len, how)?;
        clear_tail(&access, old, cluster, len)?;
    }
    access.flush()?;
    access.sync()
}
/// Makes zeros of what is behind the `old` end in its cluster: the disk may have been longer before, and what was there
/// then must not come back.
fn clear_tail(
    access: &FormatAccess<ImagoFile>,
    old: u64,
    cluster: u64,
    len: u64,
) -> io::Result<()> {
    let end = old
        .checked_next_multiple_of(cluster)
        .unwrap_or(old)
        .min(len);
    let mut piece = vec![0; 64 << 10];
    let mut at = old;
    while at < end {
        let count = end.saturating_sub(at).min(piece.len() as u64);
        let part = piece.get_mut(..count as usize).unwrap_or_default();
        access.read(&mut *part, at)?;
        if part.iter().any(|byte| *byte != 0) {
            part.fill(0);
            access.write(&*part, at)?;
        }
        at = at.saturating_add(count);
    }
    Ok(())
}
