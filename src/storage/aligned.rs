//! Reads and changes that work on every file, also on one that is open for direct I/O.
//!
//! O_DIRECT (open(2)) wants the offset, the length and the address of a read to be multiples of the
//! device's block. So whole blocks are read into memory that begins at such an address, and what was
//! asked for is cut out of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Direct I/O is content with multiples of this on every device that is known.
const BLOCK: usize = 4096;
/// Memory for reads, used again for the next one.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Vec<u8>,
}

impl Buffer {
    /// The `len` bytes of `file` at `offset`, or as many as there are before its end.
    ///
    /// # Errors
    /// Those of the host.
    pub fn read(&mut self, file: &File, offset: u64, len: usize) -> io::Result<&[u8]> {
        let skip = (offset % BLOCK as u64) as usize;
        let end = skip.saturating_add(len);
        let wanted = end.next_multiple_of(BLOCK);
        // One block more than is read, so that the part that is used can begin at a multiple of one.
        let size = wanted.saturating_add(BLOCK);
        if self.memory.len() < size {
            self.memory = vec![0; size];
        }
        let start = self.memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        let room = self.memory.get_mut(start..).unwrap_or_default();
        let room = room.get_mut(..wanted).unwrap_or_default();
        let at = offset.saturating_sub(skip as u64);
        let mut there = 0;
        while there < wanted {
            let rest = room.get_mut(there..).unwrap_or_default();
            match file.read_at(rest, at.saturating_add(there as u64)) {
                Ok(0) => break,
                Ok(n) => {
                    there = there.saturating_add(n);
                    // Within a block: the end of the file, after which direct I/O reads no more. Or a host that brings
                    // what was asked for in pieces, and then there is more to come: what is read here are tables
                    // too, and half of one must not pass for all there is.
                    if there % BLOCK != 0 && is_end(file, at.saturating_add(there as u64))? {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(room.get(skip..end.min(there)).unwrap_or_default())
    }
}

/// Reads whole blocks, and writes them again.
impl Buffer {
    /// Changes the `len` bytes of `file` at `offset`, as far as there are any, and nothing else.
    ///
    /// # Errors
    /// Those of the host.
    pub fn change(
        &mut self,
        file: &File,
        offset: u64,
        len: usize,
        change: impl FnOnce(&mut [u8]),
    ) -> io::Result<()> {
        let skip = (offset % BLOCK as u64) as usize;
        let at = offset.saturating_sub(skip as u64);
        let end = skip.saturating_add(len);
        // After this read the whole blocks are in memory, at an address that direct I/O takes.
        let there = self.read(file, at, end.next_multiple_of(BLOCK))?.len();
        let start = self.memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        let blocks = self.memory.get_mut(start..).unwrap_or_default();
        change(
            blocks
                .get_mut(skip..end.min(there).max(skip))
                .unwrap_or_default(),
        );
        let blocks = blocks.get(..there).unwrap_or_default();
        file.write_all_at(blocks, at)
    }
}

/// Whether a file ends at `at`. A block device has no length of this kind, and brings all that it has.
fn is_end(file: &File, at: u64) -> io::Result<bool> {
    Ok(at >= file.metadata()?.len())
}

/// The same, as a `Vec` of its own.
///
/// # Errors
/// Those of the host.
pub fn read(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    Ok(Buffer::default().read(file, offset, len)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_file_is_read_as_far_as_there_is_one() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let mut buffer = Buffer::default();
        for (offset, len) in [(0, 1), (4095, 2), (4096, 4096), (9990, 100), (10_000, 5)] {
            let end = bytes.len().min(offset + len);
            let read = buffer.read(&file, offset as u64, len).unwrap();
            assert_eq!(read, &bytes[offset..end], "{len} bytes at {offset}");
        }
        assert!(buffer.read(&file, 1 << 40, 10).unwrap().is_empty());
        let mut wanted = bytes;
        for (offset, len) in [(0, 1), (4095, 2), (9999, 1), (9999, 10)] {
            let end = wanted.len().min(offset + len);
            wanted[offset..end].fill(0xff);
            let fill = |part: &mut [u8]| part.fill(0xff);
            buffer.change(&file, offset as u64, len, fill).unwrap();
        }
        assert_eq!(read(&file, 0, 20_000).unwrap(), wanted);
    }
}
