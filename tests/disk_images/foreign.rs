//! Images in formats that are not ours: never taken for raw, and never changed.

use super::*;

/// Format and options of qemu-img, the usual ending, and the word that the refusal must have.
const MADE: [(&str, &str, &str, &str); 12] = [
    ("vmdk", "subformat=monolithicSparse", "vmdk", "VMDK"),
    ("vmdk", "subformat=streamOptimized", "vmdk", "VMDK"),
    ("vmdk", "subformat=monolithicFlat", "vmdk", "VMDK"),
    ("vmdk", "subformat=twoGbMaxExtentSparse", "vmdk", "VMDK"),
    ("vdi", "static=off", "vdi", "VDI"),
    ("vdi", "static=on", "vdi", "VDI"),
    ("vpc", "subformat=dynamic", "vhd", "VHD"),
    ("vpc", "subformat=fixed", "vhd", "VHD"),
    ("vhdx", "subformat=dynamic", "vhdx", "VHDX"),
    ("qed", "cluster_size=64k", "qed", "QED"),
    ("parallels", "cluster_size=1M", "hdd", "Parallels"),
    ("qcow", "encryption=off", "qcow", "version 1"),
];

/// What qemu-img does not make, by the bytes that a program for it would look at.
const BY_HAND: [(&str, usize, &[u8], &str); 6] = [
    ("dmg", (1 << 20) - 512, b"koly\0\0\0\x04", "DMG"),
    (
        "img",
        0,
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0\n",
        "cloop",
    ),
    ("img", 0, b"Bochs Virtual HD Image\0", "Bochs"),
    ("wim", 0, b"MSWIM\0\0\0", "WIM"),
    ("simg", 0, b"\x3a\xff\x26\xed\x01\0", "Android"),
    ("e01", 0, b"EVF\x09\x0d\x0a\xff\0", "EnCase"),
];

pub fn images() {
    let folder = Folder::new();
    std::fs::write(folder.path("plain"), &content()[..3 << 20]).unwrap();
    for (format, options, ending, word) in MADE {
        let made = folder.word(&format!("made.{ending}"));
        let args = ["convert", "-f", "raw", "-O", format, "-o", options];
        qemu_img(&[&args[..], &[&folder.word("plain"), &made]].concat());
        // With its own name, with one that says nothing, and with one that lies.
        for name in [
            format!("made.{ending}"),
            "disk.img".into(),
            "x.qcow2".into(),
        ] {
            let path = folder.path(&name);
            if name != format!("made.{ending}") {
                std::fs::copy(&made, &path).unwrap();
            }
            nobody_takes_it(&folder, &path, word);
        }
        // The command that the refusal names works.
        let converted = folder.word("converted.qcow2");
        let help = run(&["image", "info", &made]).stderr;
        let from = if format == "vpc" { "vpc" } else { format };
        let command = format!("qemu-img convert -f {from} -O qcow2 {made}");
        assert!(help.contains(&command), "{help}");
        qemu_img(&["convert", "-f", from, "-O", "qcow2", &made, &converted]);
        for part in std::fs::read_dir(folder.0.path()).unwrap() {
            let part = part.unwrap().path();
            if part != folder.path("plain") {
                std::fs::remove_file(part).unwrap();
            }
        }
    }
    for (ending, at, bytes, word) in BY_HAND {
        let mut image = vec![0; 1 << 20];
        image[at..at + bytes.len()].copy_from_slice(bytes);
        for name in [&format!("made.{ending}"), "disk.img"] {
            let path = folder.path(name);
            std::fs::write(&path, &image).unwrap();
            nobody_takes_it(&folder, &path, word);
        }
    }
}

pub fn packed() {
    let folder = Folder::new();
    std::fs::write(folder.path("disk.raw"), &content()[..1 << 20]).unwrap();
    let raw = folder.word("disk.raw");
    let mut tried = 0;
    for (program, ending, word) in [
        ("gzip", "gz", "gzip"),
        ("xz", "xz", "xz"),
        ("zstd", "zst", "zstd"),
        ("bzip2", "bz2", "bzip2"),
    ] {
        if !common::has_program(program) {
            continue;
        }
        tried += 1;
        let packed = folder.path(&format!("disk.raw.{ending}"));
        let out = try_qemu(program, &["-c", &raw]);
        assert!(out.status.success(), "{out:?}");
        std::fs::write(&packed, &out.stdout).unwrap();
        let unnamed = folder.path("packed.img");
        std::fs::write(&unnamed, &out.stdout).unwrap();
        for path in [packed, unnamed] {
            nobody_takes_it(&folder, &path, word);
        }
    }
    assert!(tried > 0, "no program to pack with");
    let ova = folder.word("machine.ova");
    let out = try_qemu(
        "tar",
        &[
            "-cf",
            &ova,
            "-C",
            folder.0.path().to_str().unwrap(),
            "disk.raw",
        ],
    );
    assert!(out.status.success(), "{out:?}");
    nobody_takes_it(&folder, Path::new(&ova), "tar archive");
}

