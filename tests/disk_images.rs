//! Disk images, with qemu-img as the judge: what it makes reads the same through Bantam, and what
//! Bantam makes or changes passes its check and reads the same through it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use bantam::storage::open::{self, Format};
use bantam::storage::{Access, Image, IoBuffers, Work};
use common::{Outcome, run, run_with};
use libtest_mimic::{Arguments, Failed, Trial};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const LEN: usize = 12 << 20;

fn main() {
    let args = Arguments::from_args();
    let missing = Command::new("qemu-img").arg("--version").output().is_err();
    let tests: [(&str, fn()); 11] = [
        ("images_of_qemu_img_read_the_same", corpus),
        ("chains_of_qemu_img_read_the_same", chains),
        ("what_is_written_reads_the_same_through_qemu_img", writes),
        (
            "old_images_take_zeros_and_looks_change_nothing",
            old_version,
        ),
        ("locks_of_qemu_and_ours_exclude_each_other", locks),
        ("made_images_pass_the_check", made),
        ("conversions_are_identical", conversions),
        ("resizes_keep_what_is_there", resizes),
        ("backing_files_need_a_word_and_the_same_folder", backing),
        ("damaged_images_are_one_clear_error", damaged),
        ("a_full_disk_leaves_nothing_behind", full_disk),
    ];
    let trials = tests.map(|(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok::<(), Failed>(())
        });
        trial.with_ignored_flag(missing)
    });
    if missing {
        eprintln!("ignored: qemu-img (package qemu-utils) is not installed");
    }
    libtest_mimic::run(&args, trials.into()).exit();
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
    let mut random = 0x1234_5678_9abc_def1u64;
    for (at, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
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

fn corpus() {
    let folder = Folder::new();
    let bytes = content();
    std::fs::write(folder.path("plain.raw"), &bytes).unwrap();
    let plain = folder.word("plain.raw");
    let image = folder.word("image.qcow2");
    let kinds: [&[&str]; 14] = [
        &[],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=4k"],
        &["-o", "cluster_size=2M"],
        &["-o", "compat=0.10"],
        &["-o", "lazy_refcounts=on"],
        &["-o", "refcount_bits=1"],
        &["-o", "refcount_bits=64"],
        &["-o", "preallocation=metadata"],
        &["-o", "preallocation=falloc"],
        &["-c"],
        &["-c", "-o", "cluster_size=4k"],
        &["-c", "-o", "cluster_size=2M,compat=0.10"],
        &["-S", "0"],
    ];
    for kind in kinds {
        let args = [
            &["convert", "-f", "raw", "-O", "qcow2"],
            kind,
            &[&plain, &image],
        ]
        .concat();
        qemu_img(&args);
        let read = read_by_bantam(&folder, Path::new(&image), Format::Qcow2);
        assert!(read == bytes, "{kind:?}");
    }
    // Clusters that say zero, and a snapshot inside, whose content must not be seen.
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &plain, &image]);
    qemu_img(&["snapshot", "-c", "before", &image]);
    let writes = ["write -z 1M 3M", "write -P 77 2M 100k", "discard 6M 1M"];
    for write in writes {
        let out = try_qemu("qemu-io", &["-f", "qcow2", "-c", write, &image]);
        assert!(out.status.success(), "{out:?}");
    }
    let back = folder.word("back.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &image, &back]);
    let read = read_by_bantam(&folder, Path::new(&image), Format::Qcow2);
    assert!(read == std::fs::read(back).unwrap());
}

