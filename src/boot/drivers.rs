//! Which drivers a kernel has built in, for a device that is there only if it will be used.
//!
//! The image itself is asked. A driver that is built in has its name in there, with the NUL that ends it
//! (`.driver.name`), and one that is a module, or missing, has not. To look through a distribution's kernel takes some
//! milliseconds, so a configuration beside the image that says no is believed. One that says yes may be
//! another kernel's; it is believed only where the kernel is packed and cannot be looked into.

use std::path::Path;

use memchr::memmem;

use super::kconfig::Kconfig;
use super::kernel::{Kernel, KernelFormat};
use super::placement::Placement;
use super::source::Source;

/// A driver of Linux.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    /// Its name, with its NUL.
    name: &'static [u8],
    /// Its option in the kernel's configuration, without `CONFIG_`.
    option: &'static str,
}

/// drivers/char/virtio_console.c, and drivers/virtio/virtio_mmio.c without which it finds no device.
pub const CONSOLE: [Driver; 2] = [
    Driver {
        name: b"virtio_console\0",
        option: "VIRTIO_CONSOLE",
    },
    Driver {
        name: b"virtio-mmio\0",
        option: "VIRTIO_MMIO",
    },
];

/// What the names of all drivers begin with: the file is searched once for this.
const START: &[u8] = b"virtio";

/// Read at a time: what is searched is still in the processor's cache then.
const CHUNK: usize = 256 << 10;

/// Whether `kernel` has all `drivers` built in. `image` is the file that the user has named, if it is the kernel's
/// own. Of an unpacked kernel, what goes into guest memory is read.
pub fn built_in(
    kernel: &Kernel,
    placement: &Placement,
    image: Option<&Path>,
    drivers: &[Driver],
) -> bool {
    let config = image.and_then(Kconfig::beside);
    let config = config.filter(|(_, config)| !config.is_empty());
    let says =
        config.map(|(_, config)| drivers.iter().all(|driver| config.built_in(driver.option)));
    match (says, &kernel.format) {
        (Some(false), _) | (None, KernelFormat::BzImage(_)) => false,
        (Some(true), KernelFormat::BzImage(_)) => true,
        (_, KernelFormat::Elf(_)) => {
            let segments = placement.segments.iter();
            let ranges = segments.map(|segment| (segment.offset, segment.file_len));
            let names: Vec<&[u8]> = drivers.iter().map(|driver| driver.name).collect();
            all_in(&kernel.source, ranges, names)
        }
    }
}

/// Whether all `words`, which begin with [`START`], are somewhere in these ranges of the file.
fn all_in(
    source: &Source,
    ranges: impl Iterator<Item = (u64, u64)>,
    mut words: Vec<&[u8]>,
) -> bool {
    // What is at the end of one chunk may go on in the next.
    let longest = words.iter().map(|word| word.len()).max().unwrap_or(0);
    let start = memmem::Finder::new(START);
    let mut chunk = vec![0; CHUNK];
    for (offset, len) in ranges {
        let (mut done, mut kept) = (0u64, 0usize);
        while done < len && !words.is_empty() {
            let left = usize::try_from(len.saturating_sub(done)).unwrap_or(CHUNK);
            let end = kept.saturating_add(left).min(CHUNK);
            let room = chunk.get_mut(kept..end).unwrap_or_default();
            let count = source.read_some(offset.saturating_add(done), room);
            if count == 0 {
                break;
            }
            done = done.saturating_add(count as u64);
            let end = kept.saturating_add(count);
            let bytes = chunk.get(..end).unwrap_or_default();
            for at in start.find_iter(bytes) {
                let rest = bytes.get(at..).unwrap_or_default();
                words.retain(|word| !rest.starts_with(word));
            }
            let from = end.saturating_sub(longest);
            kept = end.saturating_sub(from);
            chunk.copy_within(from..end, 0);
        }
    }
    words.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn words_are_found_across_chunks_and_only_where_they_are_loaded() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![b'x'; 3 * CHUNK];
        for (at, text) in [
            (CHUNK - 5, &b"virtio_console\0"[..]),
            (2 * CHUNK - 20, b"virtio-mmio\0"),
            (2 * CHUNK + 9, b"virtio_blk_"),
        ] {
            bytes[at..at + text.len()].copy_from_slice(text);
        }
        file.write_all(&bytes).unwrap();
        let source = Source::open(file.path()).unwrap();
        let all = |ranges: &[(u64, u64)], words: &[&'static [u8]]| {
            all_in(&source, ranges.iter().copied(), words.to_vec())
        };
        let len = bytes.len() as u64;
        let both: Vec<&[u8]> = CONSOLE.iter().map(|driver| driver.name).collect();
        assert!(all(&[(0, len)], &both));
        assert!(all(
            &[(1, 2 * CHUNK as u64 - 30), (CHUNK as u64, CHUNK as u64)],
            &both
        ));
        assert!(!all(&[(0, CHUNK as u64)], &both));
        assert!(!all(&[(0, len)], &[b"virtio_blk\0"]));
        assert!(
            !all(&[(0, 9 * len)], &[b"virtio_blk\0"]),
            "the file is shorter"
        );
        assert!(!all(&[(len, 1)], &both));
    }
}
