//! A new image.

use std::path::Path;

use super::target::Target;
use super::{ImageError, format_to_make, host, info, whole_sectors};
use crate::storage::Format;
use crate::storage::qcow2::manage::{self, New};

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Create<'a> {
    /// The file to make.
    pub path: &'a Path,
    /// Its format, where it is not that of the name.
    pub format: Option<Format>,
    /// Length of the disk in bytes; that of the backing file where it is not given.
    pub len: Option<u64>,
    /// Bytes of a cluster, for qcow2.
    pub cluster: Option<u64>,
    /// The file below, as it is to stand in the image, and its format.
    pub backing: Option<(&'a str, Format)>,
}

/// Makes the image; returns the length of the disk, and its format.
///
/// # Errors
/// See [`ImageError`].
pub fn create(wanted: &Create<'_>) -> Result<(u64, Format), ImageError> {
    let words = |what: &str, help: &str| ImageError::Words {
        what: what.into(),
        help: help.into(),
    };
    let format = format_to_make(wanted.path, wanted.format)?;
    if format == Format::Raw && (wanted.backing.is_some() || wanted.cluster.is_some()) {
        return Err(words(
            "a raw image has neither clusters nor a backing file",
            "make a qcow2 image: -f qcow2",
        ));
    }
    let cluster = wanted.cluster.unwrap_or(manage::CLUSTER as u64);
    if !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster) {
        return Err(words(
            &format!("a cluster cannot have {cluster} bytes"),
            "give a power of two from 512 to 2M",
        ));
    }
    let below = match wanted.backing {
        Some((name, format)) => Some(length_below(wanted.path, name, format)?),
        None => None,
    };
    let len = wanted.len.or(below).ok_or_else(|| {
        words(
            "no size is given",
            "say how large the disk is to be: bantam image create disk.qcow2 20G",
        )
    })?;
    let len = whole_sectors(len)?;
    let (target, file) = Target::create(wanted.path)?;
    match format {
        Format::Raw => file.set_len(len).map_err(host("make", wanted.path))?,
        Format::Qcow2 => {
            let new = New {
                len,
                cluster: cluster as usize,
                backing: wanted.backing.map(|(name, format)| (name.into(), format)),
            };
            file.try_clone()
                .and_then(|file| manage::make(file, &new))
                .map_err(host("make", wanted.path))?;
        }
    }
    target.finish(&file)?;
    Ok((len, format))
}

/// The length of the disk below; the file has to be where a machine will look for it.
fn length_below(path: &Path, name: &str, format: Format) -> Result<u64, ImageError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let below = folder.join(name);
    let len = info::info(&below, Some(format))?.len;
    let inside = folder
        .canonicalize()
        .and_then(|folder| Ok((folder, below.canonicalize()?)));
    match inside {
        Ok((folder, below)) if below.starts_with(&folder) => Ok(len),
        _ => Err(ImageError::Words {
            what: format!("the backing file {} is in another folder", below.display()),
            help: "keep a chain of images in one folder: a machine follows it nowhere else".into(),
        }),
    }
}
