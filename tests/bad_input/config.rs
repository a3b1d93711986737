//! Configuration files: a mistake is named with file, line and column, and with what is right.

use std::fs::{self, File};

use crate::common::{Outcome, TempFile, run};
use crate::{USAGE, kernel, refused};

/// `bantam run --config vm.toml --dry-run`, with this content and words behind it. The kernel is
/// named in line 1.
fn with_words(content: &[u8], words: &[&str]) -> Outcome {
    let mut text = format!("kernel = \"{}\"\n", kernel()).into_bytes();
    text.extend(content);
    let file = TempFile::new("vm.toml", &text);
    run(&[&["run", "--config", file.str(), "--dry-run"], words].concat())
}

fn with(content: &str) -> Outcome {
    with_words(content.as_bytes(), &[])
}

/// Refused at this line and column, with these words.
#[track_caller]
fn refused_at(content: &str, line: usize, column: usize, words: &[&str]) {
    let place = format!("vm.toml, line {line}, column {column}");
    let outcome = with(content);
    refused(&outcome, USAGE, &[&[place.as_str()], words].concat());
    // Never only what the format is called.
    let help = outcome.stderr.lines().nth(1).unwrap();
    assert!(!help.contains("TOML: key"), "{help}");
}

#[test]
fn unknown_keys() {
    refused_at(
        "memroy = \"1G\"",
        2,
        1,
        &["unknown key 'memroy'", "did you mean 'memory'?"],
    );
    refused_at("\n  cpu = 2", 3, 3, &["'cpu'", "'cpus'"]);
    refused_at("Memory = 5", 2, 1, &["'memory'"]);
    refused_at("time_limit = 5", 2, 1, &["'time-limit'"]);
    refused_at("\"disks\" = []", 2, 1, &["'disk'"]);
    refused_at("qqq = 1", 2, 1, &["the keys are: kernel, "]);
}

#[test]
fn values_of_another_type() {
    for (line, column, words) in [
        ("cpus = [1]", 8, ["cpus is a list", "write cpus = 4"]),
        (
            "memory = true",
            10,
            ["memory is true or false", "write memory = \"2G\""],
        ),
        (
            "memory = 1.5",
            10,
            ["memory is a fraction", "write memory = \"2G\""],
        ),
        (
            "cpus = 99999999999999999999",
            8,
            ["cpus 99999999999999999999", "too large"],
        ),
        (
            "initrd = 5",
            10,
            ["initrd is a number", "write initrd = \"initrd.img\""],
        ),
        (
            "cache = \"yes\"",
            9,
            ["cache is a string", "write cache = true"],
        ),
        (
            "reboot = 1",
            10,
            ["reboot is a number", "write reboot = true"],
        ),
        (
            "append = 5",
            10,
            ["append is a number", "a list of strings"],
        ),
        (
            "disk = [\"a\", 5]",
            14,
            ["disk has a number in its list", "list of strings"],
        ),
        (
            "disk = {path = \"a\"}",
            8,
            ["disk is a table", "\"root.img\""],
        ),
        ("disk.path = \"a\"", 1, ["disk is a table", "\"root.img\""]),
        (
            "console = 1979-05-27",
            11,
            ["console is a date", "\"stdio\""],
        ),
        ("protocol = \"pwh\"", 12, ["'pwh'", "did you mean 'pvh'?"]),
        ("unpack = \"me\"", 10, ["'me'", "it is one of: host, guest"]),
        ("memory-backing = \"huge\"", 18, ["'huge'", "hugetlbfs"]),
    ] {
        refused_at(line, 2, column, &words);
    }
}

#[test]
fn tables_that_are_not_there() {
    refused_at(
        "[machine]\ncpus = 2",
        2,
        2,
        &["no table 'machine'", "without tables"],
    );
    refused_at("machine.cpus = 2", 2, 1, &["no table 'machine'"]);
    refused_at("[[disk]]\npath = \"a\"", 2, 1, &["no tables", "disk = "]);
    refused_at("[disk.root]\npath = \"a\"", 2, 2, &["disk is a table"]);
    refused_at("[cpus]\nsockets = 2", 2, 1, &["no tables", "cpus = 4"]);
}

#[test]
fn keys_twice() {
    refused_at(
        "memory = 1\ncpus = 1\nmemory = 2",
        4,
        1,
        &["duplicate", "keep one 'memory'"],
    );
    refused_at("kernel = \"x\"", 2, 1, &["duplicate", "keep one 'kernel'"]);
    refused_at(
        "disk = \"a\"\ndisk = \"b\"",
        3,
        1,
        &["duplicate", "keep one 'disk'"],
    );
}

#[test]
fn what_is_no_toml() {
    for (text, line, hint) in [
        ("memory = 2G", 2, "memory = \"2G\""),
        ("initrd = initrd.img", 2, "initrd = \"initrd.img\""),
        ("memory 2G", 2, "memory = \"2G\""),
        ("initrd = \"initrd.img", 2, "begins and ends with quotes"),
        ("initrd = ", 2, "write initrd ="),
        ("append = [\"a\" \"b\"]", 2, "append"),
        ("disk = [\"a\",\n\ncpus = 2", 4, "cpus"),
        ("[machine\n", 2, "no tables"),
        ("= 5", 2, "write "),
        ("cpus = 2 # two\nmemory = 'a\n", 3, "memory"),
        ("cpus: 2", 2, "cpus"),
        ("\x1b[2J", 2, "write "),
    ] {
        let outcome = with(text);
        refused(
            &outcome,
            USAGE,
            &[&format!("vm.toml, line {line}, column "), hint],
        );
        assert!(!outcome.stderr.contains('\x1b'), "{outcome:?}");
    }
}

