//! What an image is.

use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::{ImageError, host};
use crate::error::escaped;
use crate::storage::access::open_file;
use crate::storage::open::{self, Content};
use crate::storage::qcow2::manage::{self, Facts};
use crate::storage::{Access, Format, lock};

/// What is known of an image. Lengths are in bytes; the names are those of qemu-img's JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// Where it is.
    #[serde(rename = "filename")]
    pub path: String,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Length of the disk.
    #[serde(rename = "virtual-size")]
    pub len: u64,
    /// What the file takes on the host.
    #[serde(rename = "actual-size")]
    pub allocated: u64,
    /// A cluster of a qcow2 image.
    #[serde(rename = "cluster-size", skip_serializing_if = "Option::is_none")]
    pub cluster: Option<u64>,
    /// The file below.
    #[serde(rename = "backing-filename", skip_serializing_if = "Option::is_none")]
    pub backing: Option<String>,
    /// And its format.
    #[serde(
        rename = "backing-filename-format",
        skip_serializing_if = "Option::is_none"
    )]
    pub backing_format: Option<String>,
    /// Snapshots inside of the image.
    #[serde(skip_serializing_if = "is_zero")]
    pub snapshots: u32,
    /// The content is encrypted.
    pub encrypted: bool,
    /// Processes that have it open under a lock.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub in_use_by: Vec<u32>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Looks at the image at `path`. Where no format is given its header tells: nothing is used by
/// that, only told.
///
/// # Errors
/// See [`ImageError`].
pub fn info(path: &Path, format: Option<Format>) -> Result<Info, ImageError> {
    let access = Access {
        read_only: true,
        ..Access::default()
    };
    let mut file = open_file(path, access)?;
    let end = file.seek(SeekFrom::End(0)).map_err(host("read", path))?;
    let found = match open::content(&file, end) {
        Content::Qcow2 => Format::Qcow2,
        Content::Foreign(_) | Content::Unknown => Format::Raw,
    };
    let access = Access {
        guessed: format.is_none(),
        format: format.unwrap_or(found),
        ..access
    };
    open::check_content(&file, path, end, access)?;
    let format = access.format;
    let facts: Option<Facts> = match format {
        Format::Raw => None,
        Format::Qcow2 => manage::facts(&file).map_err(host("read", path))?,
    };
    if format == Format::Qcow2 && facts.is_none() {
        return Err(ImageError::Words {
            what: format!("{} is not a qcow2 image", path.display()),
            help: "leave '-f qcow2' away".into(),
        });
    }
    let meta = file.metadata().map_err(host("read", path))?;
    Ok(Info {
        path: path.display().to_string(),
        format: format.to_string(),
        len: facts.as_ref().map_or(end, |facts| facts.len),
        allocated: meta.blocks().saturating_mul(512),
        cluster: facts.as_ref().map(|facts| facts.cluster),
        backing: facts.as_ref().and_then(|facts| facts.backing.clone()),
        backing_format: facts.as_ref().and_then(|f| f.backing_format.clone()),
        snapshots: facts.as_ref().map_or(0, |facts| facts.snapshots),
        encrypted: facts.is_some_and(|facts| facts.encrypted),
        in_use_by: lock::holders(&file),
    })
}

impl Info {
    /// Lines for a reader, at a terminal perhaps.
    pub fn text(&self) -> String {
        let mut lines = vec![
            ("image", self.path.clone()),
            ("format", self.format.clone()),
            ("disk", amount(self.len)),
            ("file", format!("{} on the host", amount(self.allocated))),
        ];
        if let Some(cluster) = self.cluster {
            lines.push(("cluster", amount(cluster)));
        }
        if let Some(backing) = &self.backing {
            let format = self.backing_format.as_deref().unwrap_or("format not said");
            lines.push(("backing", format!("{backing} ({format})")));
        }
        if self.snapshots > 0 {
            lines.push(("snapshots", self.snapshots.to_string()));
        }
        if self.encrypted {
            lines.push(("encrypted", "yes".into()));
        }
        if !self.in_use_by.is_empty() {
            let pids: Vec<_> = self.in_use_by.iter().map(u32::to_string).collect();
            lines.push(("in use by", format!("process {}", pids.join(", "))));
        }
        lines
            .into_iter()
            .map(|(name, value)| format!("{name:<10} {}\n", escaped(value)))
            .collect()
    }
}

/// `20 GiB (21474836480 bytes)`
pub fn amount(bytes: u64) -> String {
    const UNITS: [(u32, &str); 5] = [
        (60, "EiB"),
        (40, "TiB"),
        (30, "GiB"),
        (20, "MiB"),
        (10, "KiB"),
    ];
    match UNITS.iter().find(|(shift, _)| bytes >> shift > 0) {
        None => format!("{bytes} bytes"),
        Some((shift, unit)) => {
            let whole = bytes as f64 / (1u64 << shift) as f64;
            let digits = usize::from(bytes.trailing_zeros() < *shift);
            format!("{whole:.digits$} {unit} ({bytes} bytes)")
        }
    }
}
