//! What bad input gets: one line that names the thing, one that says what to do, the right exit
//! code, and nothing else. Runs the binary; needs no /dev/kvm, except where a test says so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Outcome, TempFile, bantam, guest, run, run_with};

const USAGE: i32 = 2;
const START: i32 = 3;

/// Exactly `error: ...` with all of `words`, and `help: ...`, and nothing on stdout.
#[track_caller]
fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code(), code, "{outcome:?}");
    assert_eq!(outcome.stdout, "", "nothing is started");
    let lines: Vec<_> = outcome.stderr.lines().collect();
    let [error, help] = lines[..] else {
        panic!("not two lines: {outcome:?}");
    };
    assert!(error.starts_with("error: "), "{error}");
    assert!(help.starts_with("help: ") && help.len() > 12, "{help}");
    assert!(
        !outcome.stderr.contains("os error"),
        "a bare errno: {outcome:?}"
    );
    for word in words {
        assert!(
            error.contains(word) || help.contains(word),
            "no '{word}' in {outcome:?}"
        );
    }
}

fn kernel() -> &'static str {
    guest::elf().to_str().unwrap()
}

#[track_caller]
fn kernel_refused(name: &str, content: &[u8], words: &[&str]) {
    let file = TempFile::new(name, content);
    let mut all = vec![file.str()];
    all.extend(words);
    refused(&run(&["run", file.str(), "--dry-run"]), START, &all);
    let inspected = run(&["inspect", file.str()]);
    refused(&inspected, START, &all);
}

/// A good image that no machine has room for: `inspect` shows it with a warning.
#[track_caller]
fn placement_refused(name: &str, content: &[u8], words: &[&str]) {
    let file = TempFile::new(name, content);
    refused(&run(&["run", file.str(), "--dry-run"]), START, words);
    let inspected = run(&["inspect", file.str()]);
    assert_eq!(inspected.code(), 0, "{inspected:?}");
    assert!(
        inspected.stdout.contains("warning: kernel"),
        "{inspected:?}"
    );
}

#[test]
fn no_or_unknown_words() {
    refused(&run(&[]), USAGE, &["no command"]);
    refused(&run(&["rum"]), USAGE, &["rum", "run"]);
    refused(
        &run(&["run", "--memroy", "1G"]),
        USAGE,
        &["--memroy", "--memory"],
    );
    refused(&run(&["run"]), USAGE, &["no kernel"]);
    refused(&run(&["run", "a", "--kernel", "b"]), USAGE, &["--kernel"]);
    refused(
        &run(&["run", kernel(), "--protocol", "bios"]),
        USAGE,
        &["bios", "pvh"],
    );
}

#[test]
fn kernels_that_are_none() {
    refused(
        &run(&["run", "/nonexistent/vmlinux"]),
        START,
        &["/nonexistent/vmlinux", "No such file"],
    );
    refused(&run(&["run", "/tmp"]), START, &["/tmp", "a directory"]);
    refused(
        &run(&["run", "/dev/null"]),
        START,
        &["/dev/null", "a device"],
    );
    kernel_refused("empty", b"", &["is empty"]);
    kernel_refused(
        "text",
        b"hello world, this is not a kernel",
        &["unknown format"],
    );
    kernel_refused("zeros", &[0; 4096], &["zeros"]);
    kernel_refused("script", b"#!/bin/sh\n", &["a script"]);
    kernel_refused("disk.qcow2", b"QFI\xfb\0\0\0\x03", &["qcow2", "--disk"]);
    kernel_refused("initrd", b"070701000", &["cpio", "--initrd"]);
    kernel_refused("initrd.gz", b"\x1f\x8b\x08\0", &["gzip"]);
    let mut arm = vec![0; 64];
    arm[..2].copy_from_slice(b"MZ");
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    kernel_refused("Image", &arm, &["arm64 Image", "x86_64"]);
}