#[test]
fn values_that_are_read_and_make_no_sense() {
    refused_at(
        "memory = \"5x\"",
        2,
        10,
        &["--memory '5x'", "unknown unit 'x'"],
    );
    refused_at("\ncpus = \"4,cores=3\"", 3, 8, &["--cpus"]);
    refused_at("cpus = 0", 2, 8, &["--cpus '0'"]);
    refused_at("cpus = \"2,core=2\"", 2, 8, &["'core'", "'cores'"]);
    refused_at("time-limit = \"soon\"", 2, 14, &["--time-limit 'soon'"]);
    refused_at(
        "console = \"tty\"",
        2,
        11,
        &["--console 'tty'", "stdio, serial"],
    );
    refused_at(
        "disk = [\"a.img\",\n  \"b.img,fromat=raw\"]",
        3,
        3,
        &["unknown key 'fromat'", "'format'"],
    );
    refused_at(
        "cdrom = [\"a.iso\", \"https://example.org/b.iso\"]",
        2,
        19,
        &["--cdrom 'https://", "curl"],
    );
    refused_at("disk = \"a.img,queues=0\"", 2, 8, &["--disk", "queues"]);
    // What is typed wins, and is to blame for its own mistakes.
    let outcome = with_words(b"memory = \"5x\"\n", &["--memory", "1G"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let outcome = with_words(b"memory = \"1G\"\n", &["--memory", "5x"]);
    refused(&outcome, USAGE, &["--memory '5x'"]);
    assert!(!outcome.stderr.contains("vm.toml"), "{outcome:?}");
}

#[test]
fn files_that_are_no_text() {
    let outcome = with_words(b"append = \"\xff\xfe\"\n", &[]);
    refused(
        &outcome,
        USAGE,
        &["vm.toml, line 2, column 11", "0xff", "UTF-8"],
    );
    let mut utf16 = vec![0xff, 0xfe];
    utf16.extend("kernel = 'x'".encode_utf16().flat_map(u16::to_le_bytes));
    for (name, content, words) in [
        (
            "utf16.toml",
            &utf16[..],
            ["utf16.toml, line 1, column 1", "UTF-8"],
        ),
        (
            "latin1.toml",
            b"# caf\xe9\n",
            ["latin1.toml, line 1, column 6", "0xe9"],
        ),
        (
            "nul.toml",
            b"kernel = \0\n",
            ["nul.toml, line 1, column ", "kernel"],
        ),
        (
            "elf.toml",
            b"\x7fELF\x02\x01\x01\0\0",
            ["elf.toml, line 1, column 1", "write "],
        ),
    ] {
        let file = TempFile::new(name, content);
        let outcome = run(&["run", "--config", file.str(), "--dry-run"]);
        refused(&outcome, USAGE, &words);
        assert!(outcome.stderr.chars().all(|c| c == '\n' || !c.is_control()));
    }
    let huge = TempFile::new("huge.toml", b"");
    for (len, words) in [(1 << 40, "1048576 MiB"), ((1 << 20) + 1, "2 MiB")] {
        File::options()
            .write(true)
            .open(huge.path())
            .unwrap()
            .set_len(len)
            .unwrap();
        let outcome = run(&["run", "--config", huge.str()]);
        refused(&outcome, USAGE, &["huge.toml", words, "--config"]);
    }
    // As large as may be: read, and not in quadratic time.
    let deep = TempFile::new("deep.toml", "a = [".repeat(200_000).as_bytes());
    refused(
        &run(&["run", "--config", deep.str()]),
        USAGE,
        &["deep.toml, line 1"],
    );
    let long = format!("append = [\n{}]\nmemroy = 1", "\"x\",\n".repeat(200_000));
    let long = TempFile::new("long.toml", long.as_bytes());
    refused(
        &run(&["run", "--config", long.str()]),
        USAGE,
        &["long.toml, line 200003, column 1"],
    );
    refused(
        &run(&["run", "--config", "/nonexistent.toml"]),
        USAGE,
        &["/nonexistent.toml", "No such"],
    );
    refused(
        &run(&["run", "--config", "/tmp"]),
        USAGE,
        &["/tmp is a directory"],
    );
    refused(
        &run(&["run", "--config", "/dev/null"]),
        USAGE,
        &["/dev/null is a device"],
    );
}

#[test]
fn good_files() {
    let file = TempFile::new("vm.toml", b"memory = \"1G\"\n");
    refused(
        &run(&["run", "--config", file.str(), "--dry-run"]),
        USAGE,
        &["no kernel"],
    );
    let outcome = with("memory = \"1G\"\ncpus = 3\n");
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stdout.contains("memory    1024 MiB") && outcome.stdout.contains("3 cores"));
    // As some editors save it.
    let text = format!("\u{feff}kernel = \"{}\"\r\ncpus = 2\r\n", kernel());
    fs::write(file.path(), text).unwrap();
    let outcome = run(&["run", "--config", file.str(), "--dry-run"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
}
