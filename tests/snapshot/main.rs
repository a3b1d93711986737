//! Disks whose writes are thrown away: the guest has a disk like any other, and no image changes.
//!
//! The guests write for real (`tests/guests/snapshot.rs`), on images that qemu-img has made, and keep
//! a copy of what the disk should be. Each image is compared, byte by byte, with what it was.

#[path = "../common/mod.rs"]
mod common;
mod failures;
mod images;
mod words;

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use common::bare::{self, ENGINES, all_ok, ring_word, wish};
use common::trials::{each, exit_after};
use common::{Outcome, guest, has_program, run, run_with};
use images::{Images, LEN};

fn main() {
    let no_kvm = common::kvm().err();
    let no_qemu = (!has_program("qemu-img"))
        .then(|| "qemu-img (package qemu-utils) is not installed".to_owned());
    let no_mount = failures::Tmpfs::new("64k").err();
    // What runs a guest, what has qemu-img make an image for it as well, and what mounts something.
    let guests = no_kvm.as_deref();
    let made = guests.or(no_qemu.as_deref());
    let mounted = guests.or(no_mount.as_deref());
    let by_engine = |name: &str, missing, test| each(name, ENGINES, missing, test);
    let trials = [
        by_engine(
            "whatever_a_guest_writes_to_raw_it_reads_and_no_image_has_it",
            made,
            |options| model("disk.raw", options, 0),
        ),
        by_engine(
            "whatever_a_guest_writes_to_qcow2_it_reads_and_no_image_has_it",
            made,
            |options| model("disk.qcow2", options, 100),
        ),
        by_engine(
            "whatever_a_guest_writes_over_a_backing_file_it_reads_and_no_image_has_it",
            made,
            |options| model("top.qcow2,backing", options, 200),
        ),
        by_engine("many_requests_at_once_are_done", guests, many),
        by_engine("broken_rings_need_a_reset", guests, broken),
        by_engine("what_was_written_lives_through_a_reboot", guests, two_lives),
        by_engine(
            "a_full_folder_gives_io_errors_and_one_message",
            mounted,
            failures::full,
        ),
        by_engine(
            "a_base_cut_short_gives_io_errors",
            guests,
            failures::cut_short,
        ),
        by_engine("a_killed_machine_leaves_nothing", mounted, failures::killed),
        vec![
            common::trials::trial(
                "the_block_device_obeys_the_specification",
                guests,
                specification,
            ),
            common::trials::trial(
                "machines_share_an_image_and_no_writer_comes_in",
                guests,
                shared,
            ),
            common::trials::trial(
                "no_snapshot_of_an_image_that_is_written_to",
                guests,
                written_to,
            ),
            common::trials::trial("it_is_for_one_disk_or_for_all", None, words::one_or_all),
            common::trials::trial(
                "an_overlay_that_cannot_be_made_is_said_at_once",
                None,
                words::refused,
            ),
        ],
    ];
    exit_after(trials.into_iter().flatten().collect());
}

/// A machine with this disk and words.
fn machine(wish: &str, disk: &str) -> Command {
    bare::command(wish, &["--disk", disk])
}

fn run_to_end(command: Command) -> Outcome {
    run_with(command, b"", Duration::from_secs(90))
}

/// The wish for so many requests.
fn random(seed: usize, steps: u32) -> String {
    format!("model seed={seed} steps={steps}{}", ring_word())
}

/// The first seed is `seeds`; each engine has another.
fn model(name: &str, options: &str, seeds: usize) {
    let images = Images::all();
    let engine = ENGINES.iter().position(|(_, words)| *words == options);
    let disk = format!("{},snapshot{options}", images.path(name));
    let wished = random(seeds + engine.unwrap() + 1, 1500);
    all_ok(&wish(&wished, &["--disk", &disk]), 4);
    images.unchanged();
}

fn many(options: &str) {
    // The second part of this one expects a disk of zeros.
    let images = Images::raw(1 << 20);
    let disk = format!("{},snapshot{options}", images.path("disk.raw"));
    all_ok(&wish("block-many", &["--disk", &disk]), 11);
    images.unchanged();
}

fn broken(options: &str) {
    let images = Images::raw(1 << 20);
    let disk = format!("{},snapshot{options}", images.path("disk.raw"));
    all_ok(&wish("block-broken", &["--disk", &disk]), 7);
    images.unchanged();
}

fn specification() {
    let images = Images::raw(1 << 20);
    let disk = format!("{},snapshot,serial=thrown-away", images.path("disk.raw"));
    let outcome = wish("block", &["--disk", &disk]);
    all_ok(&outcome, 19);
    bare::says(&outcome, &["serial thrown-away\n"]);
    images.unchanged();
}

fn two_lives(options: &str) {
    let images = Images::raw(LEN);
    let disk = format!("{}{options}", images.path("disk.raw"));
    let mut command = machine("two-lives", &disk);
    command.args(["--snapshot", "--reboot"]);
    let outcome = run_to_end(command);
    all_ok(&outcome, 5);
    for life in ["first life\n", "second life\n"] {
        assert_eq!(outcome.stdout.matches(life).count(), 1, "{outcome:?}");
    }
    images.unchanged();
}

/// A machine whose guest writes for ever; it has written by now.
fn at_work(command: Command) -> Child {
    let mut vmm = common::at_work(command, "20\n");
    // It is never held up by a test that does not read.
    let mut stdout = vmm.stdout.take().unwrap();
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    vmm
}

/// The end of a machine that is not waited for any more.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Access modes (open(2)) of the files of a process that have this name.
fn access_modes(pid: u32, path: &str) -> Vec<i32> {
    let mut modes = Vec::new();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let fd = fd.unwrap().path();
        if std::fs::read_link(&fd).is_ok_and(|to| to == Path::new(path)) {
            let info = fd.to_str().unwrap().replace("/fd/", "/fdinfo/");
            let info = std::fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            modes.push(flags & libc::O_ACCMODE);
        }
    }
    modes
}

/// Two machines and a third write to snapshots of one image; a machine that would write to the image
/// itself is refused.
fn shared() {
    let images = Images::raw(LEN);
    let path = images.path("disk.raw");
    let snapshot = format!("{path},snapshot");
    let first = Killed(at_work(machine("journal", &snapshot)));
    let modes = access_modes(first.0.id(), &path);
    assert!(
        !modes.is_empty() && modes.iter().all(|mode| *mode == libc::O_RDONLY),
        "the image is open for reading alone: {modes:?}"
    );
    let second = Killed(at_work(machine("journal", &snapshot)));
    all_ok(&wish(&random(99, 500), &["--disk", &snapshot]), 4);
    let kernel = guest::elf().to_str().unwrap();
    let writer = run(&["run", kernel, "--dry-run", "--disk", &path]);
    assert_eq!(writer.code(), 3, "{writer:?}");
    assert!(writer.stderr.contains("in use by process"), "{writer:?}");
    drop((first, second));
    images.unchanged();
}

/// The other way round.
fn written_to() {
    let images = Images::raw(LEN);
    let path = images.path("disk.raw");
    let writer = Killed(at_work(machine("journal", &path)));
    let late = wish("block", &["--disk", &format!("{path},snapshot")]);
    assert_eq!(late.code(), 3, "{late:?}");
    assert!(late.stderr.contains("that may write to it"), "{late:?}");
    drop(writer);
}
