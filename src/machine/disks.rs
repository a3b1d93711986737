//! From the disks of a configuration to open images.
//!
//! An image is opened and locked here, once for all lives of a machine. A disk whose writes are thrown
//! away gets its overlay here. What comes out is the model of a disk, for the list of parts.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Disk;
use crate::error::{Help, io_reason};
use crate::storage::{IoMode, OpenError, Overlay, OverlayError, engine, open};
use crate::virtio::block::BlockModel;

/// Why a disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its image.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// The file for what is written to a snapshot.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// io_uring was asked for by name.
    #[error("no io_uring: {}", io_reason(source))]
    Uring {
        /// The host's reason.
        source: std::io::Error,
    },
    /// One image under two names, or twice under one.
    #[error("disks {} and {} are the same image", first.display(), second.display())]
    Same {
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

impl Help for DiskError {
    fn help(&self) -> String {
        match self {
            DiskError::Image(error) => error.help(),
            DiskError::Overlay(error) => error.help(),
            DiskError::Uring { .. } => {
                "leave 'io=uring' away, or allow it: sysctl kernel.io_uring_disabled".into()
            }
            DiskError::Same { .. } => {
                "attach it once, or with ',snapshot' or ',ro' each time; two disks that write to one \
                 image destroy it"
                    .into()
            }
        }
    }
}

/// Opens and locks the images of `configs`, in order.
///
/// # Errors
/// Those of the images; and when one of them is there twice, and written to.
pub fn open_all(configs: &[Disk]) -> Result<Vec<BlockModel>, DiskError> {
    let mut disks = Vec::new();
    // Device and inode of each, its path, and whether it is only read.
    let mut seen: Vec<((u64, u64), PathBuf, bool)> = Vec::new();
    for (config, letter) in configs.iter().zip('a'..='z') {
        let reads = config.image_access().read_only;
        // Before the lock says only "in use": by ourselves?
        let same = seen.iter().find(|(identity, ..)| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(&config.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == *identity)
        });
        if let Some((_, first, _)) = same.filter(|(.., other_reads)| !(*other_reads && reads)) {
            return Err(DiskError::Same {
                first: first.clone(),
                second: config.path.clone(),
            });
        }
        let name = format!("vd{letter}");
        let opened = open::open_as(&config.path, config.image_access(), &name)?;
        let mut image = opened.image;
        if config.is_snapshot() {
            image = Arc::new(Overlay::over(image, &config.path)?);
        }
        if config.io == IoMode::Uring {
            engine::check_uring().map_err(|source| DiskError::Uring { source })?;
        }
        seen.push((opened.identity, config.path.clone(), reads));
        disks.push(BlockModel {
            flushes: Arc::default(),
            image,
            path: config.path.clone(),
            lock: Some(opened.locked),
            read_only: config.access.read_only,
            snapshot: config.is_snapshot(),
            discard: config.discard,
            serial: config
                .serial
                .clone()
                .unwrap_or_else(|| serial_from(opened.identity)),
            queues: config.queues,
            io: config.io,
            limit_requests: config.limit_requests,
            limit_bytes: config.limit_bytes,
            io_thread: config.io_thread,
            poll: config.poll,
        });
    }
    Ok(disks)
}

/// 20 characters that stay the same as long as the file does.
fn serial_from((device, inode): (u64, u64)) -> String {
    format!("{:04x}{:016x}", device & 0xffff, inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_have_20_characters() {
        assert_eq!(serial_from((u64::MAX, 7)), "ffff0000000000000007");
    }
}
