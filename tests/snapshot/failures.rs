//! The folder of an overlay is full, an image is cut short, a machine is killed.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::bare::all_ok;
use crate::common::{self, admin, end_of};
use crate::images::{Images, LEN};
use crate::{at_work, machine, run_to_end};

/// A file system in memory, with so much room.
pub struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    pub fn new(size: &str) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let (size, at) = (format!("size={size}"), folder.path().to_str().unwrap());
        admin("mount", &["-t", "tmpfs", "-o", &size, "none", at])
            .map_err(|why| format!("nothing can be mounted: {why}"))?;
        Ok(Tmpfs(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn bytes_in_use(&self) -> u64 {
        let path = std::ffi::CString::new(self.path().to_str().unwrap()).unwrap();
        // SAFETY: a C string, and a struct that the call fills or the test ends.
        let stat = unsafe {
            let mut stat: libc::statvfs = std::mem::zeroed();
            assert_eq!(libc::statvfs(path.as_ptr(), &raw mut stat), 0);
            stat
        };
        (stat.f_blocks - stat.f_bfree) * stat.f_bsize
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = admin("umount", &["--lazy", self.path().to_str().unwrap()]);
    }
}

pub fn full(options: &str) {
    let tmpfs = Tmpfs::new("128k").unwrap();
    let images = Images::raw(64 << 12);
    let disk = format!("{},snapshot{options}", images.path("disk.raw"));
    let mut command = machine("fill", &disk);
    command.env("TMPDIR", tmpfs.path());
    let outcome = run_to_end(command);
    all_ok(&outcome, 8);
    assert!(outcome.stdout.contains("pages 32\n"), "{outcome:?}");
    let told: Vec<_> = outcome.stderr.lines().collect();
    let [told] = told[..] else {
        panic!("not one message: {outcome:?}");
    };
    let folder = tmpfs.path().to_str().unwrap();
    for word in ["no room in", folder, "disk.raw"] {
        assert!(told.contains(word), "no '{word}' in {outcome:?}");
    }
    images.unchanged();
}

pub fn cut_short(options: &str) {
    let images = Images::raw(1 << 20);
    let path = images.path("disk.raw");
    let disk = format!("{path},snapshot{options}");
    let vmm = common::bare::at_work("read-errors", &disk);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(512 << 10).unwrap();
    all_ok(&end_of(vmm, &disk), 5);
}

pub fn killed(options: &str) {
    let tmpfs = Tmpfs::new("8m").unwrap();
    let images = Images::raw(LEN);
    let disk = format!("{},snapshot{options}", images.path("disk.raw"));
    let mut command = machine("journal", &disk);
    command.env("TMPDIR", tmpfs.path());
    let before = tmpfs.bytes_in_use();
    let mut vmm = at_work(command);
    assert!(
        tmpfs.bytes_in_use() >= before + 20 * 4096,
        "it is written there"
    );
    let names = || std::fs::read_dir(tmpfs.path()).unwrap().count();
    assert_eq!(names(), 0, "the file has no name");
    vmm.kill().unwrap();
    vmm.wait().unwrap();
    // io_uring keeps its files for a moment after a process has died.
    let patience = Instant::now() + Duration::from_secs(10);
    while tmpfs.bytes_in_use() > before {
        assert!(Instant::now() < patience, "its space does not come back");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(names(), 0, "nothing is left");
    images.unchanged();
}
