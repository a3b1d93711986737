//! A file system of its own, on a loop device, that can be made to fail or to stop answering. Root alone can have
//! one.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use super::admin;

/// A mounted file system.
pub struct Mount {
    folder: tempfile::TempDir,
    _file: tempfile::NamedTempFile,
}

impl Mount {
    pub fn new() -> Result<Self, String> {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        let image = file.path().to_str().unwrap();
        admin("mke2fs", &["-q", "-F", "-t", "ext4", image])?;
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_str().unwrap();
        admin("mount", &["-o", "loop", image, at])
            .map_err(|why| format!("nothing can be mounted: {why}"))?;
        Ok(Mount {
            folder,
            _file: file,
        })
    }

    /// A place in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// From now on every access to it is an I/O error, as when its device has been pulled out.
    pub fn shut_down(&self) {
        /// EXT4_IOC_SHUTDOWN, `_IOR('X', 125, __u32)`, and a flag that nothing is to be written
        /// any more (Linux, fs/ext4/ext4.h).
        const SHUTDOWN: libc::Ioctl = 0x8004_587d;
        const NO_LOG_FLUSH: u32 = 2;
        let folder = File::open(self.folder.path()).unwrap();
        // SAFETY: the call reads a number of 32 bits.
        let done = unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// From now on whoever writes to it waits, in a way that nothing interrupts, until the guard is dropped: as
    /// when the host's storage does not answer.
    pub fn freeze(&self) -> Frozen {
        let folder = self.folder.path().to_str().unwrap().to_owned();
        admin("fsfreeze", &["--freeze", &folder]).unwrap();
        Frozen(folder)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let at = self.folder.path().to_str().unwrap();
        // Also while a machine that is to fail the test has a file open.
        let _ = admin("umount", &["--lazy", at]);
    }
}

/// A file system that does not answer.
pub struct Frozen(String);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = admin("fsfreeze", &["--unfreeze", &self.0]);
    }
}
