//! Kernels inside of ISOs, as xorriso makes them: found, and said to be missing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{guest, run};
use libtest_mimic::Arguments;

fn main() {
    let args = Arguments::from_args();
    let there = common::has_program("xorriso");
    let missing = (!there).then_some("xorriso is not installed");
    let tests: [(&str, fn()); 3] = [
        ("kernels_are_found_where_distributions_keep_them", layouts),
        ("an_iso_without_a_kernel_is_one_clear_error", no_kernel),
        ("what_is_no_iso_is_one_clear_error", no_iso),
    ];
    let trials = tests.map(|(name, test)| common::trial(name, missing, test));
    libtest_mimic::run(&args, trials.into()).exit();
}

/// An ISO of `files`, as xorriso makes it with these options.
fn iso(folder: &Path, files: &[(&str, &[u8])], options: &[&str]) -> String {
    let tree = folder.join("tree");
    let _ = std::fs::remove_dir_all(&tree);
    std::fs::create_dir(&tree).unwrap();
    for (name, content) in files {
        let path = tree.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let out = folder.join("test.iso");
    let _ = std::fs::remove_file(&out);
    let made = Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet"])
        .args(options)
        .arg("-o")
        .args([&out, &tree])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    out.to_str().unwrap().to_owned()
}

fn layouts() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = std::fs::read(guest::elf()).unwrap();
    let initrd = vec![0x42; 123_457];
    for (kernel_at, initrd_at, append) in [
        ("live/vmlinuz", "live/initrd.img", "boot=live components"),
        (
            "live/vmlinuz-6.1.0-13-amd64",
            "live/initrd.img-6.1.0-13-amd64",
            "boot=live components",
        ),
        ("casper/vmlinuz", "casper/initrd", "boot=casper"),
        ("boot/vmlinuz-virt", "boot/initramfs-virt", "modules=loop"),
        ("boot/vmlinuz-lts", "boot/initramfs-lts", "modules=loop"),
        ("install.amd/vmlinuz", "install.amd/initrd.gz", ""),
    ] {
        let files = [
            ("README", &b"something else"[..]),
            (kernel_at, &kernel),
            (initrd_at, &initrd),
        ];
        for options in [&["-r"][..], &["-r", "-J", "-iso-level", "3"]] {
            let iso = iso(folder.path(), &files, options);
            let out = run(&["run", "--iso", &iso, "--dry-run"]);
            assert_eq!(out.code(), 0, "{kernel_at} {options:?}: {out:?}");
            for words in [
                iso.as_str(),
                "ELF",
                &format!("{iso}:/{initrd_at}"),
                append,
                "vda",
                "ro",
            ] {
                assert!(out.stdout.contains(words), "no '{words}' in {out:?}");
            }
        }
    }
    let files = [("live/vmlinuz", &kernel[..]), ("live/initrd.img", &initrd)];
    let iso = iso(folder.path(), &files, &["-r"]);
    let both = run(&["run", guest::elf().to_str().unwrap(), "--iso", &iso]);
    assert_eq!(both.code(), 2, "{both:?}");
    assert!(both.stderr.contains("--cdrom"), "{both:?}");
}

#[track_caller]
fn refused(path: &str, words: &[&str]) {
    let out = run(&["run", "--iso", path, "--dry-run"]);
    assert_eq!(out.code(), 3, "{out:?}");
    assert_eq!(out.stderr.lines().count(), 2, "{out:?}");
    for word in words {
        assert!(out.stderr.contains(word), "no '{word}' in {out:?}");
    }
}

fn no_kernel() {
    let folder = tempfile::tempdir().unwrap();
    for files in [
        &[("music/song.flac", &b"la la"[..])][..],
        &[("live/vmlinuz", b"a kernel without its initrd")],
    ] {
        let iso = iso(folder.path(), files, &["-r"]);
        refused(&iso, &[&iso, "no kernel is found", "/casper", "--cdrom"]);
    }
    let files = [
        ("live/vmlinuz", &b"no kernel"[..]),
        ("live/initrd.img", b"x"),
    ];
    let iso = iso(folder.path(), &files, &["-r"]);
    refused(&iso, &["/live/vmlinuz"]);
}

fn no_iso() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.iso");
    let name = path.to_str().unwrap();
    for content in [&b"short"[..], &[0; 100_000], &[0xff; 100_000]] {
        std::fs::write(&path, content).unwrap();
        refused(name, &[name, "is not an ISO image"]);
    }
    refused("/nonexistent.iso", &["/nonexistent.iso"]);
    refused("/tmp", &["/tmp"]);

    // Cut anywhere, and bytes changed anywhere: an error or a machine, and never a panic.
    let kernel = std::fs::read(guest::elf()).unwrap();
    let files = [("live/vmlinuz", &kernel[..]), ("live/initrd.img", b"x")];
    let good = std::fs::read(iso(folder.path(), &files, &["-r", "-J"])).unwrap();
    let survives = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let out = run(&["run", "--iso", name, "--dry-run"]);
        assert!(matches!(out.code(), 0 | 2 | 3), "{out:?}");
    };
    for len in [32_768, 34_816, 36_864, 50_000, good.len() - 1] {
        survives(&good[..len]);
    }
    let mut random = 0x1357_9bdf_0246_8aceu64;
    for _ in 0..60 {
        let mut bad = good.clone();
        for _ in 0..20 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Descriptors and directories are in front.
            bad[0x8000 + (random % 0x10000) as usize] = (random >> 40) as u8;
        }
        survives(&bad);
    }
}
