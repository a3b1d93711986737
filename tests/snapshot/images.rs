//! Images whose bytes are remembered.

use std::path::PathBuf;
use std::process::Command;

/// Not a multiple of a page.
pub const LEN: usize = (75 << 12) + 3 * 512;

/// What `tests/guests/snapshot.rs` knows.
fn content(len: usize) -> Vec<u8> {
    let words = (0..len as u64).step_by(8);
    let words = words.map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// A folder with images, not in /tmp: that may be a tmpfs, which has no direct I/O on older hosts.
pub struct Images {
    pub folder: tempfile::TempDir,
    before: Vec<(PathBuf, Vec<u8>)>,
}

impl Images {
    pub fn raw(len: usize) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, content(len)).unwrap();
        let mut images = Images {
            folder,
            before: Vec::new(),
        };
        images.remember();
        images
    }

    /// The same as qcow2, and as qcow2 over a backing file of which a part is written anew.
    pub fn all() -> Self {
        let mut images = Images::raw(LEN);
        let path = |name| images.path(name);
        let (raw, qcow2, top) = (path("disk.raw"), path("disk.qcow2"), path("top.qcow2"));
        let qemu = |program: &str, args: &[&str]| {
            let out = Command::new(program).args(args).output().unwrap();
            assert!(out.status.success(), "{program} {args:?}: {out:?}");
        };
        qemu(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2],
        );
        qemu(
            "qemu-img",
            &[
                "create", "-q", "-f", "qcow2", "-b", &qcow2, "-F", "qcow2", &top,
            ],
        );
        images.remember();
        images
    }

    fn remember(&mut self) {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        self.before = paths
            .map(|p| (p.clone(), std::fs::read(p).unwrap()))
            .collect();
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// No image has changed, and none has come.
    #[track_caller]
    pub fn unchanged(&self) {
        assert!(!self.before.is_empty());
        for (path, before) in &self.before {
            assert!(
                std::fs::read(path).unwrap() == *before,
                "{} has changed",
                path.display()
            );
        }
        let now = std::fs::read_dir(self.folder.path()).unwrap().count();
        assert_eq!(now, self.before.len(), "files in the folder");
    }
}
