//! What a failed flush leaves behind.
//!
//! A write that goes through the host's page cache is acknowledged before it is on the disk. When the disk then refuses
//! it, Linux says so by one failed fdatasync(2), marks the pages as clean, and has the next fdatasync(2) succeed, although
//! they have never been written. A guest that tries its flush again must not take that for success: after a flush that has
//! failed, none of the same disk succeeds any more. It is QEMU's way as well (block/file-posix.c,
//! `page_cache_inconsistent`); a guest's file system mounts itself read-only then.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a flush of a disk has failed. It lasts longer than a life of the machine.
#[derive(Debug, Default)]
pub struct Flushes {
    failed: AtomicBool,
}

impl Flushes {
    /// What the guest is told of a flush of which the host says `result`.
    ///
    /// # Errors
    /// That of the host, or an earlier failure.
    pub fn answered(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.failed.store(true, Ordering::SeqCst);
        } else if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other(
                "an earlier flush has failed, and what it was about may be lost",
            ));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_flush_that_has_failed_none_succeeds() {
        let flushes = Flushes::default();
        assert!(flushes.answered(Ok(())).is_ok());
        let failed = flushes.answered(Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(flushes.answered(Ok(())).is_err());
        assert!(flushes.answered(Ok(())).is_err());
    }
}
