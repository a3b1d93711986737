//! What a file, a name or a word says never moves the cursor of the terminal that it is shown on,
//! nor makes a line that looks like one of ours.

mod common;

use std::path::PathBuf;

use common::{Outcome, guest, run};

/// Clears the screen, sets a title, by C1 as well; makes lines of its own; turns the direction.
const EVIL: &str =
    "a\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\r\nhelp: forged\n\u{202e}b\u{200b}\u{7f}";

/// The program was run with these words; what it says has nothing of that in it, and `known` words.
#[track_caller]
fn harmless(words: &[&str], code: i32, known: &str) -> Outcome {
    let outcome = run(words);
    assert_eq!(outcome.code(), code, "{words:?}: {outcome:?}");
    for text in [&outcome.stdout, &outcome.stderr] {
        let bad = |c: char| {
            (c.is_control() && c != '\n')
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        };
        assert!(!text.contains(bad), "{words:?}: {outcome:?}");
        let forged = text.lines().any(|line| line.starts_with("help: forged"));
        assert!(!forged, "{words:?}: {outcome:?}");
    }
    let all = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(
        all.contains(known),
        "no '{known}' of {words:?}: {outcome:?}"
    );
    outcome
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn word(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

const SHOWN: &str = r"\u{1b}[2J";

#[test]
fn names_inside_of_disk_images() {
    let folder = Folder::new();
    let kernel = guest::elf().to_str().unwrap();
    std::fs::write(folder.path(EVIL), [1; 4096]).unwrap();
    let top = folder.word("top.qcow2");
    let words = ["image", "create", "-b", EVIL, "-F", "raw", &top];
    harmless(&words, 0, "top.qcow2");
    harmless(&["image", "info", &top], 0, SHOWN);
    let json = harmless(&["image", "info", "--json", &top], 0, r"\u001b[2J").stdout;
    let info: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(info["backing-filename"], EVIL, "JSON says what it is");
    let out = folder.word("out.raw");
    harmless(&["image", "convert", &top, &out], 3, SHOWN);
    harmless(&["image", "resize", &top, "+1M"], 3, SHOWN);
    harmless(&["run", kernel, "--dry-run", "--disk", &top], 3, SHOWN);
    std::fs::remove_file(folder.path(EVIL)).unwrap();
    let with = format!("{top},backing=on");
    harmless(&["run", kernel, "--dry-run", "--disk", &with], 3, SHOWN);
}

#[test]
fn names_of_files() {
    let folder = Folder::new();
    let kernel = guest::elf().to_str().unwrap();
    let evil = folder.word(EVIL);
    harmless(&["inspect", &evil], 3, SHOWN);
    harmless(&["run", &evil], 3, SHOWN);
    harmless(&["run", kernel, "--initrd", &evil], 3, SHOWN);
    harmless(&["run", kernel, "--disk", &evil], 3, SHOWN);
    harmless(&["run", "--iso", &evil], 3, SHOWN);
    harmless(&["run", "--config", &evil], 2, SHOWN);
    harmless(&["image", "info", &evil], 3, SHOWN);
    harmless(&["image", "create", &evil, "1M"], 0, SHOWN);
    harmless(&["image", "info", &evil], 0, SHOWN);
    harmless(&["image", "resize", &evil, "2M"], 0, SHOWN);
    let copy = format!("{evil}.copy");
    harmless(&["image", "convert", &evil, &copy], 0, SHOWN);
    let words = ["run", kernel, "--dry-run", "--disk", &evil];
    harmless(&words, 0, SHOWN);
    let words = ["run", kernel, "--dry-run", "--append", EVIL];
    harmless(&words, 2, "");
    // A warning in the log.
    let mut header = b"QFI\xfb".to_vec();
    header.resize(4096, 0);
    std::fs::write(&evil, &header).unwrap();
    let raw = format!("{evil},format=raw");
    harmless(
        &["run", kernel, "--dry-run", "--disk", &raw],
        0,
        "warn: disk",
    );
    harmless(&["image", "convert", &evil, "out.raw"], 3, SHOWN);
}

#[test]
fn words_and_configurations() {
    let folder = Folder::new();
    let kernel = guest::elf().to_str().unwrap();
    // The parser of the command line takes what begins with ESC away itself.
    harmless(&[EVIL], 2, r"\u{9b}");
    harmless(&["run", kernel, &format!("--{EVIL}")], 2, r"\u{9b}");
    harmless(&["run", kernel, "--memory", EVIL], 2, SHOWN);
    harmless(&["run", kernel, "--disk", &format!("x,{EVIL}=1")], 2, SHOWN);
    let quoted = serde_json::to_string(EVIL).unwrap();
    let quoted = quoted.replace('\u{7f}', "\\u007f");
    for text in [
        format!("{quoted} = 1\n"),
        format!("memory = {quoted}\n"),
        format!("disk = {quoted}\n"),
        format!("kernel = {quoted}\n"),
        "kernel = \u{1b}[2J\n".into(),
        "kernel\u{9b} = 1\n".into(),
    ] {
        let file = folder.word("vm.toml");
        std::fs::write(&file, &text).unwrap();
        let outcome = run(&["run", "--config", &file]);
        assert!(matches!(outcome.code(), 2 | 3), "{text:?}: {outcome:?}");
        harmless(&["run", "--config", &file], outcome.code(), "error: ");
    }
}

#[test]
fn versions_of_kernels() {
    let folder = Folder::new();
    let image = folder.word("vmlinuz");
    for version in [EVIL, "6.1\u{202e}evil", "6.1\u{1b}[2J"] {
        let mut kernel = guest::bzimage(true);
        // Behind the header, in the first sector after it.
        kernel[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        let text = format!("{version}\0");
        kernel[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        std::fs::write(&image, &kernel).unwrap();
        harmless(&["inspect", &image], 0, "bzImage");

        let mut kernel = std::fs::read(guest::elf()).unwrap();
        kernel.extend(format!("Linux version {version}\n\0").as_bytes());
        std::fs::write(&image, &kernel).unwrap();
        harmless(&["inspect", &image], 0, "ELF");
    }
}