fn chains() {
    let folder = Folder::new();
    std::fs::write(folder.path("base.raw"), content()).unwrap();
    for (below, format, name, size) in [
        ("base.raw", "raw", "middle.qcow2", "12M"),
        ("middle.qcow2", "qcow2", "top.qcow2", "20M"),
    ] {
        let image = folder.word(name);
        qemu_img(&[
            "create", "-f", "qcow2", "-b", below, "-F", format, &image, size,
        ]);
        for write in [
            "write -P 5 1M 64k",
            "write -z 512k 100k",
            "write -P 9 11M 1M",
        ] {
            let write = write.replace("P 5", if name == "top.qcow2" { "P 6" } else { "P 5" });
            let out = try_qemu("qemu-io", &["-f", "qcow2", "-c", &write, &image]);
            assert!(out.status.success(), "{out:?}");
        }
    }
    let top = folder.word("top.qcow2");
    let back = folder.word("back.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &top, &back]);
    let read = read_by_bantam(&folder, Path::new(&top), Format::Qcow2);
    assert!(read == std::fs::read(&back).unwrap());

    // Writes go to the top alone.
    let before = std::fs::read(folder.path("middle.qcow2")).unwrap();
    let access = Access {
        format: Format::Qcow2,
        backing: true,
        ..Access::default()
    };
    let opened = open::open(Path::new(&top), access).unwrap();
    let guest = Guest::new(&*opened.image);
    guest.write(512, &[0x42; 1024]);
    guest.write(19 << 20, &[0x43; 4096]);
    guest.run(Work::Flush);
    drop(opened);
    assert!(std::fs::read(folder.path("middle.qcow2")).unwrap() == before);
    let mut wanted = read;
    wanted[512..1536].fill(0x42);
    wanted[19 << 20..(19 << 20) + 4096].fill(0x43);
    std::fs::write(&back, &wanted).unwrap();
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &top, &back]);
    qemu_img(&["check", "-f", "qcow2", &top]);
}

/// Images of version 2 have no clusters that say zero; and what is only looked at does not change.
fn old_version() {
    let folder = Folder::new();
    std::fs::write(folder.path("a.raw"), content()).unwrap();
    let image = folder.word("old.qcow2");
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compat=0.10",
        &folder.word("a.raw"),
        &image,
    ]);
    let access = Access {
        format: Format::Qcow2,
        ..Access::default()
    };
    let opened = open::open(Path::new(&image), access).unwrap();
    let guest = Guest::new(&*opened.image);
    let mut wanted = content();
    for (offset, unmap) in [(512u64, false), (1 << 20, true)] {
        let len = 200 << 10;
        guest.run(Work::Zero { offset, len, unmap });
        wanted[offset as usize..(offset + len) as usize].fill(0);
    }
    guest.run(Work::Discard {
        offset: 9 << 20,
        len: 4096,
    });
    let whole = guest.read(0, 9 << 20);
    assert!(whole == wanted[..9 << 20]);
    drop(opened);
    qemu_img(&["check", "-f", "qcow2", &image]);

    let marked = folder.word("marked.qcow2");
    qemu_img(&["create", "-f", "qcow2", &marked, "1M"]);
    qemu_img(&["bitmap", "--add", &marked, "b"]);
    let before = std::fs::read(&marked).unwrap();
    let kernel = common::guest::elf().to_str().unwrap();
    for options in ["", ",cache=direct"] {
        let disk = format!("{marked}{options}");
        let outcome = run(&["run", kernel, "--dry-run", "--disk", &disk]);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        assert!(
            std::fs::read(&marked).unwrap() == before,
            "--dry-run{options}"
        );
    }
}

/// QEMU's locks and ours exclude each other, but for readers.
fn locks() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;
    let folder = Folder::new();
    let image = folder.word("a.qcow2");
    bantam_image(&["create", &image, "1M"]);
    for (mode, ours_may_read) in [(&[][..], false), (&["-r"][..], true)] {
        let mut qemu = Command::new("qemu-io")
            .args(mode)
            .args(["-f", "qcow2", &image])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = qemu.stdin.take().unwrap();
        stdin.write_all(b"read 0 512\n").unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(qemu.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("read 512/512"), "{line}");
        let access = |read_only| Access {
            format: Format::Qcow2,
            read_only,
            ..Access::default()
        };
        let path = Path::new(&image);
        assert!(
            open::open(path, access(false)).is_err(),
            "a writer beside {mode:?}"
        );
        let reader = open::open(path, access(true));
        assert_eq!(reader.is_ok(), ours_may_read, "a reader beside {mode:?}");
        drop(stdin);
        assert!(qemu.wait().unwrap().success());
    }
    for (read_only, qemu_may) in [(true, true), (false, false)] {
        let access = Access {
            format: Format::Qcow2,
            read_only,
            ..Access::default()
        };
        let held = open::open(Path::new(&image), access).unwrap();
        let read = try_qemu(
            "qemu-io",
            &["-r", "-f", "qcow2", "-c", "read 0 512", &image],
        );
        assert_eq!(read.status.success(), qemu_may, "{read:?}");
        let write = try_qemu("qemu-io", &["-f", "qcow2", "-c", "read 0 512", &image]);
        assert!(!write.status.success(), "QEMU writes beside us: {write:?}");
        drop(held);
    }
}

