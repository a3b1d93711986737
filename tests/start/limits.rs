//! Limits of setrlimit(2): a start below them runs, or says in two lines which is too low.

use crate::common::pty::Session;
use crate::common::{Outcome, TempFile, run};
use crate::{START, kernel, limited};

/// The guest has run, or two lines say what is missing and which limit to raise. True if it ran.
#[track_caller]
fn ran_or_said(outcome: &Outcome, limit: &str) -> bool {
    if outcome.status.code() == Some(0) {
        assert!(!outcome.stderr.contains("error"), "{outcome:?}");
        return true;
    }
    assert_eq!(outcome.status.code(), Some(START), "{outcome:?}");
    assert_eq!(outcome.stdout, "");
    let lines = outcome
        .stderr
        .lines()
        .filter(|line| !line.starts_with("console: "));
    let [error, help] = lines.collect::<Vec<_>>()[..] else {
        panic!("not two lines: {outcome:?}");
    };
    assert!(
        error.starts_with("error: ") && !error.contains("os error"),
        "{outcome:?}"
    );
    assert!(
        help.starts_with("help: ") && help.contains(limit),
        "{outcome:?}"
    );
    false
}

/// Three disks with everything that may need a descriptor or a thread, and their files.
fn rich() -> (Vec<TempFile>, Vec<String>) {
    let images: Vec<_> = (0..3)
        .map(|_| TempFile::new("disk.img", &[0; 1 << 20]))
        .collect();
    let options = ["", ",iothread,queues=2", ",io=threads"];
    let mut args: Vec<String> = ["--cpus", "4"].map(str::to_owned).into();
    for (image, options) in images.iter().zip(options) {
        args.extend(["--disk".to_owned(), format!("{}{options}", image.str())]);
    }
    (images, args)
}

pub fn open_files() {
    let (_images, rich) = rich();
    let rich: Vec<&str> = rich.iter().map(String::as_str).collect();
    let log = TempFile::new("log", b"");
    let to_file = format!("file={}", log.str());
    for more in [
        &[][..],
        &rich,
        &["--console", "pty"],
        &["--console", &to_file],
    ] {
        let mut ran = Vec::new();
        for files in 4..=60 {
            let args = [&["run", kernel(), "--time-limit", "30s"], more].concat();
            let outcome = limited(&args, libc::RLIMIT_NOFILE, files);
            ran.push(ran_or_said(&outcome, "ulimit -n"));
            let rehearsed = limited(
                &[&args[..], &["--dry-run"]].concat(),
                libc::RLIMIT_NOFILE,
                files,
            );
            assert!(
                matches!(rehearsed.status.code(), Some(0 | START)),
                "{rehearsed:?}"
            );
        }
        // Few are not enough, many are, and in between nothing goes back and forth.
        assert!(!ran[0] && ran[56], "{more:?}: {ran:?}");
        assert!(ran.is_sorted(), "{more:?}: {ran:?}");
    }
}

pub fn address_space() {
    let (_images, rich) = rich();
    let rich: Vec<&str> = rich.iter().map(String::as_str).collect();
    for more in [
        &["--memory", "4M"][..],
        &[&rich[..], &["--memory", "4M"]].concat(),
    ] {
        let (mut said, mut ran) = (0, 0);
        for mib in (4..40).chain([48, 64, 100, 200, 1000]) {
            for kib in [0, 300, 700] {
                let bytes = (mib * 1024 + kib) * 1024;
                // Where the program itself cannot be loaded, nobody can say anything.
                let loads = limited(&["--version"], libc::RLIMIT_AS, bytes);
                if loads.status.code() != Some(0) {
                    continue;
                }
                let args = [&["run", kernel(), "--time-limit", "30s"], more].concat();
                match ran_or_said(&limited(&args, libc::RLIMIT_AS, bytes), "ulimit -v") {
                    true => ran += 1,
                    false => said += 1,
                }
            }
        }
        assert!(said > 0 && ran > 0, "{more:?}: {said} refused, {ran} ran");
    }
    let args = ["run", kernel(), "--memory", "2G", "--time-limit", "30s"];
    let outcome = limited(&args, libc::RLIMIT_AS, 1 << 30);
    ran_or_said(&outcome, "--memory");
    assert!(
        outcome.stderr.contains("2048 MiB of guest memory"),
        "{outcome:?}"
    );
}

pub fn check() {
    let outcome = limited(&["check"], libc::RLIMIT_NOFILE, 3);
    // Where even the program's libraries cannot be opened, nobody can say anything.
    if limited(&["--version"], libc::RLIMIT_NOFILE, 3)
        .status
        .code()
        == Some(0)
    {
        assert_eq!(outcome.code(), 1, "{outcome:?}");
        assert!(outcome.stdout.contains("ulimit -n"), "{outcome:?}");
    }
    assert_eq!(run(&["check"]).code(), 0);
}

pub fn terminal() {
    let args = [kernel(), "--memory", "4M", "--time-limit", "30s"];
    let limits = (4..=30).map(|files| (libc::RLIMIT_NOFILE, files));
    let spaces = (8..24).map(|mib| (libc::RLIMIT_AS, mib << 20));
    let (mut ran, mut refused) = (0, 0);
    for limit in limits.chain(spaces) {
        if limited(&["--version"], limit.0, limit.1).status.code() != Some(0) {
            continue;
        }
        let mut session = Session::limited(&args, limit);
        // Checks the settings.
        let status = session.finish();
        assert!(
            matches!(status.code(), Some(0 | START)),
            "{limit:?}: {}",
            session.catch_up()
        );
        let seen = session.catch_up();
        assert!(!seen.contains("panicked"), "{limit:?}: {seen}");
        match status.success() {
            true => ran += 1,
            false => refused += 1,
        }
        let wanted = if status.success() { "hello" } else { "help: " };
        assert!(seen.contains(wanted), "{limit:?}: {seen}");
    }
    assert!(ran > 0 && refused > 0, "{ran} ran, {refused} were refused");
}
