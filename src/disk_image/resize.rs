//! Another length for a disk.

use std::io::{Seek, SeekFrom};
use std::path::Path;

use super::{ImageError, host, open_locked, whole_sectors};
use crate::storage::Access;
use crate::storage::Format;
use crate::storage::qcow2::{Qcow2, manage};

/// The length that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many bytes.
    To(u64),
    /// So many more.
    By(u64),
    /// So many fewer.
    Less(u64),
}

/// Gives the disk in `path` another length; returns the old and the new one. With `backing`, an
/// image with a backing file is resized too: the end of its last cluster may have to be read there.
///
/// # Errors
/// See [`ImageError`].
pub fn resize(
    path: &Path,
    format: Option<Format>,
    length: Length,
    shrink: bool,
    backing: bool,
) -> Result<(u64, u64), ImageError> {
    let words = |what: String, help: &str| ImageError::Words {
        what,
        help: help.into(),
    };
    let (mut file, format) = open_locked(path, format, false)?;
    let (mut rests, mut old_snapshots, mut cluster) = (false, false, 0);
    let old = match format {
        Format::Raw => file.seek(SeekFrom::End(0)).map_err(host("read", path))?,
        Format::Qcow2 => match manage::facts(&file).map_err(host("read", path))? {
            Some(facts) => {
                rests = facts.backing.is_some();
                cluster = facts.cluster;
                old_snapshots = facts.version == 2 && facts.snapshots > 0;
                facts.len
            }
            None => {
                let what = format!("{} is not a qcow2 image", path.display());
                return Err(words(what, "say '-f raw' if it is a raw one"));
            }
        },
    };
    let new = match length {
        Length::To(len) => Some(len),
        Length::By(more) => old.checked_add(more),
        Length::Less(less) => old.checked_sub(less),
    };
    let help = "give a size between 512 bytes and what a file can be: 20G, +5G, -5G";
    let new = new.ok_or_else(|| words("there is no disk of that size".into(), help))?;
    let new = whole_sectors(new)?;
    if old_snapshots && new != old {
        return Err(words(
            format!(
                "{} is of version 2 and has snapshots, which know no length of their own",
                path.display()
            ),
            "make it one of version 3: qemu-img amend -f qcow2 -o compat=1.1 IMAGE",
        ));
    }
    if new < old && !shrink {
        return Err(words(
            format!(
                "{} would lose its last {} bytes",
                path.display(),
                old.saturating_sub(new)
            ),
            "make the guest's file system smaller first, then say --shrink",
        ));
    }
    match format {
        Format::Raw => file.set_len(new),
        Format::Qcow2 => {
            let access = Access {
                format,
                backing,
                ..Access::default()
            };
            let image = Qcow2::access(file, path, access)?;
            manage::resize(image, rests, cluster, new)
        }
    }
    .map_err(host("resize", path))?;
    Ok((old, new))
}
