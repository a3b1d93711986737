//! `--dry-run` finds what a start would find, and does nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::common::{self, Outcome, TempFile, as_nobody, guest, run, run_with};
use crate::{START, kernel, limited};

/// Refused by a start and by its rehearsal alike, with the same words; the machine is shown if its
/// files are good.
#[track_caller]
fn both_refuse(args: &[&str], words: &[&str]) {
    let started = run(&[&["run"], args, &["--time-limit", "30s"]].concat());
    let rehearsed = run(&[&["run"], args, &["--time-limit", "30s", "--dry-run"]].concat());
    for outcome in [&started, &rehearsed] {
        assert_eq!(outcome.code(), START, "{outcome:?}");
        for word in words {
            assert!(outcome.stderr.contains(word), "no '{word}' in {outcome:?}");
        }
    }
    // Numbers of processes may differ: one that another test has just begun has our files open for a
    // moment.
    let text = |outcome: &Outcome| outcome.stderr.replace(|c: char| c.is_ascii_digit(), "");
    assert_eq!(text(&started), text(&rehearsed));
    assert_eq!(started.stdout, "");
}

pub fn finds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("file={}/none/log", folder.path().display());
    both_refuse(
        &[kernel(), "--console", &missing],
        &["/none/log", "No such file", "mkdir -p"],
    );
    let is_folder = format!("file={}", folder.path().display());
    both_refuse(
        &[kernel(), "--console", &is_folder],
        &["directory", "name a file"],
    );
    both_refuse(
        &[kernel(), "--console", "file=/dev/null/x"],
        &["/dev/null/x"],
    );
    let disk = TempFile::new("disk.img", &[0; 4096]);
    let access = bantam::storage::Access::default();
    let locked = bantam::storage::open::open(disk.path(), access).unwrap();
    both_refuse(&[kernel(), "--disk", disk.str()], &["in use by process"]);
    drop(locked);
    both_refuse(
        &[kernel(), "--memory-backing", "hugetlbfs", "--memory", "64G"],
        &["nr_hugepages"],
    );
}

pub fn little_memory() {
    let small = |args: &[&str]| {
        let args = [&["run", kernel(), "--memory", "2G"], args].concat();
        limited(&args, libc::RLIMIT_AS, 1 << 30)
    };
    let (started, rehearsed) = (small(&[]), small(&["--dry-run"]));
    assert_eq!(rehearsed.code(), START);
    assert_eq!(started.stderr, rehearsed.stderr);
    assert!(
        rehearsed.stdout.contains("memory    2048 MiB"),
        "{rehearsed:?}"
    );
}

/// Why a user without rights cannot be tried, or has the right to use KVM.
pub fn kvm_is_for_all() -> Option<String> {
    let mode = fs::metadata("/dev/kvm").map_or(0, |meta| meta.permissions().mode());
    if mode & 0o006 == 0o006 {
        return Some("everybody may use /dev/kvm here".into());
    }
    common::nobody_missing()
}

/// A user without rights, and a /dev/kvm of somebody else's.
pub fn forbidden() {
    let folder = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let (binary, kernel) = (folder.path().join("bantam"), folder.path().join("kernel"));
    common::copy_program(&binary);
    fs::copy(guest::elf(), &kernel).unwrap();
    let nobody = |more: &[&str]| {
        let mut command = as_nobody(&binary);
        command.arg("run").arg(&kernel).args(more);
        run_with(command, b"", Duration::from_secs(60))
    };
    let (started, rehearsed) = (nobody(&[]), nobody(&["--dry-run"]));
    assert_eq!(started.code(), START, "{started:?}");
    assert_eq!(rehearsed.code(), START, "{rehearsed:?}");
    assert_eq!(started.stderr, rehearsed.stderr);
    let said = "/dev/kvm: permission denied for user nobody";
    assert!(started.stderr.contains(said), "{started:?}");
    assert!(rehearsed.stdout.contains("memory map"), "{rehearsed:?}");
}

pub fn no_trace() {
    let log = TempFile::new("log", b"kept");
    let disk = TempFile::new("disk.img", &[7; 4096]);
    let to_file = format!("file={}", log.str());
    let modified = || fs::metadata(disk.path()).unwrap().modified().unwrap();
    let before = modified();
    let new = log.path().with_file_name("new");
    for console in [
        to_file.as_str(),
        "pty",
        "stdio",
        &format!("file={}", new.display()),
    ] {
        let outcome = run(&[
            "run",
            kernel(),
            "--dry-run",
            "--console",
            console,
            "--disk",
            disk.str(),
        ]);
        assert_eq!(
            (outcome.code(), outcome.stderr.as_str()),
            (0, ""),
            "{outcome:?}"
        );
        // Neither the guest nor its console has begun.
        assert!(!outcome.stdout.contains("hello"), "{outcome:?}");
    }
    assert_eq!(fs::read(log.path()).unwrap(), b"kept");
    assert_eq!(fs::read(disk.path()).unwrap(), [7; 4096]);
    assert_eq!(modified(), before);
    assert!(!new.exists());
    // Nor is a lock left behind.
    let access = bantam::storage::Access::default();
    assert!(bantam::storage::open::open(disk.path(), access).is_ok());
}

/// The guest with the words that Linux has in it: whether it can boot is told by them alone.
pub fn pvm() {
    let banner = b"Linux version 6.1.0-test (x@y) (gcc) #1 SMP\n".to_vec();
    // What PVM's guests ask their host with.
    let aware = b"\x0f\x01\x3c\x25\x50\x56\x4d\xff\x0f\xa2";
    let image = |more: &[u8]| {
        let mut bytes = fs::read(guest::elf()).unwrap();
        bytes.extend(more);
        TempFile::new("vmlinux", &bytes)
    };
    let stock = image(&banner);
    let built_for_it = image(&[&banner[..], aware].concat());
    let host = run(&["check", "--json"]);
    if host.stdout.contains("\"backend\": \"pvm\"") {
        both_refuse(
            &[stock.str(), "--append", "a b"],
            &[
                "PVM",
                "CONFIG_PVM_GUEST",
                "resources/lab/lab --time-limit 600 -- ",
                "--append 'a b'",
            ],
        );
        assert!(run(&["check"]).stdout.contains("resources/lab/lab"));
    } else {
        let outcome = run(&["run", stock.str(), "--time-limit", "30s"]);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
    }
    for good in [built_for_it.str(), kernel()] {
        let outcome = run(&["run", good, "--time-limit", "30s"]);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        assert!(outcome.stdout.contains("hello"), "{outcome:?}");
    }
    for words in ["runs ", "runs not", "next "] {
        assert!(
            run(&["check"]).stdout.contains(&format!("\n{words}")),
            "{words}"
        );
    }
}