fn writes() {
    let folder = Folder::new();
    let shadow = folder.word("shadow.raw");
    for cluster in ["512", "4k", "64k", "2M"] {
        let image = folder.word(&format!("w{cluster}.qcow2"));
        bantam_image(&["create", "--cluster-size", cluster, &image, "12M"]);
        let mut wanted = vec![0u8; LEN];
        {
            let access = Access {
                format: Format::Qcow2,
                ..Access::default()
            };
            let opened = open::open(Path::new(&image), access).unwrap();
            let guest = Guest::new(&*opened.image);
            let mut random = 0x9e37_79b9_7f4a_7c15u64;
            let mut below = |end: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % end
            };
            for _ in 0..400 {
                let len = (1 + below(300)) * 512;
                let offset = below((LEN as u64 - len) / 512) * 512;
                let span = offset as usize..(offset + len) as usize;
                match below(8) {
                    0..5 => {
                        let byte = below(255) as u8 + 1;
                        guest.write(offset, &vec![byte; len as usize]);
                        wanted[span].fill(byte);
                    }
                    5 => {
                        let unmap = below(2) == 0;
                        guest.run(Work::Zero { offset, len, unmap });
                        wanted[span].fill(0);
                    }
                    6 => {
                        guest.run(Work::Discard { offset, len });
                        // What is there now is anybody's guess: look, and go on from that.
                        let now = guest.read(offset, len as usize);
                        wanted[span].copy_from_slice(&now);
                    }
                    _ => {
                        guest.run(Work::Flush);
                        assert!(guest.read(offset, len as usize) == wanted[span]);
                    }
                }
            }
            guest.run(Work::Flush);
            assert!(guest.read(0, LEN) == wanted);
        }
        std::fs::write(&shadow, &wanted).unwrap();
        qemu_img(&["check", "-f", "qcow2", &image]);
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &image, &shadow]);
    }
}

fn made() {
    let folder = Folder::new();
    for (args, size) in [
        (&["create", "-f", "qcow2"][..], "20G"),
        (&["create", "--cluster-size", "512"], "100M"),
        (&["create", "--cluster-size", "2M"], "1T"),
        (&["create"], "513"),
    ] {
        let image = folder.word("made.qcow2");
        bantam_image(&[args, &[&image, size]].concat());
        qemu_img(&["check", "-f", "qcow2", &image]);
        let ours = bantam_image(&["info", "--json", &image]).stdout;
        let theirs = qemu_img(&["info", "-f", "qcow2", "--output=json", &image]);
        let ours: serde_json::Value = serde_json::from_str(&ours).unwrap();
        let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
        for key in ["format", "virtual-size", "actual-size", "cluster-size"] {
            assert_eq!(ours[key], theirs[key], "{key} of {args:?}");
        }
        std::fs::remove_file(image).unwrap();
    }
    let raw = folder.word("made.img");
    bantam_image(&["create", &raw, "3G"]);
    assert_eq!(std::fs::metadata(&raw).unwrap().len(), 3 << 30);
    let again = run(&["image", "create", &raw, "3G"]);
    assert_eq!(again.code(), 3, "{again:?}");
    assert!(again.stderr.contains("is there already"), "{again:?}");

    let top = folder.word("top.qcow2");
    bantam_image(&["create", "-b", "made.img", "-F", "raw", &top]);
    qemu_img(&["check", "-f", "qcow2", &top]);
    let info = qemu_img(&["info", "-f", "qcow2", &top]);
    assert!(info.contains("backing file: made.img"), "{info}");
    assert!(info.contains("backing file format: raw"), "{info}");
}