#[test]
fn elf_files_of_other_kinds() {
    let good = fs::read(guest::elf()).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    kernel_refused("arm", &with(18, &[183, 0]), &["arm64 ELF"]);
    kernel_refused("i386", &with(18, &[3, 0]), &["32-bit x86 ELF"]);
    kernel_refused("big-endian", &with(5, &[2]), &["big-endian"]);
    kernel_refused("object", &with(16, &[1, 0]), &["object file"]);
    kernel_refused("no-headers", &with(56, &[0, 0]), &["no program headers"]);
    kernel_refused(
        "odd-headers",
        &with(54, &[7, 0]),
        &["program headers of 7 bytes"],
    );
    kernel_refused(
        "far-headers",
        &with(32, &[0xff; 8]),
        &["truncated", "program headers"],
    );
    // The first program header is at 64: p_offset 72, p_paddr 88, p_filesz 96, p_memsz 104.
    kernel_refused("lengths", &with(96, &[0xff; 8]), &["damaged"]);
    kernel_refused("end", &with(104, &[0xff; 8]), &["damaged"]);
    placement_refused("low", &with(88, &[0; 8]), &["below 1 MiB"]);
    placement_refused(
        "high",
        &with(88, &[0, 0, 0, 0, 2, 0, 0, 0]),
        &["needs memory up to 8193 MiB", "below 3 GiB"],
    );
    // The entry at 24; a note decides otherwise, so the Linux protocol is asked for.
    let lost = TempFile::new("entry", &with(24, &[0xff; 8]));
    let outcome = run(&["run", lost.str(), "--protocol", "linux", "--dry-run"]);
    refused(&outcome, START, &["entry 0xffffffffffffffff"]);
    // An ordinary program of this host.
    let outcome = run(&["run", "/bin/ls", "--dry-run"]);
    refused(
        &outcome,
        START,
        &["/bin/ls", "program for an operating system"],
    );
}

#[test]
fn images_cut_at_every_header() {
    let elf = fs::read(guest::elf()).unwrap();
    for len in [
        5,
        63,
        64,
        64 + 55,
        64 + 111,
        0x1001,
        elf.len() - elf.len() / 2,
    ] {
        kernel_refused("cut-elf", &elf[..len], &["truncated"]);
    }
    let image = guest::bzimage(true);
    for len in [0x210, 0x230, 0x26b, 0x300, 1024, 1025, image.len() - 16] {
        kernel_refused("cut-bzImage", &image[..len], &["truncated"]);
    }
}

#[test]
fn bzimages_with_impossible_headers() {
    let good = guest::bzimage(true);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    kernel_refused(
        "old",
        &with(0x206, &[1, 2]),
        &["boot protocol 2.01", "2.02 or newer"],
    );
    kernel_refused("real-mode", &with(0x214, &[0; 4]), &["BIOS", "iPXE"]);
    kernel_refused("zImage", &with(0x211, &[0]), &["zImage"]);
    kernel_refused("syssize-0", &with(0x1f4, &[0; 4]), &["length of 0"]);
    kernel_refused("syssize", &with(0x1f4, &[0xff; 4]), &["truncated"]);
    kernel_refused("payload", &with(0x248, &[0xff; 8]), &["truncated"]);
    placement_refused("init-size", &with(0x260, &[0xff; 4]), &["needs memory"]);
    placement_refused("pref-address", &with(0x258, &[0xff; 8]), &["damaged"]);
}

#[test]
fn a_kernel_larger_than_memory() {
    let outcome = run(&["run", kernel(), "--memory", "2M", "--dry-run"]);
    assert_eq!(outcome.code(), 0, "the guest itself is small: {outcome:?}");
    let mut image = guest::bzimage(true);
    image[0x260..0x264].copy_from_slice(&(64u32 << 20).to_le_bytes());
    let large = TempFile::new("large", &image);
    let outcome = run(&["run", large.str(), "--memory", "16M", "--dry-run"]);
    refused(
        &outcome,
        START,
        &["needs memory up to 65 MiB", "has 16 MiB", "--memory"],
    );
}

#[test]
fn initrds() {
    let with = |path: &str| run(&["run", kernel(), "--initrd", path, "--dry-run"]);
    refused(&with("/nonexistent"), START, &["initrd /nonexistent"]);
    refused(&with("/tmp"), START, &["initrd /tmp", "a directory"]);
    let empty = TempFile::new("empty", b"");
    refused(&with(empty.str()), START, &["is empty"]);
    let large = TempFile::new("large", b"");
    File::options()
        .write(true)
        .open(large.path())
        .unwrap()
        .set_len(600 << 20)
        .unwrap();
    refused(
        &with(large.str()),
        START,
        &["does not fit", "600 MiB", "--memory"],
    );
}

