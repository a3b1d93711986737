//! What a flush has acknowledged is in the file, also when the VMM is killed at any moment.
//!
//! A guest writes blocks, flushes, and says on its console how far it is (`tests/guests/block.rs`,
//! `journal`). The VMM is killed at a random moment; then another program reads the image. `make
//! soak` does it 200 times for each kind of disk, `make test` a few times.

mod common;

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use common::trials::{exit_after, trial};
use common::{TempFile, bare, guest, run};

const BLOCK: usize = 4096;
const DISK_BYTES: u64 = 32 << 20;

fn main() {
    let missing = common::kvm().err();
    let runs = match std::env::var("BANTAM_SOAK") {
        Ok(_) => 200,
        Err(_) => 12,
    };
    let kinds = [
        ("raw", "raw", "", ""),
        ("raw_by_threads", "raw", ",io=threads", ""),
        (
            "raw_direct_with_an_io_thread",
            "raw",
            ",cache=direct,iothread",
            "",
        ),
        ("qcow2", "qcow2", "", "64k"),
        ("qcow2_with_an_io_thread", "qcow2", ",iothread", "64k"),
        // So small that a new table is needed all the time, and most kills come between two of its
        // writes.
        ("qcow2_of_small_clusters", "qcow2", "", "512"),
        (
            "qcow2_of_small_clusters_direct",
            "qcow2",
            ",cache=direct",
            "512",
        ),
    ];
    let trials = kinds.map(|(name, format, options, cluster)| {
        let name = format!("{name}_keeps_what_was_flushed");
        trial(name, missing.as_deref(), move || {
            let rounds = (0..runs).map(|round| once(format, options, cluster, round));
            let acknowledged: u64 = rounds.sum();
            assert!(acknowledged > 0, "nothing has ever been flushed");
        })
    });
    exit_after(trials.into());
}

/// Kills a machine once, and looks at its disk; how many flushes were acknowledged before.
fn once(format: &str, options: &str, cluster: &str, round: u32) -> u64 {
    let file = TempFile::on_disk(&format!("disk.{format}"));
    let (image, path) = (file.path(), file.str());
    let bytes = DISK_BYTES.to_string();
    let mut words = vec!["image", "create", "-f", format, path, &bytes];
    if !cluster.is_empty() {
        words.extend(["--cluster-size", cluster]);
    }
    let made = run(&words);
    assert_eq!(made.code(), 0, "{made:?}");

    let disk = format!("{path},format={format}{options}");
    let mut vmm = bare::command("journal", &["--disk", &disk])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = vmm.stdout.take().unwrap();
    // The first word says that the guest is at work; from then on any moment will do.
    let mut said = vec![0; 64];
    let first = stdout.read(&mut said).unwrap();
    assert!(first > 0, "no output; see {:?}", vmm.wait_with_output());
    said.truncate(first);
    std::thread::sleep(Duration::from_micros(random() % 60_000));
    let ended = vmm.try_wait().unwrap();
    assert_eq!(ended, None, "round {round}: it has ended by itself");
    vmm.kill().unwrap();
    stdout.read_to_end(&mut said).unwrap();
    vmm.wait().unwrap();
    // The lock has gone with the process.
    let kernel = guest::elf().to_str().unwrap();
    let again = run(&["run", kernel, "--dry-run", "--disk", &disk]);
    assert_eq!(again.code(), 0, "{again:?}");
    if format == "qcow2" {
        // Opened for writing: what the kill has left uncounted is counted, before QEMU looks.
        let opened = run(&["image", "resize", path, &bytes]);
        assert_eq!(opened.code(), 0, "{opened:?}");
    }
    let said = String::from_utf8(said).unwrap();
    assert!(!said.contains("WRONG"), "round {round}: {said}");
    // Only whole lines count: the last may be cut.
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    let acknowledged: u64 = whole.lines().last().map_or(0, |n| n.parse().unwrap());

    let plain = plain(image, format);
    let bytes = std::fs::read(&plain).unwrap();
    let mut latest = HashMap::new();
    let place = |n: u64| n.wrapping_mul(7919) % (DISK_BYTES / BLOCK as u64);
    for n in 1..=acknowledged {
        latest.insert(place(n), n);
    }
    for (block, n) in latest {
        let at = block as usize * BLOCK;
        let words = bytes[at..at + BLOCK].chunks_exact(8);
        let mut words = words.map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        // Written again, but not acknowledged: such a block may be of both.
        let ok = |word: u64| word == n || (word > acknowledged && place(word) == block);
        assert!(
            words.all(ok),
            "round {round}: block {block} was flushed as {n} of {acknowledged}"
        );
    }
    acknowledged
}

/// The disk as a raw file, made by somebody else.
fn plain(image: &Path, format: &str) -> PathBuf {
    if format == "raw" {
        return image.to_owned();
    }
    let qemu_img = |args: &[&str]| {
        let out = Command::new("qemu-img").args(args).output();
        out.expect("qemu-img (package qemu-utils) is there after `make setup`")
    };
    // 3: clusters that nobody uses, which a kill may leave; 2 would be a damaged image.
    let check = qemu_img(&["check", "-f", "qcow2", image.to_str().unwrap()]);
    let code = check.status.code();
    assert!(matches!(code, Some(0 | 3)), "{check:?}");
    let plain = image.with_extension("plain");
    let args = ["convert", "-f", "qcow2", "-O", "raw"];
    let names = [image.to_str().unwrap(), plain.to_str().unwrap()];
    let out = qemu_img(&[&args[..], &names].concat());
    assert!(out.status.success(), "{out:?}");
    plain
}

fn random() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::from(now.unwrap().subsec_nanos()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}