fn conversions() {
    let folder = Folder::new();
    std::fs::write(folder.path("a.raw"), content()).unwrap();
    // A file with holes, whose end is one.
    let sparse = File::create(folder.path("sparse.raw")).unwrap();
    sparse.set_len(200 << 20).unwrap();
    sparse.write_all_at(&[7; 5000], 100 << 20).unwrap();
    for name in ["a", "sparse"] {
        let raw = folder.word(&format!("{name}.raw"));
        let qcow2 = folder.word(&format!("{name}.qcow2"));
        let back = folder.word(&format!("{name}.back"));
        bantam_image(&["convert", &raw, &qcow2]);
        qemu_img(&["check", "-f", "qcow2", &qcow2]);
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow2]);
        bantam_image(&["convert", &qcow2, &back]);
        assert!(std::fs::read(&raw).unwrap() == std::fs::read(&back).unwrap());
        let into = run(&["image", "convert", &raw, &qcow2]);
        assert_eq!(into.code(), 3, "no image is overwritten: {into:?}");
    }
    use std::os::unix::fs::MetadataExt;
    for name in ["sparse.qcow2", "sparse.back"] {
        let blocks = std::fs::metadata(folder.path(name)).unwrap().blocks();
        assert!(blocks < 4096, "{name} takes {blocks} blocks");
    }
}

fn resizes() {
    let folder = Folder::new();
    std::fs::write(folder.path("a.raw"), content()).unwrap();
    let (raw, qcow2) = (folder.word("a.raw"), folder.word("a.qcow2"));
    bantam_image(&["convert", &raw, &qcow2]);
    for image in [&raw, &qcow2] {
        bantam_image(&["resize", image, "+8M"]);
        let refused = run(&["image", "resize", image, "6M"]);
        assert_eq!(refused.code(), 2, "{refused:?}");
        assert!(refused.stderr.contains("--shrink"), "{refused:?}");
        bantam_image(&["resize", "--shrink", image, "6M"]);
        bantam_image(&["resize", image, "10M"]);
    }
    qemu_img(&["check", "-f", "qcow2", &qcow2]);
    qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow2]);
    let bytes = std::fs::read(&raw).unwrap();
    assert!(bytes[..6 << 20] == content()[..6 << 20]);
    assert!(bytes[6 << 20..].iter().all(|b| *b == 0) && bytes.len() == 10 << 20);

    // A last cluster that is not a whole one keeps what lies below it.
    let odd = folder.word("odd.qcow2");
    std::fs::write(folder.path("odd.raw"), vec![3; (1 << 20) + 4096]).unwrap();
    bantam_image(&["create", "-b", "odd.raw", "-F", "raw", &odd]);
    bantam_image(&["resize", &odd, "+1M"]);
    let read = read_by_bantam(&folder, Path::new(&odd), Format::Qcow2);
    let end = (1 << 20) + 4096;
    assert!(read[..end].iter().all(|b| *b == 3), "the old disk");
    assert!(read[end..].iter().all(|b| *b == 0), "the new part");
    qemu_img(&["check", "-f", "qcow2", &odd]);

    // What lies below past the old end does not show through.
    let top = folder.word("top.qcow2");
    std::fs::write(folder.path("below.raw"), vec![3; 4 << 20]).unwrap();
    bantam_image(&["create", "-b", "below.raw", "-F", "raw", &top, "1M"]);
    bantam_image(&["resize", &top, "3M"]);
    let read = read_by_bantam(&folder, Path::new(&top), Format::Qcow2);
    assert!(read[..1 << 20].iter().all(|b| *b == 3));
    assert!(read[1 << 20..].iter().all(|b| *b == 0));
}

