//! How much memory this program takes beside its guest's RAM, at most, whatever the guest asks for.
//!
//! The figures come from the bounds that the code keeps: how many requests, segments and chunks of a queue are in
//! flight, how many threads a disk has, how long a piece of work is. README shows them, and a test here
//! compares the two; tests/memory_bound.rs has guests that ask for the worst, and looks at what the host says.
//!
//! Counted is what the process has of its own: not the pages of its program file, which all machines share and
//! the host can read again, and not what the host's kernel keeps for it, such as page tables, or the page cache
//! of disk images.

use crate::memory::bounce::CHUNK_BYTES;
use crate::memory::buffers::KEPT_SEGMENTS;
use crate::storage::{overlay, qcow2};
use crate::virtio::block::disk::{MAX_THREADS, MAX_THREADS_OF_DISK, MAX_THREADS_OF_FORMAT};
use crate::virtio::block::handler::{MAX_CHUNKS, MAX_CHUNKS_OF_DISK, MAX_SEGMENTS_IN_FLIGHT};
use crate::virtio::block::{QUEUE_SIZE, disk, handler};
use crate::virtio::chain::MAX_INDIRECT;

/// The heap and the main thread, with what is left of the plan and of loading a kernel; the console with its
/// buffers; the small devices. A small part of it is what is seen.
pub const PROGRAM_BYTES: u64 = 8 << 20;
/// What a thread touches of its stack and of its signal stack, and the heap's share. None of them calls itself, and
/// no array on a stack is longer than 16 KiB.
pub const THREAD_BYTES: u64 = 128 << 10;
/// One iovec, and one range of a descriptor.
const ENTRY_BYTES: u64 = 16;
/// A request in flight, beside its segments: the job in the engine's table, what is pending, its answer.
const REQUEST_BYTES: u64 = 512;
/// The rings of io_uring for a queue: 64 bytes for a request, 2 * 16 for an answer, twice for an overlay.
const RING_BYTES: u64 = QUEUE_SIZE as u64 * (64 + 32) * 2;
/// The smallest grain of an overlay takes a bit.
const BYTES_PER_GRAIN_BYTE: u64 = 8 * 4096;
/// What the bits of an overlay take at most: `grains::MOST_GRAINS`.
const MOST_GRAIN_BYTES: u64 = 32 << 20;
/// Clusters that imago has in hand for a request of its: read for a copy, compressed, and inflated.
const CLUSTERS_IN_HAND: u64 = 3;
/// The usual cluster of a qcow2 image.
pub const CLUSTER_BYTES: u64 = 64 << 10;

/// What a disk is, as far as its memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A raw image by io_uring.
    Raw,
    /// A raw image by threads.
    Threads,
    /// Writes to an image of so many bytes are thrown away. What the image below takes comes to that.
    Snapshot(u64),
    /// So many qcow2 images that rest on each other, with clusters of so many bytes.
    Qcow2 {
        /// How many.
        images: u64,
        /// Of the one with the longest.
        cluster: u64,
    },
}

/// A disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskShape {
    /// Request queues.
    pub queues: u16,
    /// Direct I/O.
    pub direct: bool,
    /// Its image.
    pub kind: Kind,
}

/// Bytes of one queue of a disk: its thread if it has one, its requests, and the segments of those in flight.
pub fn queue() -> u64 {
    // Those that are within the bound, and one request more; a list may be twice as long as it is full.
    let longest = MAX_INDIRECT.saturating_add(u64::from(QUEUE_SIZE));
    let segments = (MAX_SEGMENTS_IN_FLIGHT as u64).saturating_add(longest);
    let kept = u64::from(QUEUE_SIZE).saturating_mul(KEPT_SEGMENTS as u64);
    // The chain that was read last: what is readable, what is writable, and what is data.
    let chain = longest.saturating_mul(2 * 3);
    let entries = segments.saturating_mul(2);
    let entries = entries.saturating_add(kept).saturating_add(chain);
    entries
        .saturating_mul(ENTRY_BYTES)
        .saturating_add(u64::from(QUEUE_SIZE).saturating_mul(REQUEST_BYTES))
        .saturating_add(RING_BYTES)
        .saturating_add(THREAD_BYTES)
}

/// Bytes of a disk.
pub fn disk(shape: DiskShape) -> u64 {
    let queues = u64::from(shape.queues.max(1));
    let all =
        |of_queue: usize, bytes: u64| queues.saturating_mul(of_queue as u64).saturating_mul(bytes);
    let mut total = queues.saturating_mul(queue());
    if shape.direct && !matches!(shape.kind, Kind::Qcow2 { .. }) {
        total = total.saturating_add(all(handler::chunks(shape.queues), CHUNK_BYTES as u64));
    }
    let raw_threads = disk::threads(shape.queues, true);
    let threads = disk::threads(shape.queues, false);
    total.saturating_add(match shape.kind {
        Kind::Raw => 0,
        Kind::Threads => all(raw_threads, THREAD_BYTES),
        Kind::Snapshot(len) => all(threads, THREAD_BYTES.saturating_add(overlay::PIECE.into()))
            .saturating_add(len.div_ceil(BYTES_PER_GRAIN_BYTE).min(MOST_GRAIN_BYTES)),
        Kind::Qcow2 { images, cluster } => {
            all(threads, THREAD_BYTES.saturating_add(in_hand(cluster)))
                .saturating_add(images.saturating_mul(qcow2_tables(cluster)))
        }
    })
}