pub fn names() {
    let folder = Folder::new();
    let raw = folder.word("disk.raw");
    std::fs::write(&raw, [7; 4096]).unwrap();
    for ending in [
        "vmdk", "vdi", "vhd", "VHDX", "qed", "hdd", "dmg", "ova", "qcow",
    ] {
        let new = folder.word(&format!("new.{ending}"));
        for words in [&["create", &new, "1M"][..], &["convert", &raw, &new]] {
            let outcome = run(&[&["image"], words].concat());
            assert_eq!(outcome.code(), 2, "{outcome:?}");
            assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:?}");
            assert!(outcome.stderr.contains("by its name"), "{outcome:?}");
            assert!(!Path::new(&new).exists(), "{words:?}");
        }
        // A raw disk with such a name is asked about, and taken when the user says so.
        std::fs::write(&new, [7; 4096]).unwrap();
        nobody_takes_it(&folder, Path::new(&new), "by its name");
    }
    let said = folder.word("said.vmdk");
    bantam_image(&["create", "-f", "raw", &said, "1M"]);
    assert_eq!(std::fs::metadata(&said).unwrap().len(), 1 << 20);
}

/// qcow2 under another name is called what it is.
pub fn unnamed() {
    let folder = Folder::new();
    let image = folder.word("fresh.img");
    qemu_img(&["create", "-f", "qcow2", &image, "1M"]);
    let before = std::fs::read(&image).unwrap();
    assert!(
        !before.len().is_multiple_of(512),
        "the case that was misread"
    );
    let kernel = common::guest::elf().to_str().unwrap();
    let out = folder.word("out.raw");
    for (words, way) in [
        (
            &["run", kernel, "--dry-run", "--disk", &image][..],
            "say format=qcow2",
        ),
        (&["image", "convert", &image, &out], "say '-f qcow2'"),
        (&["image", "resize", &image, "+1M"], "say '-f qcow2'"),
    ] {
        let outcome = run(words);
        assert_eq!(outcome.code(), 3, "{outcome:?}");
        assert!(outcome.stderr.contains("is a qcow2 image"), "{outcome:?}");
        assert!(outcome.stderr.contains(way), "{outcome:?}");
        assert!(std::fs::read(&image).unwrap() == before, "{words:?}");
    }
    let info = bantam_image(&["info", &image]).stdout;
    assert!(info.contains("qcow2"), "{info}");
    let said = format!("{image},format=qcow2");
    let outcome = run(&["run", kernel, "--dry-run", "--disk", &said]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    bantam_image(&["convert", "-f", "qcow2", &image, &out]);
    assert_eq!(std::fs::metadata(&out).unwrap().len(), 1 << 20);
}

/// Every command refuses the file, says what it is, and leaves it as it was; but `format=raw`.
#[track_caller]
fn nobody_takes_it(folder: &Folder, path: &Path, word: &str) {
    let before = std::fs::read(path).unwrap();
    let image = path.to_str().unwrap();
    let kernel = common::guest::elf().to_str().unwrap();
    let out = folder.word("out.raw");
    let (ro, direct) = (format!("{image},ro"), format!("{image},cache=direct"));
    for words in [
        &["run", kernel, "--disk", image][..],
        &["run", kernel, "--dry-run", "--disk", &ro],
        &["run", kernel, "--dry-run", "--disk", &direct],
        &["run", kernel, "--dry-run", "--cdrom", image],
        &["image", "info", image],
        &["image", "info", "--json", image],
        &["image", "convert", image, &out],
        &["image", "resize", image, "+1M"],
    ] {
        let outcome = run(words);
        assert_eq!(outcome.code(), 3, "{words:?}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 2, "{words:?}: {outcome:?}");
        assert!(outcome.stderr.contains(word), "{words:?}: {outcome:?}");
        assert!(
            !outcome.stderr.contains("truncate"),
            "{words:?}: {outcome:?}"
        );
        assert_eq!(outcome.stdout, "", "{words:?}");
        assert!(!Path::new(&out).exists(), "{words:?} left something behind");
        assert!(
            std::fs::read(path).unwrap() == before,
            "{words:?} changed it"
        );
    }
    if path.extension().is_some_and(|ending| ending == "qcow2") {
        // Nor does it help to say that it is one.
        let outcome = run(&["image", "info", "-f", "qcow2", image]);
        assert_eq!(outcome.code(), 3, "{outcome:?}");
        assert!(outcome.stderr.contains(word), "{outcome:?}");
        return;
    }
    bantam_image(&["convert", "-f", "raw", image, &out]);
    let copy = std::fs::read(&out).unwrap();
    assert!(copy.starts_with(&before), "raw, when the user says so");
    std::fs::remove_file(out).unwrap();
}