#[track_caller]
fn refused(disk: &str, words: &[&str]) {
    let kernel = common::guest::elf().to_str().unwrap();
    let outcome = run(&["run", kernel, "--dry-run", "--disk", disk]);
    assert_eq!(outcome.code(), 3, "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "no '{word}' in {outcome:?}");
    }
}

fn backing() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("inside")).unwrap();
    let secret = folder.word("secret.raw");
    std::fs::write(&secret, [1; 4096]).unwrap();
    std::fs::write(folder.path("inside/base.raw"), [2; 4096]).unwrap();
    let image = folder.word("inside/top.qcow2");
    let make = |below: &str, format: &str| {
        let _ = std::fs::remove_file(&image);
        qemu_img(&[
            "create", "-u", "-f", "qcow2", "-b", below, "-F", format, &image, "1M",
        ]);
    };
    make("base.raw", "raw");
    refused(
        &image,
        &["rests on a backing file, 'base.raw'", "backing=on"],
    );
    let kernel = common::guest::elf().to_str().unwrap();
    let with = format!("{image},backing=on");
    let outcome = run(&["run", kernel, "--dry-run", "--disk", &with]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let new = folder.word("inside/new.qcow2");
    let made = run(&["image", "create", "-b", "../secret.raw", "-F", "raw", &new]);
    assert_eq!(made.code(), 2, "{made:?}");
    assert!(made.stderr.contains("in another folder"), "{made:?}");
    for outside in [secret.as_str(), "../secret.raw"] {
        make(outside, "raw");
        refused(&with, &["in another folder"]);
    }
    std::os::unix::fs::symlink(&secret, folder.path("inside/link.raw")).unwrap();
    make("link.raw", "raw");
    refused(&with, &["in another folder"]);
    make("none.raw", "raw");
    refused(&with, &["'none.raw'", "No such file"]);
    make("base.raw", "vmdk");
    refused(&with, &["'vmdk'"]);
    make("top.qcow2", "qcow2");
    refused(&with, &["rests on the image itself"]);
    let other = folder.word("inside/other.qcow2");
    qemu_img(&[
        "create",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "top.qcow2",
        "-F",
        "qcow2",
        &other,
        "1M",
    ]);
    make("other.qcow2", "qcow2");
    refused(&with, &["rests on the image itself"]);
    // The format is what the header says and not what the content looks like.
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-u",
        "-b",
        &secret,
        "-F",
        "raw",
        &folder.word("inside/evil.raw"),
        "1M",
    ]);
    make("evil.raw", "raw");
    let read = read_by_bantam(&folder, Path::new(&image), Format::Qcow2);
    assert!(read.starts_with(b"QFI"), "a raw image is data");
}