/// Bytes of a machine.
pub fn machine(cpus: u64, disks: &[DiskShape]) -> u64 {
    let disks = disks.iter().map(|shape| disk(*shape));
    disks
        .fold(PROGRAM_BYTES, u64::saturating_add)
        .saturating_add(cpus.saturating_mul(THREAD_BYTES))
}

/// What imago has in hand for a thread: a piece, where direct I/O has to copy it, and clusters.
fn in_hand(cluster: u64) -> u64 {
    qcow2::PIECE_BYTES.saturating_add(cluster.saturating_mul(CLUSTERS_IN_HAND))
}

/// The tables of a qcow2 image that imago keeps.
fn qcow2_tables(cluster: u64) -> u64 {
    qcow2::CACHED_TABLES.saturating_mul(cluster)
}

/// The rows of README's table: what, how much for each, and how much for all queues of a disk at most, where
/// that has a bound of its own.
pub fn rows() -> Vec<(&'static str, u64, Option<u64>)> {
    let each = |count: usize, bytes: u64| bytes.saturating_mul(count as u64);
    let of_format = |bytes| {
        (
            each(MAX_THREADS, bytes),
            Some(each(MAX_THREADS_OF_FORMAT, bytes)),
        )
    };
    let chunk = CHUNK_BYTES as u64;
    let (snapshot, of_snapshot) = of_format(THREAD_BYTES.saturating_add(overlay::PIECE.into()));
    let (qcow2, of_qcow2) = of_format(THREAD_BYTES.saturating_add(in_hand(CLUSTER_BYTES)));
    vec![
        (
            "the program, its console and its small devices",
            PROGRAM_BYTES,
            None,
        ),
        ("each vCPU", THREAD_BYTES, None),
        ("each queue of a disk", queue(), None),
        (
            "... with `cache=direct`, more",
            each(MAX_CHUNKS, chunk),
            Some(each(MAX_CHUNKS_OF_DISK, chunk)),
        ),
        (
            "... with `io=threads`, more",
            each(MAX_THREADS, THREAD_BYTES),
            Some(each(MAX_THREADS_OF_DISK, THREAD_BYTES)),
        ),
        ("... of a snapshot, more", snapshot, of_snapshot),
        ("... of a qcow2 image, more", qcow2, of_qcow2),
        (
            "each TiB of a snapshot's length",
            MOST_GRAIN_BYTES,
            Some(MOST_GRAIN_BYTES),
        ),
        (
            "each qcow2 image, also those it rests on (clusters of 64 KiB)",
            qcow2_tables(CLUSTER_BYTES),
            None,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In MiB, rounded up to a tenth.
    fn mib(bytes: u64) -> String {
        let tenths = (bytes * 10).div_ceil(1 << 20);
        match tenths % 10 {
            0 => format!("{}", tenths / 10),
            rest => format!("{}.{rest}", tenths / 10),
        }
    }

    /// Each figure of README's table is what the bounds come to. A row that is there twice would be wrong once.
    #[test]
    fn readme_says_what_the_code_keeps_to() {
        let readme = include_str!("../../README.md");
        for (what, bytes, most) in rows() {
            let most = most.map(mib).unwrap_or_default();
            let row = format!("| {what} | {} | {most} |", mib(bytes));
            let row = row.replace("|  |", "| |");
            assert!(
                readme.lines().any(|line| line == row),
                "README lacks:\n{row}"
            );
        }
    }

    #[test]
    fn a_disk_takes_its_rows() {
        let [
            program,
            vcpu,
            queue,
            direct,
            threads,
            snapshot,
            format,
            tib,
            image,
        ] = rows()
            .iter()
            .map(|row| row.1)
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        let of = |queues, direct, kind| {
            let shape = DiskShape {
                queues,
                direct,
                kind,
            };
            machine(2, &[shape]) - program - 2 * vcpu
        };
        let qcow2 = |images| Kind::Qcow2 {
            images,
            cluster: CLUSTER_BYTES,
        };
        assert_eq!(of(1, false, Kind::Raw), queue);
        assert_eq!(of(1, true, Kind::Raw), queue + direct);
        assert_eq!(of(1, false, Kind::Threads), queue + threads);
        assert_eq!(
            of(1, false, Kind::Snapshot(1 << 40)),
            queue + snapshot + tib
        );
        assert_eq!(
            of(1, false, Kind::Snapshot(1 << 44)),
            queue + snapshot + tib
        );
        assert_eq!(of(1, true, qcow2(3)), queue + format + 3 * image);
        let most = |at: usize| rows()[at].2.unwrap();
        for queues in [4, 16, 64] {
            let many = u64::from(queues) * queue;
            assert_eq!(of(queues, true, Kind::Raw), many + most(3), "{queues}");
            assert!(
                of(queues, false, Kind::Threads) <= many + most(4),
                "{queues}"
            );
            assert_eq!(
                of(queues, false, qcow2(1)),
                many + most(6) + image,
                "{queues}"
            );
        }
    }
}
