//! What a disk is on fails under a running machine: the guest gets I/O errors, and goes on.

mod common;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use common::bare::{ENGINES, all_ok, at_work};
use common::mount::Mount;
use common::trials::{each, exit_after};
use common::{TempFile, admin, end_of, guest, run, run_with, ulimit};
use libtest_mimic::Trial;

fn main() {
    let no_kvm = common::kvm().err();
    let (no_loop, no_mount) = (loop_device_missing(), Mount::new().err());
    let of_each_engine = |what: &str, test: fn(&'static str), missing: &Option<String>| {
        let missing = no_kvm.as_deref().or(missing.as_deref());
        each(
            &format!("{what}_gives_io_errors_by"),
            ENGINES,
            missing,
            test,
        )
    };
    let trials: Vec<Trial> = [
        of_each_engine("a_file_cut_short", cut_short, &None),
        of_each_engine("a_file_that_may_not_grow", full, &None),
        of_each_engine("a_device_that_shrinks", shrunk, &no_loop),
        of_each_engine("a_file_system_that_is_gone_raw", gone_raw, &no_mount),
        of_each_engine("a_file_system_that_is_gone_qcow2", gone_qcow2, &no_mount),
    ]
    .into_iter()
    .flatten()
    .collect();
    exit_after(trials);
}

/// Why no loop device can be made here.
fn loop_device_missing() -> Option<String> {
    let file = TempFile::on_disk("probe");
    std::fs::write(file.path(), [0; 4096]).unwrap();
    let made = Loop::of(file.path());
    made.err().map(|why| format!("no loop device: {why}"))
}

/// A file of 1 MiB.
fn file() -> TempFile {
    let file = TempFile::on_disk("disk.raw");
    std::fs::write(file.path(), vec![1; 1 << 20]).unwrap();
    file
}

fn cut_to_half(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(512 << 10).unwrap();
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

fn cut_short(options: &str) {
    let file = file();
    let disk = format!("{}{options}", file.str());
    let vmm = at_work("read-errors", &disk);
    cut_to_half(file.path());
    all_ok(&end_of(vmm, &disk), 5);
}

fn full(options: &str) {
    let file = TempFile::on_disk("disk.raw");
    let made = run(&["image", "create", file.str(), "1M"]);
    assert_eq!(made.code(), 0, "{made:?}");
    // Half of what the disk needs (sh counts blocks of 512 bytes).
    let mut command = ulimit("-f 1024");
    command
        .args(["run", guest::elf().to_str().unwrap()])
        .args(["--append", "do=write-errors", "--time-limit", "30s"])
        .args(["--disk", &format!("{}{options}", file.str())]);
    let outcome = run_with(command, b"", Duration::from_secs(40));
    all_ok(&outcome, 5);
}

fn shrunk(options: &str) {
    let file = file();
    let device = Loop::of(file.path()).unwrap();
    let disk = format!("{}{options}", device.0);
    let vmm = at_work("read-errors", &disk);
    cut_to_half(file.path());
    admin("losetup", &["--set-capacity", &device.0]).unwrap();
    all_ok(&end_of(vmm, &disk), 5);
}

fn gone_raw(options: &str) {
    gone("raw", options);
}

fn gone_qcow2(options: &str) {
    gone("qcow2", options);
}

fn gone(format: &str, options: &str) {
    let mount = Mount::new().unwrap();
    let path = mount.path("disk");
    let path = path.to_str().unwrap();
    let made = run(&["image", "create", "-f", format, path, "1M"]);
    assert_eq!(made.code(), 0, "{made:?}");
    let disk = format!("{path},format={format}{options}");
    let vmm = at_work("gone", &disk);
    mount.shut_down();
    all_ok(&end_of(vmm, &disk), 5);
}
