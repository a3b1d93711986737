//! A file that does not grow without end (`--console file=PATH,max=SIZE`).
//!
//! A guest can print without end, and must not fill the host's disk. Where there is no room for what comes next,
//! what is in the file is copied to a second one, PATH.1, in place of what is there, and the file begins again,
//! with a new line if one has come. Both are opened before the guest runs: no file is opened or renamed afterwards.
//!
//! ```text
//!   PATH    [ ... the last lines ... ]        at most max bytes
//!   PATH.1  [ ... those before them ... ]     at most max bytes
//! ```
//!
//! The copy comes first, so a process that is killed in between has lost nothing: the lines are in both files
//! then.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;

use crate::error::io_reason;

/// Bytes copied at a time.
const CHUNK: usize = 64 << 10;

/// See the [module](self).
#[derive(Debug)]
pub struct Keeper {
    file: File,
    /// Bytes in the file, if they have a bound.
    len: u64,
    bound: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    old: File,
    max: u64,
    /// A copy has failed; that is said once.
    failed: bool,
}

impl Keeper {
    /// A file that has no bound.
    pub fn endless(file: File) -> Self {
        Keeper {
            file,
            len: 0,
            bound: None,
        }
    }

    /// A file that is empty, can be read and written, and gets no longer than `max` bytes; what was in it before
    /// is kept in `old`.
    pub fn bounded(file: File, old: File, max: u64) -> Self {
        Keeper {
            file,
            len: 0,
            bound: Some(Bound {
                old,
                max,
                failed: false,
            }),
        }
    }

    /// Writes all of `bytes`, which may be many lines or a part of one.
    ///
    /// # Errors
    /// Those of the file. That the old content cannot be kept is none.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let Some(bound) = &self.bound else {
                return self.file.write_all(bytes);
            };
            let count = fitting(bytes, bound.max.saturating_sub(self.len), self.len == 0);
            let (now, later) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
            self.file.write_all(now)?;
            self.len = self.len.saturating_add(now.len() as u64);
            bytes = later;
            if !later.is_empty() {
                self.begin_again()?;
            }
        }
        Ok(())
    }

    fn begin_again(&mut self) -> io::Result<()> {
        let Some(bound) = &mut self.bound else {
            return Ok(());
        };
        if let Err(error) = copy(&self.file, &bound.old, self.len)
            && !bound.failed
        {
            bound.failed = true;
            log::warn!(
                "what the console's file had no more room for cannot be kept: {}",
                io_reason(&error)
            );
        }
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.len = 0;
        Ok(())
    }
}

/// How many of `bytes` go into a file that has `room`: whole lines, if they are not all. A line that is longer
/// than an `empty` file may be is cut.
fn fitting(bytes: &[u8], room: u64, empty: bool) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let Some(first) = bytes.get(..room) else {
        return bytes.len();
    };
    match first.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => at.saturating_add(1),
        None if empty => room.max(1),
        None => 0,
    }
}

/// Makes `old` what the first `len` bytes of `file` are.
fn copy(file: &File, old: &File, len: u64) -> io::Result<()> {
    old.set_len(0)?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let left = usize::try_from(len.saturating_sub(at)).unwrap_or(CHUNK);
        let part = chunk.get_mut(..left.min(CHUNK)).unwrap_or_default();
        file.read_exact_at(part, at)?;
        old.write_all_at(part, at)?;
        at = at.saturating_add(part.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn two_files_of_whole_lines_hold_the_last_of_what_was_written() {
        let (new, old) = (
            tempfile::NamedTempFile::new().unwrap(),
            tempfile::NamedTempFile::new().unwrap(),
        );
        let mut keeper = Keeper::bounded(open(new.path()), open(old.path()), 100);
        let mut all = String::new();
        for n in 0..50 {
            let line = format!("line {n}{}\n", ".".repeat(n % 7));
            // In pieces, as a console writes them.
            for piece in line.as_bytes().chunks(5) {
                keeper.write_all(piece).unwrap();
            }
            all.push_str(&line);
            let (new, old) = (
                std::fs::read_to_string(new.path()).unwrap(),
                std::fs::read_to_string(old.path()).unwrap(),
            );
            assert!(new.len() <= 100 && old.len() <= 100, "{new:?} {old:?}");
            assert!(all.ends_with(&format!("{old}{new}")), "{old:?} {new:?}");
        }
        // Many lines at a time, and one that is longer than the file may be.
        keeper.write_all(all.as_bytes()).unwrap();
        let new_text = std::fs::read_to_string(new.path()).unwrap();
        assert!(new_text.starts_with("line") && all.ends_with(&new_text));
        keeper.write_all(&[b'x'; 1000]).unwrap();
        assert!(std::fs::read(new.path()).unwrap().len() <= 100);
        assert_eq!(std::fs::read(old.path()).unwrap(), [b'x'; 100]);
    }

    #[test]
    fn a_second_file_that_takes_nothing_keeps_the_first_from_growing_all_the_same() {
        let new = tempfile::NamedTempFile::new().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut keeper = Keeper::bounded(open(new.path()), full, 64);
        for _ in 0..100 {
            keeper.write_all(b"0123456789\n").unwrap();
        }
        assert!(std::fs::read(new.path()).unwrap().len() <= 64);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost_or_written_twice_at_the_seam(
            pieces in proptest::collection::vec("[a-c\n]{0,40}", 0..40),
            max in 1u64..60,
        ) {
            let (new, old) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let clone = |file: &File| file.try_clone().unwrap();
            let mut keeper = Keeper::bounded(clone(&new), clone(&old), max);
            for piece in &pieces {
                keeper.write_all(piece.as_bytes()).unwrap();
            }
            let text = |file: &File| -> Result<String, proptest::test_runner::TestCaseError> {
                let len = file.metadata().unwrap().len();
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, 0).unwrap();
                proptest::prop_assert!(len <= max);
                Ok(String::from_utf8(bytes).unwrap())
            };
            let all = pieces.concat();
            let kept = [text(&old)?, text(&new)?].concat();
            proptest::prop_assert!(all.ends_with(&kept));
        }
    }
}
