//! The tables of a qcow2 file as they lie there: read in pieces, holes left out, and each cluster that
//! one of them names noted for its use ([`Counts`]). What the entries mean is in `verify`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::counts::{Counts, Use};
use super::header::{Fault, Layout, fault};
use crate::error::io_reason;
use crate::storage::aligned::Buffer;

/// The most clusters that a file may have. Their counts take 512 MiB of memory; with clusters of 64 KiB,
/// the file has 16 TiB.
pub const MAX_CLUSTERS: u64 = 1 << 28;
/// How much of a table is read at a time.
const CHUNK: u64 = 64 << 10;

/// What to do with an image whose tables are not good.
const MEND: &str =
    "mend a copy of it: qemu-img check -r all COPY.qcow2; with ',ro' it can be read as it is";

/// Where the refcount of a cluster is: `bits` of them, from bit `shift` of the byte at `offset` on.
#[derive(Debug, Clone, Copy)]
pub struct RefcountPlace {
    /// In the file, or in the block.
    pub offset: u64,
    /// How many bits it has.
    pub bits: u32,
    /// The lowest of them, where there are fewer than 8.
    pub shift: u32,
}

/// A fault of a table. What its owner can do is the same for all of them.
pub fn damaged(what: impl Into<String>) -> Fault {
    fault(what, MEND)
}

/// The file, and what is known of it so far.
pub struct Tables<'a> {
    /// The image.
    pub file: &'a File,
    /// What its header says.
    pub layout: &'a Layout,
    /// Its length.
    pub file_len: u64,
    /// Each cluster of it.
    pub counts: Counts,
    /// For reads.
    pub buffer: Buffer,
    /// A hole that was found last: there is no data from the first of these offsets to the second.
    hole: (u64, u64),
    /// L2 tables whose flag says that they are used once, and whose refcount is not 1.
    pub unsure: Vec<u64>,
}

impl<'a> Tables<'a> {
    /// The image in `file`, of which nothing is known yet.
    ///
    /// # Errors
    /// When it has more clusters than are looked at.
    pub fn new(file: &'a File, layout: &'a Layout) -> Result<Self, Fault> {
        let file_len = end_of(file).map_err(unreadable)?;
        let clusters = file_len.div_ceil(layout.cluster());
        if clusters > MAX_CLUSTERS {
            return Err(fault(
                format!(
                    "its file has {clusters} clusters, more than the {MAX_CLUSTERS} that are checked"
                ),
                "make one with larger clusters: qemu-img convert -O qcow2 -o cluster_size=2M",
            ));
        }
        Ok(Tables {
            file,
            layout,
            file_len,
            counts: Counts::new(clusters as usize),
            buffer: Buffer::default(),
            hole: (0, 0),
            unsure: Vec::new(),
        })
    }

    /// Names the clusters of `bytes` bytes at `at`, which begin at the start of one.
    pub fn name(&mut self, at: u64, bytes: u64, usage: Use, what: &str) -> Result<(), Fault> {
        let cluster = self.layout.cluster();
        if i64::try_from(at).is_err() {
            return Err(damaged(format!("{what} is outside of the file ({at:#x})")));
        }
        if !at.is_multiple_of(cluster) {
            return Err(damaged(format!(
                "{what} is not at the start of a cluster ({at:#x})"
            )));
        }
        if bytes == 0 {
            return Ok(());
        }
        let first = at / cluster;
        let last = at.saturating_add(bytes).saturating_sub(1) / cluster;
        for cluster in first..=last {
            self.name_cluster(cluster, usage, 1, what)?;
        }
        Ok(())
    }

