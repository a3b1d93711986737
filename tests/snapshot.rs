//! Disks whose writes are thrown away: the guest has a disk like any other, and no image changes.
//!
//! The guests write for real (`tests/guests/snapshot.rs`), on images that qemu-img has made, and keep
//! a copy of what the disk should be. Each image is compared, byte by byte, with what it was.

mod common;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bantam::machine::host::{Backend, backend};
use common::{Outcome, admin, bantam, guest, has_program, run, run_with};
use libtest_mimic::Arguments;

/// Not a multiple of a page.
const LEN: usize = (75 << 12) + 3 * 512;
/// How a disk's requests may be done.
const ENGINES: [&str; 5] = [
    "",
    ",io=threads",
    ",cache=direct",
    ",cache=direct,io=threads",
    ",iothread",
];

fn main() {
    let args = Arguments::from_args();
    let no_kvm = common::kvm().err();
    let no_qemu = (!has_program("qemu-img"))
        .then(|| "qemu-img (package qemu-utils) is not installed".to_owned());
    let no_mount = Tmpfs::new("64k").err();
    // What runs a guest, what has qemu-img make an image for it as well, and what mounts something.
    let guests = no_kvm.as_deref();
    let made = guests.or(no_qemu.as_deref());
    let mounted = guests.or(no_mount.as_deref());
    let trials = [
        common::trial(
            "whatever_a_guest_writes_it_reads_and_no_image_has_it",
            made,
            model,
        ),
        common::trial(
            "the_block_device_obeys_the_specification",
            guests,
            specification,
        ),
        common::trial("what_was_written_lives_through_a_reboot", guests, two_lives),
        common::trial(
            "two_machines_share_an_image_and_no_writer_comes_in",
            guests,
            shared,
        ),
        common::trial(
            "a_full_folder_gives_io_errors_and_one_message",
            mounted,
            full,
        ),
        common::trial("a_base_cut_short_gives_io_errors", guests, cut_short),
        common::trial("a_killed_machine_leaves_nothing", mounted, killed),
        common::trial("it_is_for_one_disk_or_for_all", None, words),
        common::trial(
            "an_overlay_that_cannot_be_made_is_said_at_once",
            None,
            refused,
        ),
    ];
    libtest_mimic::run(&args, trials.into()).exit();
}

