//! Disks and consoles: files that are missing, forbidden, in use or of the wrong kind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::common::{self, Outcome, TempFile, guest, run, run_with};
use crate::{START, USAGE, kernel, refused};

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
    let read_only = format!("{},ro", good.str());
    let many: Vec<&str> = std::iter::repeat_n(["-d", &read_only], 17)
        .flatten()
        .collect();
    let outcome = run(&[&["run", kernel(), "--dry-run"], &many[..]].concat());
    refused(
        &outcome,
        USAGE,
        &["no room for virtio-blk, vdq: ", "at most 16 devices"],
    );
    assert_eq!(
        fs::read(good.path()).unwrap(),
        [0; 1024],
        "no file is touched"
    );
}

/// Runs `bantam` as a user without rights, if we may become one.
fn run_as_nobody(args: &[&str]) -> Option<Outcome> {
    if common::nobody_missing().is_some() {
        return None;
    }
    let copy = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let binary = copy.path().join("bantam");
    common::copy_program(&binary);
    let kernel = copy.path().join("guest");
    fs::copy(guest::elf(), &kernel).unwrap();
    let mut command = common::as_nobody(&binary);
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
