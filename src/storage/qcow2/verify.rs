//! Whether a qcow2 image can be written to: its tables are known to be good before anything is.
//!
//! ```text
//!   header ─┬─▶ refcount table ──▶ refcount blocks      how often each cluster is used
//!           ├─▶ L1 table ──▶ L2 tables ──▶ data         the disk as it is now
//!           ├─▶ table of snapshots ──▶ L1 tables ──▶ …  as it was
//!           └─▶ bitmaps ──▶ tables ──▶ their data
//! ```
//!
//! Whoever writes to an image takes the clusters that it counts as free, and writes in place to
//! those that it calls its own. If a table lies in a cluster that counts as free, or if two things
//! share a cluster that one of them calls its own, a write destroys what it was not meant for. So all
//! tables are walked first, as `qemu-img check` does, and every cluster that anything names has to be
//! inside of the file, named for one purpose, and counted at least as often as it is named. Clusters
//! that are counted and that nothing names are lost space, and harmless.
//!
//! What this takes: an L2 table is read once, however many snapshots name it, a refcount block twice,
//! and what is a hole of the file not at all. So the time is in proportion to the bytes of tables that
//! the file really has. Two bytes of memory are used for each cluster of the file that anything is
//! known of; there may be 2^28 ([`MAX_CLUSTERS`](super::tables::MAX_CLUSTERS)). Nothing calls itself.

use std::fs::File;
use std::io;

use super::counts::Use;
use super::header::{Bitmaps, Fault, Layout, MAX_L1_BYTES, be32, be64};
use super::tables::{RefcountPlace, Tables, damaged, refcount_place, unreadable};
use crate::storage::aligned::Buffer;

/// The bounds that QEMU has for the table of snapshots and the directory of bitmaps, in bytes and in
/// entries.
const MAX_SNAPSHOT_BYTES: u64 = 64 << 20;
const MAX_SNAPSHOTS: u32 = 65_536;
const MAX_BITMAP_BYTES: u64 = 64 << 20;
const MAX_BITMAPS: u32 = 65_535;

/// Entries of L1 and L2 tables: where the next table or the data is,
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// that its refcount is 1, so that it may be changed where it is,
const COPIED: u64 = 1 << 63;
/// that it is compressed, and the rest of the entry has another form,
const COMPRESSED: u64 = 1 << 62;
/// that the data is zeros, whatever the cluster has.
const ZERO: u64 = 1;
/// Bits that mean nothing have to be 0.
const L1_RESERVED: u64 = !(OFFSET | COPIED);
const L2_RESERVED: u64 = !(OFFSET | COPIED | COMPRESSED | ZERO);

/// Tables that are in use and count as free, as a machine leaves them that was killed between the
/// two writes; each has to be counted before the image is written to.
pub struct Uncounted {
    places: Vec<RefcountPlace>,
}

/// Walks the tables of the image in `file`, whose header has been checked.
///
/// # Errors
/// Says what is damaged.
pub fn verify(file: &File, layout: &Layout) -> Result<Uncounted, Fault> {
    let mut tables = Tables::new(file, layout)?;
    tables.name(0, 1, Use::Fixed, "its header")?;
    let blocks = tables.refcount_table()?;
    for (index, block) in blocks.iter().enumerate() {
        tables.note_exclusive(index as u64, *block)?;
    }
    let snapshots = tables.snapshots()?;
    if let Some(bitmaps) = &layout.bitmaps {
        tables.bitmaps(bitmaps)?;
    }
    tables.l1(layout.l1_at, layout.l1_entries, Use::ActiveL2)?;
    for (at, entries) in snapshots {
        tables.l1(at, entries, Use::SnapshotL2)?;
    }
    let mut next = 0;
    while let Some(cluster) = tables.counts.next(next) {
        match tables.counts.usage(cluster) {
            Use::ActiveL2 => tables.l2(cluster, Use::ActiveData)?,
            Use::SnapshotL2 => tables.l2(cluster, Use::SnapshotData)?,
            _ => {}
        }
        next = cluster.saturating_add(1);
    }
    tables.compare(&blocks)
}