#[test]
fn sizes_counts_and_times() {
    let with = |key: &str, value: &str| run(&["run", kernel(), key, value, "--dry-run"]);
    for value in ["0", "0G", "lots", "-5", "1.5G", "4097K", "3X", ""] {
        refused(&with("--memory", value), USAGE, &["--memory"]);
    }
    refused(
        &with("--memory", "70000T"),
        USAGE,
        &["more than this host can give", "at most"],
    );
    for value in ["0", "x", "255", "99999999999", "4,cores=3", "2,socks=2"] {
        refused(&with("--cpus", value), USAGE, &["--cpus"]);
    }
    for value in ["0", "soon", "10y"] {
        refused(&with("--time-limit", value), USAGE, &["--time-limit"]);
    }
    for value in ["tty", "file=", ""] {
        refused(
            &with("--console", value),
            USAGE,
            &["--console", "stdio, none, pty, file=PATH"],
        );
    }
}

#[test]
fn disks() {
    let with = |value: &str| run(&["run", kernel(), "--disk", value, "--dry-run"]);
    refused(
        &with("/nonexistent.img"),
        START,
        &["disk /nonexistent.img", "No such file"],
    );
    refused(&with("/tmp"), START, &["disk /tmp", "a directory"]);
    refused(&with("/dev/zero"), START, &["a character device"]);
    let odd = TempFile::new("odd.img", &[0; 1000]);
    refused(
        &with(odd.str()),
        START,
        &["1000 bytes", "multiple of 512", "truncate -s 1024"],
    );
    let empty = TempFile::new("empty.img", b"");
    refused(&with(empty.str()), START, &["is empty"]);
    refused(
        &with(&format!("{},rp", odd.str())),
        USAGE,
        &["'rp'", "'ro'"],
    );
    let good = TempFile::new("good.img", &[0; 1024]);
    refused(
        &with(&format!("{},serial=twenty-one-characters", good.str())),
        USAGE,
        &["serial"],
    );
    let twice = run(&[
        "run",
        kernel(),
        "-d",
        good.str(),
        "-d",
        good.str(),
        "--dry-run",
    ]);
    refused(&twice, USAGE, &["the same image"]);
    let link = good.path().with_file_name("link.img");
    std::os::unix::fs::symlink(good.path(), &link).unwrap();
    let twice = run(&[
        "run",
        kernel(),
        "-d",
        good.str(),
        "-d",
        link.to_str().unwrap(),
        "--dry-run",
    ]);
    refused(&twice, USAGE, &["the same image"]);
    let many: Vec<&str> = std::iter::repeat_n(["-d", good.str()], 17)
        .flatten()
        .collect();
    let outcome = run(&[&["run", kernel(), "--dry-run"], &many[..]].concat());
    refused(&outcome, USAGE, &["at most 16 disks"]);
    assert_eq!(
        fs::read(good.path()).unwrap(),
        [0; 1024],
        "no file is touched"
    );
}

/// Runs `bantam` as a user without rights, if we may become one.
fn run_as_nobody(args: &[&str]) -> Option<Outcome> {
    // SAFETY: a plain query.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let copy = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let binary = copy.path().join("bantam");
    fs::copy(bantam(), &binary).unwrap();
    let kernel = copy.path().join("guest");
    fs::copy(guest::elf(), &kernel).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary);
    command.args(
        args.iter()
            .map(|arg| arg.replace("KERNEL", kernel.to_str().unwrap())),
    );
    Some(run_with(command, b"", Duration::from_secs(30)))
}

#[test]
fn permissions() {
    let folder = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, [0; 512]).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let secret = secret.to_str().unwrap();
    let Some(outcome) = run_as_nobody(&["run", "KERNEL", "--disk", secret, "--dry-run"]) else {
        // Not root: then our own file without permission does the same.
        fs::set_permissions(secret, fs::Permissions::from_mode(0o0)).unwrap();
        refused(&run(&["run", secret]), START, &["Permission denied"]);
        return;
    };
    refused(&outcome, START, &["secret", "Permission denied", ",ro"]);
    let outcome = run_as_nobody(&["run", secret]).unwrap();
    refused(&outcome, START, &["secret", "Permission denied", "chmod"]);
    if !fs::metadata("/dev/kvm").is_ok_and(|m| m.permissions().mode() & 0o006 == 0o006) {
        let outcome = run_as_nobody(&["run", "KERNEL"]).unwrap();
        refused(
            &outcome,
            START,
            &["/dev/kvm", "permission denied for user nobody"],
        );
    }
}

