//! Kernels and initrds that are none, or damaged, or do not fit.

use std::fs::{self, File};

use crate::common::{self, TempFile, bantam, guest, run, run_with};
use crate::{START, USAGE, kernel, refused};

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
    kernel_refused("initrd.gz", b"\x1f\x8b\x08\0", &["gzip", "--initrd"]);
    for (program, name) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        if !common::has_program(program) {
            continue;
        }
        let initrd = TempFile::new("initrd", b"070701000000000000");
        let packed = std::process::Command::new(program)
            .args(["-c", initrd.str()])
            .output();
        let name = format!("initrd.{name}");
        kernel_refused(
            &name,
            &packed.unwrap().stdout,
            &["an initramfs", "--initrd"],
        );
    }
    let at = |offset: usize, magic: &[u8]| {
        let mut bytes = vec![1; 0x9000];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        bytes
    };
    kernel_refused(
        "live.iso",
        &at(0x8001, b"CD001"),
        &["an ISO image", "use --iso"],
    );
    kernel_refused("a.tar", &at(257, b"ustar"), &["a tar archive", "unpack"]);
    kernel_refused("root.ext4", &at(0x438, b"\x53\xef"), &["ext4", "--disk"]);
    kernel_refused(
        "disk.img",
        &at(0x1fe, b"\x55\xaa"),
        &["disk image", "--disk"],
    );
    kernel_refused(
        "a.vdi",
        &at(0x40, b"\x7f\x10\xda\xbe"),
        &["a VDI", "--disk"],
    );
    kernel_refused("a.vmdk", b"KDMV", &["a VMDK", "--disk"]);
    kernel_refused("a.zip", b"PK\x03\x04", &["a zip archive", "unpack"]);
    kernel_refused("a.html", b"<!DOCTYPE html>", &["a web page", "download"]);
    let mut arm = vec![0; 64];
    arm[..2].copy_from_slice(b"MZ");
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    kernel_refused("Image", &arm, &["arm64 Image", "x86_64"]);
}

/// Names of things that are somewhere else.
#[test]
fn containers_and_addresses() {
    for name in [
        "debian:12",
        "alpine",
        "docker.io/library/alpine",
        "ghcr.io/a/b:1",
    ] {
        let container = [name, "a container image"];
        refused(
            &run(&["run", name]),
            USAGE,
            &[&container[..], &["a kernel"]].concat(),
        );
        refused(&run(&["inspect", name]), USAGE, &container);
        refused(
            &run(&["run", kernel(), "--initrd", name]),
            USAGE,
            &container,
        );
        let disk = run(&["run", kernel(), "--disk", name]);
        refused(&disk, USAGE, &[&container[..], &["a disk image"]].concat());
        refused(
            &run(&["run", "--iso", name]),
            USAGE,
            &[&container[..], &["an ISO"]].concat(),
        );
    }
    let url = "https://example.org/a/vmlinuz-6.1";
    let words = [url, "an address", "curl -LO", "'vmlinuz-6.1'"];
    refused(&run(&["run", url]), USAGE, &words);
    refused(&run(&["run", kernel(), "--disk", url]), USAGE, &words);
    let config = TempFile::new("vm.toml", format!("\niso = '{url}'").as_bytes());
    let outcome = run(&["run", "--config", config.str()]);
    refused(
        &outcome,
        USAGE,
        &["vm.toml, line 2, column 7", url, "an address"],
    );
    // A file that has such a name is a file.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(kernel(), folder.path().join("debian:12")).unwrap();
    let mut command = std::process::Command::new(bantam());
    command
        .args(["run", "debian:12", "--dry-run"])
        .current_dir(folder.path());
    let outcome = run_with(command, b"", std::time::Duration::from_secs(30));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
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

/// Where the last byte that is loaded ends in the file; symbols may follow.
fn end_of_segments(elf: &[u8]) -> usize {
    let number = |at: usize, len: usize| {
        let bytes = &elf[at..at + len];
        bytes
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | usize::from(*byte))
    };
    let (table, entry, count) = (number(32, 8), number(54, 2), number(56, 2));
    let ends = (0..count).map(|n| table + n * entry).map(|at| {
        let loaded = number(at, 4) == 1;
        if loaded {
            number(at + 8, 8) + number(at + 32, 8)
        } else {
            0
        }
    });
    ends.max().unwrap()
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
        end_of_segments(&elf) - 1,
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
    let old = &["boot protocol 2.01", "2.02 or newer"];
    kernel_refused("old", &with(0x206, &[1, 2]), old);
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
    let bzimage = guest::bzimage(true);
    let elf = fs::read(guest::elf()).unwrap();
    for (name, content, words) in [
        ("vmlinuz", &bzimage[..], ["a kernel", "--initrd INITRD"]),
        ("vmlinux", &elf, ["an ELF file", "--initrd INITRD"]),
        (
            "a.qcow2",
            b"QFI\xfb\0\0\0\x03",
            ["a qcow2 disk image", "--disk"],
        ),
        ("a.sh", b"#!/bin/sh\n", ["a script", "initrd.img"]),
        (
            "a.deb",
            b"!<arch>\ndebian-binary",
            ["a Debian package", "initrd.img"],
        ),
        ("a.zip", b"PK\x03\x04", ["a zip archive", "initrd.img"]),
        ("a.html", b"<!DOCTYPE html>", ["a web page", "initrd.img"]),
    ] {
        let file = TempFile::new(name, content);
        refused(
            &with(file.str()),
            START,
            &[&[file.str()], &words[..]].concat(),
        );
    }
    // What the kernel can read is not in the way.
    for content in [
        &b"07070100"[..],
        b"\x1f\x8b\x08",
        b"\xfd7zXZ\0",
        b"hsqs",
        b"anything",
        &[0; 600],
    ] {
        let file = TempFile::new("initrd", content);
        assert_eq!(with(file.str()).code(), 0, "{content:?}");
    }
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
