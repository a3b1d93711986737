//! Disk images, with qemu-img as the judge: what it makes reads the same through Bantam, and what
//! Bantam makes or changes passes its check and reads the same through it.

#[path = "../common/mod.rs"]
mod common;
mod foreign;
mod ours;
mod refused;
mod theirs;
mod writes;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bantam::storage::open;
use bantam::storage::{Access, CacheMode, Format, Image, IoBuffers, OpenError, Work};
use common::trials::{exit_after, trials};
use common::{Numbers, Outcome, run, run_with, ulimit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const LEN: usize = 12 << 20;

fn main() {
    let there = common::has_program("qemu-img");
    let missing = (!there).then_some("qemu-img (package qemu-utils) is not installed");
    let tests: [(&str, fn()); 18] = [
        ("images_of_qemu_img_read_the_same", theirs::corpus),
        ("chains_of_qemu_img_read_the_same", theirs::chains),
        (
            "what_is_written_reads_the_same_through_qemu_img",
            ours::writes,
        ),
        (
            "old_images_take_zeros_and_looks_change_nothing",
            theirs::old_version,
        ),
        ("locks_of_qemu_and_ours_exclude_each_other", theirs::locks),
        ("made_images_pass_the_check", ours::made),
        ("conversions_are_identical", ours::conversions),
        ("resizes_keep_what_is_there", ours::resizes),
        (
            "backing_files_need_a_word_and_the_same_folder",
            refused::backing,
        ),
        ("images_of_others_are_never_taken_for_raw", foreign::images),
        ("packed_images_are_never_taken_for_raw", foreign::packed),
        ("names_of_other_formats_need_a_word", foreign::names),
        ("qcow2_under_another_name_is_called_so", foreign::unnamed),
        ("damaged_images_are_one_clear_error", refused::damaged),
        (
            "writes_to_damaged_images_are_refused_or_harmless",
            writes::damaged,
        ),
        (
            "tables_that_a_kill_left_uncounted_are_counted_first",
            refused::uncounted,
        ),
        (
            "tables_without_end_are_walked_in_good_time",
            refused::endless,
        ),
        ("a_full_disk_leaves_nothing_behind", refused::full_disk),
    ];
    exit_after(trials(missing, tests));
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path as a word.
    fn word(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

fn try_qemu(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

#[track_caller]
fn qemu_img(args: &[&str]) -> String {
    let out = try_qemu("qemu-img", args);
    assert!(out.status.success(), "qemu-img {args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

#[track_caller]
fn bantam_image(args: &[&str]) -> Outcome {
    let outcome = run(&[&["image"], args].concat());
    assert_eq!(outcome.code(), 0, "{args:?}: {outcome:?}");
    outcome
}

/// Data, zeros, and data that looks like zeros at first.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    for (at, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        let random = numbers.next();
        match at * 8 {
            0..3_000_000 => chunk.copy_from_slice(&random.to_le_bytes()),
            5_000_000..7_000_000 => chunk[7] = (at % 251) as u8,
            9_000_000..9_000_016 => chunk[0] = 1,
            12_582_904.. => chunk[7] = 0xff,
            _ => {}
        }
    }
    bytes
}

/// The disk in `image` as Bantam reads it, by `convert` and by the path that a guest's requests
/// take.
#[track_caller]
fn read_by_bantam(folder: &Folder, image: &Path, format: Format) -> Vec<u8> {
    let plain = folder.path("by-bantam.raw");
    let _ = std::fs::remove_file(&plain);
    let names = [image.to_str().unwrap(), plain.to_str().unwrap()];
    bantam_image(&[
        "convert",
        "-f",
        &format.to_string(),
        "-O",
        "raw",
        "--backing",
        names[0],
        names[1],
    ]);
    let bytes = std::fs::read(&plain).unwrap();
    std::fs::remove_file(plain).unwrap();

    let access = Access {
        format,
        read_only: true,
        backing: true,
        ..Access::default()
    };
    let opened = open::open(image, access).unwrap();
    let disk = Guest::new(&*opened.image);
    assert!(disk.read(0, bytes.len()) == bytes, "two ways, two contents");
    bytes
}

/// Opens an image that nobody uses any more. A test on another thread may be starting a program
/// just now: until that is loaded, its process has all files of this one open, and their locks.
fn open_when_free(path: &Path, access: Access) -> Result<open::Opened, OpenError> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match open::open(path, access) {
            Err(OpenError::Locked { .. }) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

/// A guest's view of an image: memory, and requests.
struct Guest<'a> {
    image: &'a dyn Image,
    memory: Arc<GuestMemoryMmap>,
}

impl<'a> Guest<'a> {
    fn new(image: &'a dyn Image) -> Self {
        let len = image.len() as usize;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap();
        Guest {
            image,
            memory: Arc::new(memory),
        }
    }

    fn buffers(&self, offset: u64, len: usize) -> IoBuffers {
        let mut buffers = IoBuffers::new(self.memory.clone());
        // In two pieces.
        let first = len / 2 / 512 * 512;
        assert!(buffers.push(GuestAddress(offset), first as u32));
        let rest = GuestAddress(offset + first as u64);
        assert!(buffers.push(rest, (len - first) as u32));
        buffers
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let work = Work::Read { offset };
        self.image
            .run(work, &mut self.buffers(offset, len))
            .unwrap();
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(offset))
            .unwrap();
        bytes
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(offset))
            .unwrap();
        let durable = offset.is_multiple_of(7);
        let work = Work::Write { offset, durable };
        let mut buffers = self.buffers(offset, bytes.len());
        self.image.run(work, &mut buffers).unwrap();
    }

    fn run(&self, work: Work) {
        let mut none = IoBuffers::new(self.memory.clone());
        self.image.run(work, &mut none).unwrap();
    }
}