/// /dev/kvm answers as `errno` says, by fault injection into the real binary.
fn with_kvm_answering(errno: &str) -> Option<Outcome> {
    if !common::has_program("strace") {
        return None;
    }
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-P",
        "/dev/kvm",
        "-e",
        "trace=openat",
    ]);
    command.args([
        "-e",
        &format!("inject=openat:error={errno}"),
        bantam(),
        "run",
        kernel(),
    ]);
    Some(run_with(command, b"", Duration::from_secs(30)))
}

#[test]
fn kvm_missing_forbidden_or_busy() {
    for (errno, words) in [
        ("ENOENT", ["/dev/kvm does not exist", "modprobe"]),
        ("EACCES", ["/dev/kvm: permission denied", "kvm"]),
        ("EBUSY", ["/dev/kvm is busy", "stop the other hypervisor"]),
    ] {
        match with_kvm_answering(errno) {
            Some(outcome) => refused(&outcome, START, &words),
            None => panic!("strace is needed for this test: apt-get install strace"),
        }
    }
}

#[test]
fn configuration_files() {
    let with = |content: &str| {
        let file = TempFile::new("vm.toml", content.as_bytes());
        let outcome = run(&["run", "--config", file.str(), "--dry-run"]);
        (file, outcome)
    };
    let (_f, outcome) = with(&format!("kernel = \"{}\"\nmemroy = \"1G\"\n", kernel()));
    refused(
        &outcome,
        USAGE,
        &["unknown key 'memroy'", "did you mean 'memory'?"],
    );
    let (_f, outcome) = with("kernel = 5\n");
    refused(&outcome, USAGE, &["vm.toml, line 1"]);
    let (_f, outcome) = with("\n\nkernel = \n");
    refused(&outcome, USAGE, &["vm.toml, line 3"]);
    let (_f, outcome) = with("memory = \"1G\"\n");
    refused(&outcome, USAGE, &["no kernel"]);
    refused(
        &run(&["run", "--config", "/nonexistent.toml"]),
        USAGE,
        &["/nonexistent.toml"],
    );
    refused(&run(&["run", "--config", "/tmp"]), USAGE, &["/tmp"]);
    let (_f, outcome) = with(&format!(
        "kernel = \"{}\"\nmemory = \"1G\"\ncpus = 3\n",
        kernel()
    ));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stdout.contains("memory    1024 MiB") && outcome.stdout.contains("3 cores"));
}

#[test]
fn command_lines() {
    let long = "x".repeat(2048);
    let outcome = run(&["run", kernel(), "--append", &long, "--dry-run"]);
    refused(
        &outcome,
        USAGE,
        &["bytes long", "this kernel reads 2047", "shorten"],
    );
    let outcome = run(&["run", kernel(), "--cmdline", &"x".repeat(2047), "--dry-run"]);
    assert_eq!(outcome.code(), 0, "the limit itself is good: {outcome:?}");
    refused(
        &run(&["run", kernel(), "--append", "a\nb", "--dry-run"]),
        USAGE,
        &["control character"],
    );
}

#[test]
fn consoles_that_cannot_be_opened() {
    if let Err(why) = common::kvm() {
        // The console is opened when the machine stands; /dev/kvm is what is missed first.
        eprintln!("only the first half: {why}");
        return;
    }
    let outcome = run(&["run", kernel(), "--console", "file=/nonexistent/log"]);
    refused(&outcome, START, &["/nonexistent/log"]);
    let outcome = run(&["run", kernel(), "--console", "file=/tmp"]);
    refused(&outcome, START, &["/tmp", "directory"]);
}

#[test]
fn an_image_that_another_machine_writes() {
    let image = TempFile::new("disk.img", &[0; 4096]);
    let access = bantam::storage::Access::default();
    let locked = bantam::storage::open::open(image.path(), access).unwrap();
    let holder = format!("in use by process {}", std::process::id());
    for (how, words) in [("", holder.as_str()), (",ro", "may write")] {
        let outcome = run(&[
            "run",
            kernel(),
            "--disk",
            &format!("{}{how}", image.str()),
            "--dry-run",
        ]);
        refused(&outcome, START, &[words, "stop the other machine"]);
    }
    drop(locked);
    let outcome = run(&["run", kernel(), "--disk", image.str(), "--dry-run"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [
        &["run", "--help"][..],
        &["completions", "bash"],
        &["man"],
        &["check"],
    ] {
        let mut child = Command::new(bantam())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.code().is_some(), "{args:?} ended by a signal");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    }
}
