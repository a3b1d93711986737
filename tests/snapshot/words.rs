//! The word `snapshot`: which disks it is for, and what is said where no overlay can be made.

use std::process::Command;
use std::time::Duration;

use crate::common::{Outcome, bantam, guest, run, run_with, ulimit};
use crate::images::{Images, LEN};

fn dry_run(args: &[&str]) -> Outcome {
    let kernel = guest::elf().to_str().unwrap();
    run(&[&["run", kernel, "--dry-run"], args].concat())
}

pub fn one_or_all() {
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

pub fn refused() {
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
    refused(ulimit("-f 300"), &["File too large", "raise 'ulimit -f'"]);
    // One number of files is just too small for the overlay's; which, is the program's affair.
    let told = (4..32).any(|files| {
        let mut command = ulimit(&format!("-n {files}"));
        command.args(["run", kernel, "--dry-run"]);
        command.args(["--disk", &disk]);
        let outcome = run_with(command, b"", Duration::from_secs(60));
        outcome.stderr.contains("error: no file in")
            && outcome.stderr.contains("Too many open files")
            && outcome.stderr.contains("ulimit -n")
    });
    assert!(
        told,
        "no number of files from 4 to 31 is said to be too small for the overlay"
    );
    images.unchanged();
}
