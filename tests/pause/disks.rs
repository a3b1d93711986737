//! Disks under load in the middle of pauses: the guest looks at everything that it reads, and the image is
//! compared with what it has written.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bantam::machine::host::{Backend, backend};

use super::common::run;
use super::{pause, piped, random, resume};

const BLOCK: usize = 4096;
const DISK_BYTES: u64 = 16 << 20;
/// Of each kind of disk. `make soak` gives each of them twenty times as many.
const PAUSES: u64 = 200;

fn scratch(extension: &str) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("pause-{}-{number}.{extension}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

/// Pauses a guest that has eight requests in flight, at random moments for random times. It looks at
/// everything it reads; and another program looks at the image.
pub fn paused(format: &str, options: &str, cpus: &str) {
    let pauses = match std::env::var("BANTAM_SOAK") {
        Ok(_) => PAUSES * 20,
        Err(_) => PAUSES,
    };
    let image = scratch(format);
    let path = image.to_str().unwrap();
    let made = run(&[
        "image",
        "create",
        "-f",
        format,
        path,
        &DISK_BYTES.to_string(),
    ]);
    assert_eq!(made.code(), 0, "{made:?}");
    let disk = format!("{path},format={format}{options}");
    let ring = match backend() {
        Backend::Pvm => "",
        _ => " ring=iret",
    };
    let append = format!("do=churn{ring}");
    let args = [
        "--append",
        &append,
        "--disk",
        &disk,
        "--cpus",
        cpus,
        "--time-limit",
        "900s",
    ];
    let mut machine = piped(&args, |_| {});
    machine.expect("at work\n");
    let start = Instant::now();
    let mut sent = 0;
    while machine.paused.load(Ordering::SeqCst) < pauses {
        assert!(
            start.elapsed() < Duration::from_secs(120) + Duration::from_millis(100) * pauses as u32,
            "{sent} signals were {} pauses",
            machine.paused.load(Ordering::SeqCst)
        );
        let before = machine.paused.load(Ordering::SeqCst);
        pause(&machine.child);
        let patience = Instant::now() + Duration::from_millis(50);
        sleep(Duration::from_micros(random(2000)));
        // Every other pause may be taken back before all vCPUs have parked. The others are reached, also where
        // there are more vCPUs than processors.
        while sent % 2 == 0
            && machine.paused.load(Ordering::SeqCst) == before
            && Instant::now() < patience
        {
            sleep(Duration::from_micros(100));
        }
        resume(&machine.child);
        sleep(Duration::from_micros(random(2000)));
        sent += 1;
    }
    let took = start.elapsed();
    machine.type_in(b"q");
    let paused = machine.paused.clone();
    let (code, said) = machine.finish();
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("WRONG"), "{said}");
    assert!(said.contains("ok all of the disk"), "{said}");
    let numbers = |name: &str| -> Vec<u64> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(name));
        lines.map(|number| number.parse().unwrap()).collect()
    };
    let writes = numbers("writes ")[0];
    let rounds = numbers("vcpu rounds ");
    println!(
        "{format}{options}, {cpus} vCPUs: {} pauses in {took:.1?}, {writes} writes and as many reads; rounds of the others {rounds:?}",
        paused.load(Ordering::SeqCst)
    );
    assert!(writes > 0, "it got nowhere between the pauses");
    assert_eq!(rounds.len() + 1, cpus.parse::<usize>().unwrap(), "{said}");
    assert!(rounds.iter().all(|rounds| *rounds > 0), "{said}");
    image_is_what_was_written(&image, format, writes);
    std::fs::remove_file(image).unwrap();
}

/// The same sequence as in `tests/guests/pause.rs`.
fn image_is_what_was_written(image: &Path, format: &str, writes: u64) {
    let raw = scratch("plain");
    let (from, to) = (image.to_str().unwrap(), raw.to_str().unwrap());
    let out = run(&["image", "convert", "-f", format, "-O", "raw", from, to]);
    assert_eq!(out.code(), 0, "{out:?}");
    let bytes = std::fs::read(&raw).unwrap();
    assert_eq!(bytes.len() as u64, DISK_BYTES);
    let blocks = DISK_BYTES / BLOCK as u64;
    let latest: HashMap<u64, u64> = (1..=writes)
        .map(|n| (n.wrapping_mul(7919) % blocks, n))
        .collect();
    for (block, content) in (0..).zip(bytes.chunks_exact(BLOCK)) {
        for (word, found) in (0..).zip(content.chunks_exact(8)) {
            let found = u64::from_le_bytes(found.try_into().unwrap());
            let wanted = latest.get(&block).map_or(0, |n| n << 16 | word);
            assert_eq!(found, wanted, "word {word} of block {block}");
        }
    }
    std::fs::remove_file(raw).unwrap();
}
