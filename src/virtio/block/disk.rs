//! What all queues of one disk share, and what its driver is told of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::bindings::virtio_blk as blk;
use vm_memory::GuestMemoryMmap;

use super::request::{Geometry, MAX_DISCARD_SECTORS, MAX_ZERO_SECTORS};
use super::{BlockModel, QUEUE_SIZE, SERIAL_BYTES};
use crate::error::io_reason;
use crate::storage::{Flushes, Image, IoMode, SECTOR_BYTES, Work};
use crate::virtio::complaints::Complaints;
use crate::virtio::device::Host;
use crate::virtio::limit::Limiter;

/// Data segments per request: the ring less the header and the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// What the host's file systems and disks like to write at a time.
const PHYSICAL_BLOCK: u32 = 4096;
/// Blocking requests that one queue works on at a time: enough to keep a fast disk busy.
pub const MAX_THREADS: usize = 16;
/// All of one disk's. They are there from the start, so many queues must not mean many times sixteen.
pub const MAX_THREADS_OF_DISK: usize = 256;
/// The same of one that is no raw file: imago pins a table of its cache for each request that it works on, of 128
/// for an image.
pub const MAX_THREADS_OF_FORMAT: usize = 64;

/// How many threads each queue's engine has at most, on a disk of so many queues.
pub fn threads(queues: u16, is_raw: bool) -> usize {
    let most = match is_raw {
        true => MAX_THREADS_OF_DISK,
        false => MAX_THREADS_OF_FORMAT,
    };
    (most / usize::from(queues.max(1))).clamp(1, MAX_THREADS)
}

/// What all queues share.
pub struct Disk {
    pub(super) image: Arc<dyn Image>,
    pub(super) flushes: Arc<Flushes>,
    pub(super) geometry: Geometry,
    pub(super) serial: [u8; SERIAL_BYTES],
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) limiter: Option<Limiter>,
    pub(super) io: IoMode,
    /// Of one queue's engine, at most.
    pub(super) threads: usize,
    pub(super) queues: u16,
    pub(super) complaints: Arc<Complaints>,
    told_of_full: AtomicBool,
}

impl Disk {
    pub(super) fn new(setup: &BlockModel, host: &Host) -> Self {
        let mut serial = [0; SERIAL_BYTES];
        for (to, from) in serial.iter_mut().zip(setup.serial.bytes()) {
            *to = from;
        }
        let block = setup.image.alignment().max(SECTOR_BYTES as u32);
        let len = setup.image.len();
        Disk {
            threads: threads(setup.queues, setup.image.raw_file().is_some()),
            queues: setup.queues.max(1),
            geometry: Geometry {
                len: len.saturating_sub(len % u64::from(block)),
                read_only: setup.read_only,
                discard: setup.discard && !setup.read_only,
                block,
            },
            image: setup.image.clone(),
            flushes: setup.flushes.clone(),
            serial,
            memory: host.memory.clone(),
            limiter: Limiter::new(setup.limit_requests, setup.limit_bytes),
            io: setup.io,
            complaints: host.complaints.clone(),
            told_of_full: AtomicBool::new(false),
        }
    }

    /// The features that are offered for this disk.
    pub(super) fn features(&self, queues: u16) -> u64 {
        let mut features = 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_TOPOLOGY
            | 1 << blk::VIRTIO_BLK_F_FLUSH;
        if self.geometry.read_only {
            features |= 1 << blk::VIRTIO_BLK_F_RO;
        }
        if self.geometry.discard {
            features |= 1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;
        }
        if queues > 1 {
            features |= 1 << blk::VIRTIO_BLK_F_MQ;
        }
        features
    }

    /// `struct virtio_blk_config` up to `write_zeroes_may_unmap` (5.2.4).
    ///
    /// ```text
    ///    0 capacity u64            24 physical_block_exp u8   34 num_queues u16
    ///    8 size_max u32            25 alignment_offset u8     36 max_discard_sectors u32
    ///   12 seg_max u32             26 min_io_size u16         40 max_discard_seg u32
    ///   16 geometry u32            28 opt_io_size u32         44 discard_sector_alignment u32
    ///   20 blk_size u32            32 writeback u8, unused u8 48 max_write_zeroes_sectors u32
    ///                                                         52 max_write_zeroes_seg u32
    ///                                                         56 write_zeroes_may_unmap u8
    /// ```
    pub(super) fn config_space(&self, queues: u16) -> Vec<u8> {
        let block = self.geometry.block;
        let blocks = PHYSICAL_BLOCK.checked_div(block).unwrap_or(1).max(1);
        let mut config = Vec::with_capacity(60);
        config.extend((self.geometry.len / SECTOR_BYTES).to_le_bytes());
        config.extend(0u32.to_le_bytes());
        config.extend(SEG_MAX.to_le_bytes());
        config.extend(0u32.to_le_bytes());
        config.extend(block.to_le_bytes());
        config.extend([blocks.trailing_zeros() as u8, 0]);
        config.extend((blocks as u16).to_le_bytes());
        config.extend(0u32.to_le_bytes());
        config.extend([0, 0]);
        config.extend(queues.to_le_bytes());
        config.extend(MAX_DISCARD_SECTORS.to_le_bytes());
        config.extend(1u32.to_le_bytes());
        config.extend((PHYSICAL_BLOCK / SECTOR_BYTES as u32).to_le_bytes());
        config.extend(MAX_ZERO_SECTORS.to_le_bytes());
        config.extend(1u32.to_le_bytes());
        config.extend([1, 0, 0, 0]);
        config
    }

    /// Says what has failed, and why. That there is no room is said once: all that a guest writes
    /// after it fails in the same way.
    pub(super) fn complain_of(&self, work: Work, error: &io::Error) {
        let mut text = format!("{work:?}: {}", io_reason(error));
        if let io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded = error.kind() {
            if self.told_of_full.swap(true, Ordering::Relaxed) {
                return;
            }
            text.push_str("; more of this is not shown");
        }
        self.complaints.add(&text);
    }
}
