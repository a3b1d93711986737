//! Guests that ask for as much at a time as they can, against README's bound of what the program takes beside
//! their RAM.
//!
//! Guest RAM is in a memfd here, so that the host tells it apart from everything else in the process.

mod common;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bantam::machine::footprint::{CLUSTER_BYTES, DiskShape, Kind, machine};
use common::trials::{each, exit_after};
use common::{Outcome, TempFile, bantam, bare, guest};

/// Kind of image, words behind its path, number of disks, and queues of each.
type Case = (Image, &'static str, usize, u16);

#[derive(Clone, Copy, PartialEq)]
enum Image {
    Raw,
    Qcow2,
}

/// Bytes of a raw image, which is sparse.
const RAW_BYTES: u64 = 4 << 30;

fn main() {
    let missing = common::kvm().err();
    let missing = missing.as_deref();
    let cases: [(&str, Case); 13] = [
        ("a_raw_disk", (Image::Raw, "", 1, 1)),
        ("a_raw_disk_of_16_queues", (Image::Raw, "", 1, 16)),
        ("a_raw_disk_with_threads", (Image::Raw, ",io=threads", 1, 4)),
        ("direct_io", (Image::Raw, ",cache=direct", 1, 1)),
        (
            "direct_io_of_16_queues",
            (Image::Raw, ",cache=direct", 1, 16),
        ),
        (
            "direct_io_with_threads",
            (Image::Raw, ",cache=direct,io=threads", 1, 4),
        ),
        (
            "direct_io_of_threads_of_their_own",
            (Image::Raw, ",cache=direct,iothread", 1, 4),
        ),
        ("sixteen_disks", (Image::Raw, ",cache=direct", 16, 1)),
        ("a_snapshot", (Image::Raw, ",snapshot", 1, 4)),
        (
            "a_snapshot_of_direct_io",
            (Image::Raw, ",snapshot,cache=direct", 1, 4),
        ),
        ("qcow2", (Image::Qcow2, "", 1, 1)),
        ("qcow2_of_4_queues", (Image::Qcow2, "", 1, 4)),
        (
            "qcow2_with_direct_io",
            (Image::Qcow2, ",cache=direct", 1, 4),
        ),
    ];
    let name = "no_guest_makes_the_program_take_more_than_readme_says_by";
    let mut trials = each(name, cases, missing, disks);
    trials.extend(each(
        name,
        [
            ("small_devices", "stdio"),
            ("small_devices_and_hvc", "virtio"),
        ],
        missing,
        small,
    ));
    exit_after(trials);
}

/// Bytes that the process has in memory: not its program files, and not the guest's RAM.
fn own_bytes(pid: u32) -> Option<u64> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut total, mut counts) = (0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next()? {
            "Rss:" if counts => total += words.next()?.parse::<u64>().ok()? << 10,
            first if first.contains('-') && !first.ends_with(':') => {
                // Addresses, rights, offset, device, inode, and the name if there is one.
                counts = words.nth(4).is_none_or(|name| !name.starts_with('/'));
            }
            _ => {}
        }
    }
    // A process that has ended has no mappings.
    (total > 0).then_some(total)
}

/// Runs a machine to its end; how it ended, and the most that it has taken of its own.
fn most_of(mut command: Command) -> (Outcome, u64) {
    let named = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{named}: {error}"));
    let most = watch(&mut child, &named);
    (common::end_of(child, &named), most)
}

fn watch(child: &mut Child, named: &str) -> u64 {
    let end = Instant::now() + Duration::from_secs(400);
    let (mut most, mut looks) = (0, 0);
    while child.try_wait().unwrap().is_none() {
        if let Some(bytes) = own_bytes(child.id()) {
            most = most.max(bytes);
            looks += 1;
        }
        if Instant::now() > end {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(looks > 3, "{named}: it was not seen at work");
    most
}

fn guest_with(wish: &str, cpus: u16, more: &[String]) -> Command {
    let mut command = Command::new(bantam());
    command
        .args(["run", guest::elf().to_str().unwrap()])
        .args(["--append", &format!("do={wish}")])
        .args(["--memory", "64M", "--memory-backing", "shared"])
        .args(["--time-limit", "300s", "--cpus", &cpus.to_string()])
        .args(more);
    command
}

#[track_caller]
fn within(outcome: &Outcome, most: u64, bound: u64) {
    println!("{} of {} KiB", most >> 10, bound >> 10);
    assert!(
        most <= bound,
        "{} KiB are more than {} KiB: {outcome:?}",
        most >> 10,
        bound >> 10
    );
}

fn disks((image, words, count, queues): Case) {
    let files: Vec<TempFile> = (0..count).map(|_| disk_file(image)).collect();
    let more: Vec<String> = files
        .iter()
        .map(|file| {
            let format = match image {
                Image::Raw => "raw",
                Image::Qcow2 => "qcow2",
            };
            format!(
                "--disk={},format={format}{words},queues={queues}",
                file.str()
            )
        })
        .collect();
    let (outcome, most) = most_of(guest_with("greed", queues, &more));
    bare::all_ok(&outcome, 9);
    let shape = DiskShape {
        queues,
        direct: words.contains("direct"),
        kind: match image {
            Image::Qcow2 => Kind::Qcow2 {
                images: 1,
                cluster: CLUSTER_BYTES,
            },
            Image::Raw if words.contains("snapshot") => Kind::Snapshot(RAW_BYTES),
            Image::Raw if words.contains("threads") => Kind::Threads,
            Image::Raw => Kind::Raw,
        },
    };
    within(&outcome, most, machine(queues.into(), &vec![shape; count]));
}

fn disk_file(image: Image) -> TempFile {
    let file = TempFile::on_disk("disk");
    match image {
        Image::Raw => raw(file.path()),
        Image::Qcow2 => {
            let made = common::run(&["image", "create", "--format", "qcow2", file.str(), "1T"]);
            assert_eq!(made.code(), 0, "{made:?}");
        }
    }
    file
}

fn raw(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(RAW_BYTES).unwrap();
}

fn small(console: &'static str) {
    let more = ["--rng", "--reclaim"].map(str::to_owned);
    let more = [&more[..], &[format!("--console={console}")]].concat();
    let (outcome, most) = most_of(guest_with("greed-small", 1, &more));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    within(&outcome, most, machine(1, &[]));
}
