//! What is typed: commands, options, their values.

use std::process::{Command, Stdio};

use crate::common::{TempFile, bantam, run, run_with};
use crate::{USAGE, kernel, refused};

#[test]
fn no_or_unknown_words() {
    refused(&run(&["rum"]), USAGE, &["rum", "run"]);
    refused(
        &run(&["run", "--memroy", "1G"]),
        USAGE,
        &["--memroy", "--memory"],
    );
    refused(
        &run(&[kernel()]),
        USAGE,
        &[kernel(), "no command", "bantam run"],
    );
    refused(&run(&["image", "crate", "x"]), USAGE, &["crate", "create"]);
    refused(
        &run(&["image", "create", "--formt", "raw"]),
        USAGE,
        &["'--format'"],
    );
    refused(&run(&["run"]), USAGE, &["no kernel"]);
    refused(&run(&["run", "a", "--kernel", "b"]), USAGE, &["--kernel"]);
    refused(
        &run(&["run", kernel(), "--protocol", "bios"]),
        USAGE,
        &["bios", "pvh"],
    );
    // Each is good by itself.
    refused(
        &run(&[
            "run",
            kernel(),
            "--reclaim",
            "--memory-backing",
            "hugetlbfs",
        ]),
        USAGE,
        &["--memory-backing 'hugetlbfs'", "reserved", "--reclaim"],
    );
}

/// A command is one also where a file has its name.
#[test]
fn a_file_is_no_command() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["check", "help", "vmlinuz"] {
        std::fs::write(folder.path().join(name), b"x").unwrap();
        let mut command = Command::new(bantam());
        command.arg(name).current_dir(folder.path());
        let outcome = run_with(command, b"", std::time::Duration::from_secs(30));
        match name {
            "vmlinuz" => refused(&outcome, USAGE, &["no command", "bantam run vmlinuz"]),
            _ => assert!(
                outcome.code() <= 1 && !outcome.stdout.is_empty(),
                "{outcome:?}"
            ),
        }
    }
}

/// Without a command, those that there are: each in one line, with what it is for.
#[test]
fn a_bare_bantam_lists_its_commands() {
    for (args, commands) in [
        (
            &[][..],
            &["run", "check", "inspect", "image", "completions", "man"][..],
        ),
        (&["image"], &["create", "info", "convert", "resize"]),
    ] {
        let outcome = run(args);
        assert_eq!(outcome.code(), USAGE, "{outcome:?}");
        assert_eq!(outcome.stdout, "");
        let lines: Vec<_> = outcome.stderr.lines().collect();
        assert_eq!(lines.len(), commands.len() + 1, "{outcome:?}");
        for (line, command) in lines.iter().zip(commands) {
            let words: Vec<_> = line.split_whitespace().collect();
            let at = 1 + args.len();
            assert_eq!((words[0], words[at]), ("bantam", *command));
            assert!(words.len() > at + 3 && line.len() <= 110, "{line}");
        }
        assert!(lines[commands.len()].contains("--help"), "{outcome:?}");
    }
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
            &["--console", "stdio, serial, virtio, none, pty, file=PATH"],
        );
    }
}

#[test]
fn numbers_of_machines() {
    let with = |value: &str| run(&["run", kernel(), "--uuid", value, "--dry-run"]);
    for value in ["", "1", "123e4567-e89b-12d3-a456-42661417400g"] {
        refused(&with(value), USAGE, &["--uuid", "not a UUID", "uuidgen"]);
    }
    refused(
        &with("00000000-0000-0000-0000-000000000000"),
        USAGE,
        &["--uuid", "no machine"],
    );
    let outcome = with("123E4567-E89B-12D3-A456-426614174000");
    let line = "uuid      123e4567-e89b-12d3-a456-426614174000\n";
    assert!(outcome.stdout.contains(line), "{outcome:?}");
}

/// Their names are told, and nothing tells their values.
#[test]
fn credentials() {
    let with = |words: &[&str]| run(&[&["run", kernel()], words, &["--dry-run"]].concat());
    for (value, words) in [
        ("name", ["--credential 'name'", "no '='"]),
        ("=swordfish", ["--credential", "name is missing"]),
        ("a/b=swordfish", ["--credential 'a/b'", "no such name"]),
        (
            "a\u{1b}=swordfish",
            ["--credential 'a\\u{1b}'", "no such name"],
        ),
        (
            &format!("{}=swordfish", "x".repeat(256)),
            ["--credential 'xxxx", "256 bytes"],
        ),
    ] {
        let outcome = with(&["--credential", value]);
        refused(&outcome, USAGE, &words);
        assert!(!outcome.stderr.contains("swordfish"), "{outcome:?}");
    }
    let file = TempFile::new("secret", b"swordfish\n");
    let name = format!("from.file={}", file.str());
    let outcome = with(&["--credential", "a=swordfish", "--credential-file", &name]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(
        outcome.stdout.contains("creds     a, from.file\n"),
        "{outcome:?}"
    );
    assert!(!outcome.stdout.contains("swordfish"), "{outcome:?}");
    for (path, words) in [
        ("", ["--credential-file 'a'", "path is missing"]),
        ("/nonexistent", ["credential a: /nonexistent", "No such"]),
        ("/tmp", ["credential a: /tmp", "directory"]),
    ] {
        let code = if path.is_empty() { USAGE } else { crate::START };
        let outcome = with(&["--credential-file", &format!("a={path}")]);
        refused(&outcome, code, &words);
    }
    let outcome = with(&["--credential", "a=1", "--credential-file", "a=/nonexistent"]);
    refused(
        &outcome,
        USAGE,
        &["--credential-file 'a'", "one of the two"],
    );
    let large = "x".repeat(40_000);
    let (a, b) = (format!("a={large}"), format!("b={large}"));
    let outcome = with(&["--credential", &a, "--credential", &b]);
    refused(&outcome, USAGE, &["credential b", "no room", "65520 bytes"]);
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
fn a_reader_that_goes_away_is_no_error() {
    for args in [&["run", "--help"][..], &["completions", "bash"], &["man"]] {
        let mut child = Command::new(bantam())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert_eq!(output.stderr, b"", "{args:?}: {output:?}");
    }
}