fn damaged() {
    let folder = Folder::new();
    std::fs::write(folder.path("a.raw"), content()).unwrap();
    let good = folder.word("good.qcow2");
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        &folder.word("a.raw"),
        &good,
    ]);
    let good = std::fs::read(good).unwrap();
    let image = folder.word("bad.qcow2");
    let be32 = |n: u32| n.to_be_bytes().to_vec();
    let be64 = |n: u64| n.to_be_bytes().to_vec();
    let patches: [(&str, usize, Vec<u8>, &[&str]); 16] = [
        ("magic", 0, b"QFJ\xfb".to_vec(), &["not a qcow2 image"]),
        ("version", 4, be32(9), &["version 9"]),
        ("encrypted", 32, be32(1), &["encrypted"]),
        ("luks", 32, be32(2), &["encrypted"]),
        ("cluster bits 5", 20, be32(5), &[]),
        ("cluster bits 60", 20, be32(60), &[]),
        ("unknown feature", 72, be64(1 << 40), &["feature"]),
        ("L1 outside", 40, be64(1 << 50), &[]),
        ("L1 not aligned", 40, be64(12345), &[]),
        ("L1 of 4 billion entries", 36, be32(u32::MAX), &[]),
        ("length 2^63", 24, be64(1 << 63), &["more than its tables"]),
        (
            "length 2^64 - 1",
            24,
            be64(u64::MAX),
            &["more than its tables"],
        ),
        ("odd length", 24, be64(1_000_001), &["sectors of 512"]),
        ("dirty", 72, be64(1), &["dirty"]),
        ("feature names cut", 116, be32(49), &["table of features"]),
        ("refcount table outside", 48, be64(1 << 60), &[]),
    ];
    for (what, at, bytes, words) in patches {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        std::fs::write(&image, &bad).unwrap();
        let kernel = common::guest::elf().to_str().unwrap();
        let outcome = run(&["run", kernel, "--dry-run", "--disk", &image]);
        if words.is_empty() && outcome.code() == 0 {
            // Found later, by the request that needs it.
            survives(&folder, what);
            continue;
        }
        assert_eq!(outcome.code(), 3, "{what}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 2, "{what}: {outcome:?}");
        for word in words {
            assert!(outcome.stderr.contains(word), "{what}: {outcome:?}");
        }
    }
    for len in [0, 1, 71, 72, 104, 512, 65536, 200_000] {
        std::fs::write(&image, &good[..len]).unwrap();
        survives(&folder, &format!("cut to {len}"));
    }
    // Tables full of anything: the first four clusters are header, refcounts and L1.
    let rounds = match std::env::var("BANTAM_SOAK") {
        Ok(_) => 2000,
        Err(_) => 60,
    };
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for round in 0..rounds {
        let mut bad = good.clone();
        for _ in 0..1 + round % 40 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = match round % 3 {
                0 => random % 112,
                1 => random % 0x50000,
                // Where the tables' entries are, by the 64 KiB clusters of this image.
                _ => 0x10000 * (random % 5) + (random >> 40) % 1024,
            };
            bad[at as usize] = (random >> 32) as u8;
        }
        std::fs::write(&image, &bad).unwrap();
        survives(&folder, &format!("round {round}"));
    }
    for (args, words) in [
        (&["-o", "extended_l2=on"][..], "feature"),
        (&["-o", "data_file=data.raw"], "another file"),
    ] {
        let _ = std::fs::remove_file(&image);
        let mut command = Command::new("qemu-img");
        command.current_dir(folder.0.path());
        let out = command
            .args(["create", "-f", "qcow2"])
            .args(args)
            .args([&image, "1M"])
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        refused(&image, &[words]);
    }
}

/// Reading all of `bad.qcow2` ends in good time, in success or in one error, and never in a panic.
#[track_caller]
fn survives(folder: &Folder, what: &str) {
    let out = folder.path("survived.raw");
    let _ = std::fs::remove_file(&out);
    // A length that the damage has made up must not fill the test's disk.
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -f 100000; exec \"$@\"",
        "sh",
        common::bantam(),
    ]);
    command.args(["image", "convert", "-f", "qcow2", "-O", "raw"]);
    command.args([folder.path("bad.qcow2"), out]);
    let outcome = run_with(command, b"", Duration::from_secs(20));
    let code = outcome.code();
    assert!(code == 0 || code == 2 || code == 3, "{what}: {outcome:?}");
    if code != 0 {
        assert_eq!(outcome.stderr.lines().count(), 2, "{what}: {outcome:?}");
    }
}

fn full_disk() {
    let folder = Folder::new();
    let plain = folder.word("plain.raw");
    std::fs::write(&plain, content()).unwrap();
    let new = folder.word("new.qcow2");
    // Every write past 1 MiB fails, as on a disk that is full.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 1024; exec \"$@\"", "sh", common::bantam()]);
    command.args(["image", "convert", &plain, &new]);
    let outcome = run_with(command, b"", Duration::from_secs(20));
    assert_eq!(outcome.code(), 3, "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:?}");
    let left: Vec<_> = std::fs::read_dir(folder.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["plain.raw"], "nothing is left behind");
}