impl Uncounted {
    /// How many.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Counts each of them once, in the file.
    ///
    /// # Errors
    /// Those of the host.
    pub fn count(&self, file: &File) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut buffer = Buffer::default();
        for place in &self.places {
            // Big-endian: the last byte is the lowest.
            let bytes = (place.bits / 8).max(1) as usize;
            let last = place.offset.saturating_add(bytes as u64).saturating_sub(1);
            buffer.change(file, last, 1, |byte| {
                for byte in byte {
                    *byte |= 1 << place.shift;
                }
            })?;
        }
        file.sync_data()
    }
}

impl Tables<'_> {
    /// Names the refcount table and its blocks; returns where these are.
    fn refcount_table(&mut self) -> Result<Vec<u64>, Fault> {
        let (at, bytes) = (self.layout.refcounts_at, self.layout.refcount_bytes());
        self.name(at, bytes, Use::Fixed, "its refcount table")?;
        if bytes == 0 {
            return Err(damaged("it has no refcount table"));
        }
        let cluster = self.layout.cluster();
        let mut blocks = vec![0; (bytes / 8) as usize];
        self.entries(at, bytes / 8, |tables, index, block| {
            tables.name(block, cluster, Use::Fixed, "a refcount block")?;
            if let Some(place) = blocks.get_mut(index as usize) {
                *place = block;
            }
            Ok(())
        })?;
        Ok(blocks)
    }

    fn note_exclusive(&mut self, index: u64, block: u64) -> Result<(), Fault> {
        if block == 0 {
            return Ok(());
        }
        self.refcounts(index, block, |tables, cluster, count| {
            if count == 1 {
                tables.counts.set_exclusive(cluster);
            }
            Ok(())
        })
    }

    /// Names the table of snapshots and their L1 tables; returns where these are, and their entries.
    fn snapshots(&mut self) -> Result<Vec<(u64, u64)>, Fault> {
        let (at, count) = (self.layout.snapshots_at, self.layout.snapshots);
        // This is checked also where there are no snapshots, as QEMU would not open the image otherwise.
        self.name(at, 0, Use::Fixed, "its table of snapshots")?;
        if count == 0 {
            return Ok(Vec::new());
        }
        if count > MAX_SNAPSHOTS {
            return Err(damaged(format!(
                "it has {count} snapshots, more than there can be"
            )));
        }
        let mut l1 = Vec::new();
        let mut next = at;
        for _ in 0..count {
            let mut buffer = std::mem::take(&mut self.buffer);
            let entry = buffer.read(self.file, next, 56).map_err(unreadable)?;
            let number = |at| be32(entry, at).unwrap_or(0);
            // The lengths of its parts: those of id and name have 16 bits, that of the extra data has 32.
            let texts = (number(12) >> 16).saturating_add(number(12) & 0xffff);
            let extra = number(36);
            let table = (be64(entry, 0).unwrap_or(0), u64::from(number(8)));
            self.buffer = buffer;
            let least = if self.layout.version == 2 { 0 } else { 16 };
            if !(least..=1024).contains(&extra) {
                return Err(damaged("its table of snapshots is damaged"));
            }
            let len = 40 + u64::from(extra) + u64::from(texts);
            next = next.saturating_add(len.next_multiple_of(8));
            if next.saturating_sub(at) > MAX_SNAPSHOT_BYTES
                || next > self.file_len.saturating_add(8)
            {
                return Err(damaged("its table of snapshots has no end"));
            }
            l1.push(table);
        }
        let bytes = next.saturating_sub(at);
        self.name(at, bytes, Use::Fixed, "its table of snapshots")?;
        for (at, entries) in &l1 {
            self.name_l1(*at, *entries, "the L1 table of a snapshot")?;
        }
        Ok(l1)
    }

    fn name_l1(&mut self, at: u64, entries: u64, what: &str) -> Result<(), Fault> {
        let bytes = entries.saturating_mul(8);
        if bytes > MAX_L1_BYTES {
            return Err(damaged(format!(
                "{what} has {entries} entries, more than there can be"
            )));
        }
        self.name(at, bytes, Use::Fixed, what)
    }

    /// Names the L2 tables of an L1 table, and that of the disk itself.
    fn l1(&mut self, at: u64, entries: u64, usage: Use) -> Result<(), Fault> {
        let active = usage == Use::ActiveL2;
        if active {
            self.name_l1(at, entries, "its L1 table")?;
        }
        let cluster = self.layout.cluster();
        self.entries(at, entries, |tables, _, entry| {
            let l2 = entry & OFFSET;
            if entry & L1_RESERVED != 0 || l2 == 0 {
                return Err(damaged(format!(
                    "an L1 table has a damaged entry ({entry:#x})"
                )));
            }
            tables.name(l2, cluster, usage, "an L2 table")?;
            let (own, l2) = (entry & COPIED != 0, l2 / cluster);
            match (active && own != tables.counts.is_exclusive(l2), own) {
                (false, _) => Ok(()),
                // A table that is not counted at all can be mended, see `Uncounted`.
                (true, true) => {
                    tables.unsure.push(l2);
                    Ok(())
                }
                (true, false) => Err(wrong_flag("an L2 table", l2)),
            }
        })
    }

    /// Names what the L2 table in a cluster names, as often as that is named itself.
    fn l2(&mut self, table: u64, usage: Use) -> Result<(), Fault> {
        let cluster = self.layout.cluster();
        let bits = self.layout.cluster_bits;
        let times = self.counts.count(table);
        let at = table.saturating_mul(cluster);
        self.entries(at, cluster / 8, |tables, _, entry| {
            let own = entry & COPIED != 0;
            if entry & COMPRESSED != 0 {
                // The higher part counts further sectors of 512 bytes, the lower part is the offset.
                let offset_bits = 62u32.saturating_sub(bits.saturating_sub(8));
                let number = entry & (COMPRESSED - 1);
                let offset = number & ((1 << offset_bits) - 1);
                let sectors = number >> offset_bits;
                if own || offset >> 56 != 0 || offset == 0 {
                    return Err(damaged(format!(
                        "an L2 table has a damaged entry ({entry:#x})"
                    )));
                }
                let end = (offset / 512).saturating_add(sectors).saturating_add(1) * 512;
                for cluster in offset / cluster..=(end - 1) / cluster {
                    tables.name_cluster(cluster, Use::Compressed, times, "compressed data")?;
                }
                return Ok(());
            }
            let data = entry & OFFSET;
            let zero = entry & ZERO != 0;
            if entry & L2_RESERVED != 0
                || (zero && tables.layout.version == 2)
                || (own && data == 0)
            {
                return Err(damaged(format!(
                    "an L2 table has a damaged entry ({entry:#x})"
                )));
            }
            if data == 0 {
                return Ok(());
            }
            if !data.is_multiple_of(cluster) {
                return Err(damaged(format!(
                    "data is not at the start of a cluster ({data:#x})"
                )));
            }
            let data = data / cluster;
            tables.name_cluster(data, usage, times, "data")?;
            // Only in the disk as it is now, and not in snapshots, does the flag mean anything.
            if usage == Use::ActiveData && own != tables.counts.is_exclusive(data) {
                return Err(wrong_flag("data", data));
            }
            Ok(())
        })
    }

    /// Names the directory of bitmaps, their tables, and their data.
    fn bitmaps(&mut self, bitmaps: &Bitmaps) -> Result<(), Fault> {
        let wrong = || damaged("its directory of bitmaps is damaged");
        let Bitmaps { at, bytes, count } = *bitmaps;
        if bytes > MAX_BITMAP_BYTES || count > MAX_BITMAPS || count == 0 {
            return Err(wrong());
        }
        self.name(at, bytes, Use::Fixed, "its directory of bitmaps")?;
        let mut buffer = Buffer::default();
        let directory = buffer.read(self.file, at, bytes as usize);
        let directory = directory.map_err(unreadable)?;
        let mut next = 0;
        for _ in 0..count {
            let entry = directory.get(next..).unwrap_or_default();
            let (Some(table), Some(entries), Some(names), Some(extra)) = (
                be64(entry, 0),
                be32(entry, 8),
                be32(entry, 16),
                be32(entry, 20),
            ) else {
                return Err(wrong());
            };
            let name = u64::from(names & 0xffff);
            let len = 24u64.saturating_add(name).saturating_add(extra.into());
            next = next.saturating_add(len.next_multiple_of(8) as usize);
            if next as u64 > bytes {
                return Err(wrong());
            }
            let table_bytes = u64::from(entries).saturating_mul(8);
            self.name(table, table_bytes, Use::Fixed, "the table of a bitmap")?;
            let cluster = self.layout.cluster();
            self.entries(table, entries.into(), |tables, _, entry| {
                let data = entry & OFFSET;
                // The lowest bit stands for a cluster of ones, which is nowhere.
                if entry & !(OFFSET | 1) != 0 || (data != 0 && entry & 1 != 0) {
                    return Err(damaged("the table of a bitmap is damaged"));
                }
                match data {
                    0 => Ok(()),
                    _ => tables.name(data, cluster, Use::Fixed, "a bitmap"),
                }
            })?;
        }
        match next as u64 == bytes {
            true => Ok(()),
            false => Err(wrong()),
        }
    }

    /// Compares the image's own refcounts with how often its tables name each cluster.
    fn compare(mut self, blocks: &[u64]) -> Result<Uncounted, Fault> {
        let order = self.layout.refcount_order;
        let per_block = (self.layout.cluster() * 8) >> order;
        let mut unsure = std::mem::take(&mut self.unsure);
        unsure.sort_unstable();
        let mut places = Vec::new();
        let mut next = 0;
        while let Some(cluster) = self.counts.next(next) {
            let index = cluster / per_block;
            next = index.saturating_add(1).saturating_mul(per_block);
            let block = blocks.get(index as usize).copied().unwrap_or(0);
            self.refcounts(index, block, |tables, cluster, stored| {
                let named = tables.counts.count(cluster);
                let usage = tables.counts.usage(cluster);
                let flagged = unsure.binary_search(&cluster).is_ok();
                let table = usage == Use::Fixed || flagged;
                if stored == 0 && named == 1 && table && block != 0 && cluster != 0 {
                    let first = index.saturating_mul(per_block);
                    let within = refcount_place(cluster.saturating_sub(first), order);
                    places.push(RefcountPlace {
                        offset: block.saturating_add(within.offset),
                        ..within
                    });
                    return Ok(());
                }
                if stored < named {
                    return Err(damaged(format!(
                        "cluster {cluster:#x} is used {}, and counted {}",
                        times(named),
                        times(stored)
                    )));
                }
                if usage == Use::Fixed && stored != 1 {
                    return Err(damaged(format!(
                        "cluster {cluster:#x}, one of its tables, is counted {}",
                        times(stored)
                    )));
                }
                match flagged {
                    true => Err(wrong_flag("an L2 table", cluster)),
                    false => Ok(()),
                }
            })?;
        }
        Ok(Uncounted { places })
    }
}

fn times(count: u64) -> String {
    match count {
        0 => "as free".into(),
        1 => "once".into(),
        2 => "twice".into(),
        many => format!("{many} times"),
    }
}

fn wrong_flag(what: &str, cluster: u64) -> Fault {
    damaged(format!(
        "the refcount of {what} is not what its flag says (cluster {cluster:#x})"
    ))
}