    /// Names a cluster `times` times.
    pub fn name_cluster(
        &mut self,
        cluster: u64,
        usage: Use,
        times: u64,
        what: &str,
    ) -> Result<(), Fault> {
        // A file may end within its last cluster, and no earlier.
        if cluster >= self.counts.len() {
            return Err(damaged(format!(
                "{what} is outside of the file (cluster {cluster:#x} of {:#x})",
                self.counts.len()
            )));
        }
        self.counts
            .name(cluster, usage, times)
            .map_err(|why| damaged(format!("{what} {why} (cluster {cluster:#x})")))
    }

    /// Whether there are only zeros at `at`, as far as that can be told without reading.
    fn is_hole(&mut self, at: u64, len: u64) -> bool {
        let end = at.saturating_add(len).min(self.file_len);
        let (start, until) = self.hole;
        if at < start || at >= until {
            self.hole = (at, next_data(self.file, at, self.file_len));
        }
        end <= self.hole.1
    }

    /// The entries of a table of `count` numbers of 8 bytes, in pieces; past the end of the file they are 0.
    pub fn entries(
        &mut self,
        at: u64,
        count: u64,
        mut each: impl FnMut(&mut Self, u64, u64) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let bytes = count.saturating_mul(8);
        let mut done = 0;
        while done < bytes {
            let part = bytes.saturating_sub(done).min(CHUNK);
            let from = at.saturating_add(done);
            if !self.is_hole(from, part) {
                let mut buffer = std::mem::take(&mut self.buffer);
                let read = buffer.read(self.file, from, part as usize);
                let read = read.map_err(unreadable)?;
                for (index, entry) in read.chunks(8).enumerate() {
                    // A last entry that is cut is continued by zeros.
                    let mut whole = [0; 8];
                    for (to, from) in whole.iter_mut().zip(entry) {
                        *to = *from;
                    }
                    let entry = u64::from_be_bytes(whole);
                    if entry != 0 {
                        each(self, done / 8 + index as u64, entry)?;
                    }
                }
                self.buffer = buffer;
            }
            done = done.saturating_add(part);
        }
        Ok(())
    }

    /// Calls `each` with each cluster that a refcount block counts and its count.
    pub fn refcounts(
        &mut self,
        index: u64,
        block: u64,
        mut each: impl FnMut(&mut Self, u64, u64) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (cluster, order) = (self.layout.cluster(), self.layout.refcount_order);
        let per_block = (cluster * 8) >> order;
        let first = index.saturating_mul(per_block);
        let clusters = self.counts.len();
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = match block {
            0 => &[],
            _ => buffer
                .read(self.file, block, cluster as usize)
                .map_err(unreadable)?,
        };
        let end = clusters.min(first.saturating_add(per_block));
        for cluster in first..end {
            let place = refcount_place(cluster.saturating_sub(first), order);
            let width = (place.bits / 8).max(1) as usize;
            let at = place.offset as usize;
            let bytes = read.get(at..at.saturating_add(width)).unwrap_or_default();
            let number = bytes.iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
            let mask = u64::MAX >> (64 - place.bits);
            each(self, cluster, number >> place.shift & mask)?;
        }
        self.buffer = buffer;
        Ok(())
    }
}

/// Where the count of the cluster with this number is in its block.
pub fn refcount_place(number: u64, order: u32) -> RefcountPlace {
    let bits = 1u32 << order;
    let bit = number.saturating_mul(bits.into());
    RefcountPlace {
        offset: bit / 8,
        bits,
        shift: (bit % 8) as u32,
    }
}

/// The fault that the host could not read the file.
pub fn unreadable(source: io::Error) -> Fault {
    Fault {
        reason: io_reason(&source),
        help: MEND,
        direct: Some(source),
    }
}

fn end_of(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Where the first data from `at` on is. That is `at` itself if the file system does not know.
fn next_data(file: &File, at: u64, end: u64) -> u64 {
    let Ok(offset) = i64::try_from(at) else {
        return at;
    };
    // SAFETY: the call touches no memory of ours.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), offset, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(found) => found,
        Err(_) => match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENXIO) => end,
            _ => at,
        },
    }
}
