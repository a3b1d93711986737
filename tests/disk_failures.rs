//! What a disk is on fails under a running machine: the guest gets I/O errors, and goes on.

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use common::{admin, bantam, guest, run, run_with};
use libtest_mimic::Arguments;

fn main() {
    let args = Arguments::from_args();
    let no_kvm = common::kvm().err();
    let (no_loop, no_mount) = (loop_device_missing(), Mount::new().err());
    let trial = |name: &str, test: fn(), missing: &Option<String>| {
        let missing = no_kvm.as_deref().or(missing.as_deref());
        common::trial(format!("{name}_gives_io_errors"), missing, test)
    };
    let trials = vec![
        trial("a_file_cut_short", cut_short, &None),
        trial("a_file_that_may_not_grow", full, &None),
        trial("a_device_that_shrinks", shrunk, &no_loop),
        trial("a_file_system_that_is_gone", gone, &no_mount),
    ];
    libtest_mimic::run(&args, trials).exit();
}

/// Why no loop device can be made here.
fn loop_device_missing() -> Option<String> {
    let file = scratch("probe");
    std::fs::write(&file, [0; 4096]).unwrap();
    let made = Loop::of(&file);
    let _ = std::fs::remove_file(file);
    made.err().map(|why| format!("no loop device: {why}"))
}

/// A path in the build folder, which is no tmpfs: those have no direct I/O on older kernels.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

/// A file of 1 MiB.
fn file(name: &str) -> PathBuf {
    let path = scratch(name);
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    path
}

/// A loop device.
struct Loop(String);

impl Loop {
    fn of(file: &Path) -> Result<Self, String> {
        admin("losetup", &["--find", "--show", file.to_str().unwrap()]).map(Loop)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = admin("losetup", &["--detach", &self.0]);
    }
}

/// A machine whose guest does `wish` on `disk`, when it is at work.
fn at_work(wish: &str, disk: &str) -> Child {
    let mut command = Command::new(bantam());
    command
        .args(["run", guest::elf().to_str().unwrap()])
        .args(["--append", &format!("do={wish}")])
        .args(["--disk", disk, "--time-limit", "30s"]);
    common::at_work(command, "at work\n")
}

/// It has ended by itself, after so many checks.
fn all_ok(vmm: Child, disk: &str, checks: usize) {
    let out = vmm.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&out.stdout);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{disk}: {stdout} {stderr}");
    assert!(!stdout.contains("WRONG"), "{disk}: {stdout}");
    assert_eq!(stdout.matches("ok ").count(), checks, "{disk}: {stdout}");
}

const ENGINES: [&str; 4] = ["", ",io=threads", ",cache=direct", ",iothread"];

fn cut_short() {
    for options in ENGINES {
        let path = file("short.raw");
        let disk = format!("{}{options}", path.display());
        let vmm = at_work("read-errors", &disk);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(512 << 10).unwrap();
        all_ok(vmm, &disk, 5);
        std::fs::remove_file(path).unwrap();
    }
}

fn full() {
    for options in ENGINES {
        let path = scratch("full.raw");
        let made = run(&["image", "create", path.to_str().unwrap(), "1M"]);
        assert_eq!(made.code(), 0, "{made:?}");
        // Half of what the disk needs (sh counts blocks of 512 bytes).
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -f 1024; exec \"$@\"", "sh", bantam(), "run"]);
        command
            .arg(guest::elf())
            .args(["--append", "do=write-errors"]);
        let disk = format!("{}{options}", path.display());
        command.args(["--disk", &disk, "--time-limit", "30s"]);
        let out = run_with(command, b"", Duration::from_secs(40));
        assert_eq!(out.code(), 0, "{disk}: {out:?}");
        assert!(!out.stdout.contains("WRONG"), "{disk}: {}", out.stdout);
        assert_eq!(
            out.stdout.matches("ok ").count(),
            5,
            "{disk}: {}",
            out.stdout
        );
        std::fs::remove_file(path).unwrap();
    }
}

fn shrunk() {
    for options in ENGINES {
        let path = file("shrinks.raw");
        let device = Loop::of(&path).unwrap();
        let disk = format!("{}{options}", device.0);
        let vmm = at_work("read-errors", &disk);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(512 << 10).unwrap();
        admin("losetup", &["--set-capacity", &device.0]).unwrap();
        all_ok(vmm, &disk, 5);
        std::fs::remove_file(path).unwrap();
    }
}

/// A mounted file system of its own.
struct Mount {
    folder: tempfile::TempDir,
    _file: tempfile::NamedTempFile,
}

impl Mount {
    fn new() -> Result<Self, String> {
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

    /// From now on every access to it is an I/O error, as when its device has been pulled out.
    fn shut_down(&self) {
        /// EXT4_IOC_SHUTDOWN, `_IOR('X', 125, __u32)`, and a flag that nothing is to be written
        /// any more (Linux, fs/ext4/ext4.h).
        const SHUTDOWN: libc::Ioctl = 0x8004_587d;
        const NO_LOG_FLUSH: u32 = 2;
        let folder = File::open(self.folder.path()).unwrap();
        // SAFETY: the call reads a number of 32 bits.
        let done = unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let at = self.folder.path().to_str().unwrap();
        // Also while a machine that is to fail the test has a file open.
        let _ = admin("umount", &["--lazy", at]);
    }
}

fn gone() {
    for format in ["raw", "qcow2"] {
        for options in ENGINES {
            let mount = Mount::new().unwrap();
            let path = mount.folder.path().join("disk");
            let path = path.to_str().unwrap();
            let made = run(&["image", "create", "-f", format, path, "1M"]);
            assert_eq!(made.code(), 0, "{made:?}");
            let disk = format!("{path},format={format}{options}");
            let vmm = at_work("gone", &disk);
            mount.shut_down();
            all_ok(vmm, &disk, 5);
        }
    }
}