/// What `tests/guests/snapshot.rs` knows.
fn content(len: usize) -> Vec<u8> {
    let words = (0..len as u64).step_by(8);
    let words = words.map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// A folder with images, not in /tmp: that may be a tmpfs, which has no direct I/O on older hosts.
struct Images {
    folder: tempfile::TempDir,
    before: Vec<(PathBuf, Vec<u8>)>,
}

impl Images {
    fn raw(len: usize) -> Self {
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
    fn all() -> Self {
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

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// No image has changed, and none has come.
    #[track_caller]
    fn unchanged(&self) {
        for (path, before) in &self.before {
            assert!(
                std::fs::read(path).unwrap() == *before,
                "{}",
                path.display()
            );
        }
        let now = std::fs::read_dir(self.folder.path()).unwrap().count();
        assert_eq!(now, self.before.len());
    }
}

fn command(wish: &str, disk: &str) -> Command {
    let mut command = Command::new(bantam());
    command
        .args(["run", guest::elf().to_str().unwrap()])
        .args(["--append", &format!("do={wish}")])
        .args(["--disk", disk, "--time-limit", "60s"]);
    command
}

fn wish(wish: &str, disk: &str) -> Outcome {
    run_with(command(wish, disk), b"", Duration::from_secs(90))
}

/// The guest reports "ok ..." or "WRONG ..." line by line.
#[track_caller]
fn all_ok(outcome: &Outcome, checks: usize) {
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(!outcome.stdout.contains("WRONG"), "{outcome:?}");
    assert_eq!(outcome.stdout.matches("ok ").count(), checks, "{outcome:?}");
}

/// The wish for so many requests, in ring 3 by the way that this host's KVM knows.
fn random(seed: u32, steps: u32) -> String {
    let ring = match backend() {
        Backend::Pvm => "",
        _ => " ring=iret",
    };
    format!("model seed={seed} steps={steps}{ring}")
}

fn model() {
    let images = Images::all();
    let mut seed = 0;
    for name in ["disk.raw", "disk.qcow2", "top.qcow2,backing"] {
        for options in ENGINES {
            seed += 1;
            let disk = format!("{},snapshot{options}", images.path(name));
            all_ok(&wish(&random(seed, 1500), &disk), 4);
            images.unchanged();
        }
    }
}

fn specification() {
    for options in ENGINES {
        let images = Images::raw(1 << 20);
        let disk = format!("{},snapshot{options}", images.path("disk.raw"));
        // The second part of this one expects a disk of zeros.
        all_ok(&wish("block-many", &disk), 11);
        all_ok(&wish("block-broken", &disk), 7);
        images.unchanged();
    }
    let images = Images::raw(1 << 20);
    let disk = format!("{},snapshot,serial=thrown-away", images.path("disk.raw"));
    let outcome = wish("block", &disk);
    all_ok(&outcome, 19);
    assert!(
        outcome.stdout.contains("serial thrown-away\n"),
        "{outcome:?}"
    );
    images.unchanged();
}

fn two_lives() {
    for options in ENGINES {
        let images = Images::raw(LEN);
        let mut command = command(
            "two-lives",
            &format!("{}{options}", images.path("disk.raw")),
        );
        command.args(["--snapshot", "--reboot"]);
        let outcome = run_with(command, b"", Duration::from_secs(90));
        all_ok(&outcome, 5);
        let lives = ["first life\n", "second life\n"];
        for life in lives {
            assert_eq!(outcome.stdout.matches(life).count(), 1, "{outcome:?}");
        }
        images.unchanged();
    }
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

fn shared() {
    let images = Images::raw(LEN);
    let path = images.path("disk.raw");
    let snapshot = format!("{path},snapshot");
    let first = Killed(at_work(command("journal", &snapshot)));
    let modes = access_modes(first.0.id(), &path);
    assert!(!modes.is_empty() && modes.iter().all(|mode| *mode == libc::O_RDONLY));
    let second = Killed(at_work(command("journal", &snapshot)));
    all_ok(&wish(&random(99, 500), &snapshot), 4);
    let writer = run(&[
        "run",
        guest::elf().to_str().unwrap(),
        "--dry-run",
        "--disk",
        &path,
    ]);
    assert_eq!(writer.code(), 3, "{writer:?}");
    assert!(writer.stderr.contains("in use by process"), "{writer:?}");
    drop((first, second));
    images.unchanged();
    // And the other way round.
    let writer = Killed(at_work(command("journal", &path)));
    let late = wish("block", &snapshot);
    assert_eq!(late.code(), 3, "{late:?}");
    assert!(late.stderr.contains("that may write to it"), "{late:?}");
    drop(writer);
}

/// A file system in memory, with so much room.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Result<Self, String> {
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

fn full() {
    for options in ENGINES {
        let tmpfs = Tmpfs::new("128k").unwrap();
        let images = Images::raw(64 << 12);
        let mut command = command(
            "fill",
            &format!("{},snapshot{options}", images.path("disk.raw")),
        );
        command.env("TMPDIR", tmpfs.path());
        let outcome = run_with(command, b"", Duration::from_secs(90));
        all_ok(&outcome, 8);
        assert!(outcome.stdout.contains("pages 32\n"), "{outcome:?}");
        let told = outcome
            .stderr
            .lines()
            .filter(|line| line.contains("no room in"));
        let told: Vec<_> = told.collect();
        assert_eq!(told.len(), 1, "{outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
        let folder = tmpfs.path().to_str().unwrap();
        assert!(
            told[0].contains(folder) && told[0].contains("disk.raw"),
            "{told:?}"
        );
        images.unchanged();
    }
}

fn cut_short() {
    for options in ENGINES {
        let images = Images::raw(1 << 20);
        let path = images.path("disk.raw");
        let mut command = command("read-errors", &format!("{path},snapshot{options}"));
        let vmm = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut vmm = vmm.unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        let stdout = vmm.stdout.as_mut().unwrap();
        while !text.ends_with(b"at work\n") && stdout.read_exact(&mut byte).is_ok() {
            text.push(byte[0]);
        }
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(512 << 10)
            .unwrap();
        let out = vmm.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(
            out.status.success() && !text.contains("WRONG"),
            "{options}: {text}"
        );
        assert_eq!(text.matches("ok ").count(), 5, "{options}: {text}");
    }
}

fn killed() {
    for options in ENGINES {
        let tmpfs = Tmpfs::new("8m").unwrap();
        let images = Images::raw(LEN);
        let mut command = command(
            "journal",
            &format!("{},snapshot{options}", images.path("disk.raw")),
        );
        command.env("TMPDIR", tmpfs.path());
        let before = tmpfs.bytes_in_use();
        let mut vmm = at_work(command);
        assert!(
            tmpfs.bytes_in_use() >= before + 20 * 4096,
            "it is written there"
        );
        assert_eq!(std::fs::read_dir(tmpfs.path()).unwrap().count(), 0);
        vmm.kill().unwrap();
        vmm.wait().unwrap();
        // io_uring keeps its files for a moment after a process has died.
        let patience = Instant::now() + Duration::from_secs(10);
        while tmpfs.bytes_in_use() > before {
            assert!(Instant::now() < patience, "its space does not come back");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(std::fs::read_dir(tmpfs.path()).unwrap().count(), 0);
        images.unchanged();
    }
}

fn dry_run(args: &[&str]) -> Outcome {
    let kernel = guest::elf().to_str().unwrap();
    run(&[&["run", kernel, "--dry-run"], args].concat())
}

fn words() {
    const SAID: &str = "rw, snapshot: writes are thrown away";
    let images = Images::raw(LEN);
    let path = images.path("disk.raw");
    let other = images.path("disk.raw") + ",ro";
    let out = |args: &[&str]| {
        let outcome = dry_run(args);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        outcome.stdout
    };
    let one = out(&["--disk", &format!("{path},snapshot")]);
    assert!(
        one.contains(SAID) && one.contains("root=/dev/vda rw"),
        "{one}"
    );
    // One image for all of them: none is written.
    let args = [
        "--snapshot",
        "--disk",
        &path,
        "--disk",
        &path,
        "--disk",
        &other,
    ];
    let all = out(&args);
    assert_eq!(all.matches(SAID).count(), 2, "{all}");
    assert!(!out(&["--snapshot", "--disk", &format!("{path},snapshot=off")]).contains(SAID));
    assert!(!out(&["--disk", &path]).contains("snapshot"));
    let config = images.folder.path().join("vm.toml");
    std::fs::write(&config, "disk = \"disk.raw\"\nsnapshot = true\n").unwrap();
    assert!(out(&["--config", config.to_str().unwrap()]).contains(SAID));
    let both = dry_run(&["--disk", &format!("{path},ro,snapshot")]);
    assert_eq!(both.code(), 2, "{both:?}");
    assert!(
        both.stderr.contains("leave one of the two away"),
        "{both:?}"
    );
}

fn refused() {
    let images = Images::raw(LEN);
    let disk = format!("{},snapshot", images.path("disk.raw"));
    let kernel = guest::elf().to_str().unwrap();
    let refused = |mut command: Command, words: &[&str]| {
        command.args(["run", kernel, "--dry-run", "--disk", &disk]);
        let outcome = run_with(command, b"", Duration::from_secs(60));
        assert_eq!(outcome.code(), 3, "{outcome:?}");
        for word in words {
            assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
        }
        assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:?}");
    };
    let mut command = Command::new(bantam());
    command.env("TMPDIR", "/nonexistent");
    let words = [
        "error: no file in /nonexistent",
        "No such file",
        "help: set TMPDIR",
    ];
    refused(command, &words);
    // sh counts blocks of 512 bytes: half of what the disk needs.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 300; exec \"$@\"", "sh", bantam()]);
    refused(command, &["File too large", "raise 'ulimit -f'"]);
    // One number of files is just too small for the overlay's; which, is the program's affair.
    let told = (4..32).any(|files| {
        let mut command = Command::new("sh");
        let limit = format!("ulimit -n {files}; exec \"$@\"");
        command.args(["-c", &limit, "sh", bantam(), "run", kernel, "--dry-run"]);
        command.args(["--disk", &disk]);
        let outcome = run_with(command, b"", Duration::from_secs(60));
        outcome.stderr.contains("error: no file in")
            && outcome.stderr.contains("Too many open files")
            && outcome.stderr.contains("ulimit -n")
    });
    assert!(told);
    images.unchanged();
}
