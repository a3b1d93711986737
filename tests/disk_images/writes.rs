//! Writes to images whose tables are damaged: each image is refused, or it passes the check of
//! qemu-img afterwards and holds what it held, but where something was written.
//!
//! The damage is done to the tables of images of qemu-img, by a generator that starts from the same
//! number each time: a round can be had again by its number alone.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::mpsc;

use super::*;

const DISK: u64 = 3 << 20;
const PART: u64 = 16 << 10;

/// Images, as they are made: options of qemu-img, and what is done to them.
const BASES: [(&str, &[Step]); 11] = [
    ("cluster_size=64k", &[Step::Fill]),
    ("cluster_size=512", &[Step::Fill]),
    (
        "cluster_size=4k",
        &[Step::Fill, Step::Snapshot, Step::Write],
    ),
    (
        "cluster_size=64k",
        &[Step::Fill, Step::Snapshot, Step::Write],
    ),
    ("cluster_size=2M", &[Step::Fill, Step::Snapshot]),
    (
        "cluster_size=64k,compat=0.10",
        &[Step::Fill, Step::Snapshot],
    ),
    ("cluster_size=4k,refcount_bits=1", &[Step::Fill]),
    (
        "cluster_size=512,refcount_bits=64",
        &[Step::Fill, Step::Write],
    ),
    ("cluster_size=4k,preallocation=metadata", &[Step::Write]),
    (
        "cluster_size=4k",
        &[Step::Packed, Step::Snapshot, Step::Write],
    ),
    ("cluster_size=64k", &[Step::Fill, Step::Bitmap]),
];

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Fill,
    Packed,
    Snapshot,
    Write,
    Bitmap,
}

pub fn damaged() {
    let rounds = match std::env::var("BANTAM_SOAK") {
        Ok(_) => 5000,
        Err(_) => 330,
    };
    let folder = Folder::new();
    let bases: Vec<_> = BASES.iter().map(|base| make(&folder, base)).collect();
    // Undamaged, none may be refused, and the disk as it was at a snapshot stays so.
    for (bytes, (options, steps)) in bases.iter().zip(BASES) {
        std::fs::write(folder.path("damaged.qcow2"), bytes).unwrap();
        let before = steps.contains(&Step::Snapshot).then(|| snapshot(&folder));
        for resize in [false, true] {
            let outcome = round(&folder, bytes.clone(), 0, resize);
            // A snapshot of version 2 knows no length of its own.
            let refused = resize && options.contains("compat=0.10");
            assert_eq!(outcome.is_err(), refused, "{options}: {outcome:?}");
            if let Some(before) = &before {
                // QEMU shows it with the length of the disk as it is now.
                let now = snapshot(&folder);
                let same = now.starts_with(before);
                let longer = now.len() - before.len();
                assert!(same, "the snapshot of {options}, {longer} bytes longer");
            }
        }
    }
    let (mut refused, mut written) = (BTreeSet::new(), 0);
    for number in 0..rounds {
        let mut random = Random::new(number);
        let base = &bases[number as usize % bases.len()];
        let mut image = base.clone();
        let tables = tables(base);
        for _ in 0..1 + random.below(3) {
            damage(&mut image, &tables, &mut random);
        }
        match round(&folder, image, number, number % 7 == 3) {
            Ok(()) => written += 1,
            Err(why) => {
                let digits = |c: char| c.is_ascii_hexdigit();
                refused.insert(why.replace(digits, ""));
            }
        }
    }
    // Both must happen, or the test looks at nothing.
    assert!(
        written >= rounds / 50,
        "{written} of {rounds} were written to"
    );
    assert!(refused.len() >= 10, "{refused:?}");
}

/// The disk at the snapshot.
fn snapshot(folder: &Folder) -> Vec<u8> {
    let (image, plain) = (folder.word("damaged.qcow2"), folder.word("plain.raw"));
    let args = ["convert", "-f", "qcow2", "-O", "raw", "-l", "before"];
    qemu_img(&[&args[..], &[&image, &plain]].concat());
    std::fs::read(plain).unwrap()
}

/// Makes one of the images.
fn make(folder: &Folder, (options, steps): &(&str, &[Step])) -> Vec<u8> {
    let image = folder.word("base.qcow2");
    let plain = folder.word("plain.raw");
    std::fs::write(&plain, &content()[1 << 20..(1 << 20) + DISK as usize]).unwrap();
    let _ = std::fs::remove_file(&image);
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-o",
        options,
        &image,
        &DISK.to_string(),
    ]);
    for step in *steps {
        match step {
            Step::Fill => {
                let args = ["convert", "-n", "-f", "raw", "-O", "qcow2", &plain, &image];
                qemu_img(&args);
            }
            Step::Packed => {
                let args = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options];
                qemu_img(&[&args[..], &[&plain, &image]].concat());
            }
            Step::Snapshot => {
                qemu_img(&["snapshot", "-c", "before", &image]);
            }
            Step::Write => {
                for write in ["write -P 7 300k 200k", "write -z 1M 100k", "discard 2M 64k"] {
                    let out = try_qemu("qemu-io", &["-f", "qcow2", "-c", write, &image]);
                    assert!(out.status.success(), "{out:?}");
                }
            }
            Step::Bitmap => {
                qemu_img(&["bitmap", "--add", &image, "marks"]);
                let write = "write -P 9 1M 64k";
                let out = try_qemu("qemu-io", &["-f", "qcow2", "-c", write, &image]);
                assert!(out.status.success(), "{out:?}");
            }
        }
    }
    std::fs::read(&image).unwrap()
}

/// Writes to an image at random places; `Err` is why it was refused.
fn round(folder: &Folder, bytes: Vec<u8>, number: u64, resize: bool) -> Result<(), String> {
    let path = folder.path("damaged.qcow2");
    std::fs::write(&path, &bytes).unwrap();
    let (done, result) = mpsc::channel();
    let job = path.clone();
    let work = std::thread::spawn(move || {
        let outcome = match resize {
            true => resized(&job, number),
            false => written(&job, number),
        };
        let _ = done.send(outcome);
    });
    let outcome = match result.recv_timeout(Duration::from_secs(60)) {
        Ok(outcome) => outcome,
        // A panic, whose words are on standard error; or it has not ended.
        Err(_) => panic!("round {number} did not end: {}", work.is_finished()),
    };
    work.join().unwrap();
    let (before, changed) = match outcome {
        Ok(done) => done,
        Err(why) => {
            assert!(
                std::fs::read(&path).unwrap() == bytes,
                "round {number}: refused with '{why}', and changed"
            );
            return Err(why);
        }
    };
    let image = path.to_str().unwrap();
    let check = || try_qemu("qemu-img", &["check", "-f", "qcow2", image]);
    let out = when_free(check, |out| {
        String::from_utf8_lossy(&out.stderr).contains(" lock")
    });
    // 3: clusters that nobody uses, which the damage may have made.
    assert!(
        matches!(out.status.code(), Some(0 | 3)),
        "round {number}: {out:?}"
    );
    let after = read_parts(&path).expect("it was written to");
    for (at, old) in before {
        let (Some(old), Some(Some(new))) = (old, after.iter().find(|p| p.0 == at).map(|p| &p.1))
        else {
            continue;
        };
        for (offset, (old, new)) in (at..).zip(old.iter().zip(new)) {
            let was_written = changed.iter().any(|range| range.contains(&offset));
            assert!(old == new || was_written, "round {number}: byte {offset}");
        }
    }
    Ok(())
}

/// The disk in parts; `None` for one that cannot be read.
type Parts = Vec<(u64, Option<Vec<u8>>)>;
type Done = Result<(Parts, Vec<Range<u64>>), String>;

fn access(read_only: bool) -> Access {
    Access {
        format: Format::Qcow2,
        read_only,
        ..Access::default()
    }
}

fn read_parts(path: &Path) -> Result<Parts, String> {
    let opened = open_when_free(path, access(true)).map_err(|error| error.to_string())?;
    let guest = Small::new(&*opened.image);
    // A damaged length may be anything.
    let end = opened.image.len().min(2 * DISK);
    Ok((0..end)
        .step_by(PART as usize)
        .map(|at| (at, guest.read(at, PART.min(end - at))))
        .collect())
}

fn written(path: &Path, number: u64) -> Done {
    let before = read_parts(path);
    let opened = open_when_free(path, access(false)).map_err(|error| error.to_string())?;
    let before = before.expect("what can be written to can be read");
    let guest = Small::new(&*opened.image);
    let mut random = Random::new(!number);
    let end = opened.image.len().min(2 * DISK);
    let mut changed = Vec::new();
    for _ in 0..12 {
        let len = (512 * (1 + random.below(100))).min(end);
        let offset = random.below(end - len + 1) / 512 * 512;
        // What cannot be done is an error of the guest's, and may be half done.
        changed.push(offset..offset + len);
        match random.below(6) {
            0 => guest.run(Work::Discard { offset, len }, 0),
            1 => {
                let unmap = random.below(2) == 0;
                guest.run(Work::Zero { offset, len, unmap }, 0);
            }
            _ => {
                let durable = random.below(4) == 0;
                guest.run(Work::Write { offset, durable }, len);
            }
        }
    }
    guest.run(Work::Flush, 0);
    Ok((before, changed))
}

fn resized(path: &Path, number: u64) -> Done {
    let before = read_parts(path);
    let size = ["+1M", "+70G", "2M"][number as usize % 3];
    let words = ["image", "resize", "--shrink", path.to_str().unwrap(), size];
    let outcome = when_free(|| run(&words), |out| out.stderr.contains("is in use"));
    let code = outcome.code();
    assert!(matches!(code, 0 | 2 | 3), "round {number}: {outcome:?}");
    if code != 0 {
        assert_eq!(
            outcome.stderr.lines().count(),
            2,
            "round {number}: {outcome:?}"
        );
        return Err(outcome.stderr.lines().next().unwrap().into());
    }
    Ok((before.expect("what can be resized can be read"), Vec::new()))
}

/// Does it again while another test's new process still holds a lock of ours (see `open_when_free`).
fn when_free<T>(work: impl Fn() -> T, is_held: impl Fn(&T) -> bool) -> T {
    for _ in 0..1000 {
        let outcome = work();
        if !is_held(&outcome) {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    work()
}

/// A guest with little memory, for images of any length.
struct Small<'a> {
    image: &'a dyn Image,
    memory: Arc<GuestMemoryMmap>,
}

impl<'a> Small<'a> {
    fn new(image: &'a dyn Image) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 10)]).unwrap();
        let bytes: Vec<u8> = (0..64u32 << 10).map(|n| (n % 253) as u8 + 1).collect();
        memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        Small {
            image,
            memory: Arc::new(memory),
        }
    }

    fn run(&self, work: Work, len: u64) {
        let mut buffers = IoBuffers::new(self.memory.clone());
        assert!(len == 0 || buffers.push(GuestAddress(0), len as u32));
        let _ = self.image.run(work, &mut buffers);
    }

    fn read(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        let mut buffers = IoBuffers::new(self.memory.clone());
        assert!(buffers.push(GuestAddress(0), len as u32));
        self.image.run(Work::Read { offset }, &mut buffers).ok()?;
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        Some(bytes)
    }
}

/// Where the tables of an image are.
#[derive(Default)]
struct Found {
    cluster: u64,
    /// First bytes and lengths: header, refcount table, refcount blocks, L1, L2, snapshots.
    tables: Vec<Range<u64>>,
    /// Places of entries that are not zero.
    entries: Vec<u64>,
    /// The refcount blocks.
    blocks: Vec<u64>,
    /// Places of refcounts that are not zero, of 16 bits.
    refcounts: Vec<u64>,
}

fn be(image: &[u8], at: u64, len: usize) -> u64 {
    let bytes = image.get(at as usize..at as usize + len).unwrap_or(&[]);
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn tables(image: &[u8]) -> Found {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let cluster = 1 << be(image, 20, 4);
    let mut found = Found {
        cluster,
        ..Found::default()
    };
    found.tables.push(0..200);
    let table = |found: &mut Found, at: u64, entries: u64| -> Vec<u64> {
        found.tables.push(at..at + entries * 8);
        let places = (at..at + entries * 8).step_by(8);
        let used: Vec<_> = places.filter(|at| be(image, *at, 8) != 0).collect();
        found.entries.extend(&used);
        used.iter().map(|at| be(image, *at, 8) & OFFSET).collect()
    };
    let blocks = table(&mut found, be(image, 48, 8), be(image, 56, 4) * cluster / 8);
    found.blocks.clone_from(&blocks);
    for block in blocks {
        found.tables.push(block..block + cluster);
        let places = (block..block + cluster).step_by(2);
        found
            .refcounts
            .extend(places.filter(|at| be(image, *at, 2) != 0));
    }
    let mut l1 = vec![(be(image, 40, 8), be(image, 36, 4))];
    let mut next = be(image, 64, 8);
    for _ in 0..be(image, 60, 4) {
        l1.push((be(image, next, 8), be(image, next + 8, 4)));
        let len = 40 + be(image, next + 36, 4) + be(image, next + 12, 2) + be(image, next + 14, 2);
        found.tables.push(next..next + len);
        next += len.next_multiple_of(8);
    }
    for (at, entries) in l1 {
        for l2 in table(&mut found, at, entries) {
            table(&mut found, l2, cluster / 8);
        }
    }
    found
}

fn damage(image: &mut [u8], found: &Found, random: &mut Random) {
    let len = image.len() as u64;
    let put = |image: &mut [u8], at: u64, bytes: &[u8]| {
        if let Some(place) = image.get_mut(at as usize..at as usize + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    let entry = random.of(&found.entries);
    let flags = be(image, entry, 8) & 0xff00_0000_0000_0001;
    match random.below(11) {
        // Any byte of any table.
        0 | 1 => {
            let table = random.of(&found.tables);
            let at = table.start + random.below(table.end - table.start);
            let byte = random.below(256) as u8;
            put(image, at, &[byte]);
        }
        // A bit.
        2 => {
            let at = entry + random.below(8);
            let byte = be(image, at, 1) as u8 ^ 1 << random.below(8);
            put(image, at, &[byte]);
        }
        // An entry that names another cluster, one of a table, or one outside of the file.
        3 => {
            let other = be(image, random.of(&found.entries), 8);
            put(image, entry, &other.to_be_bytes());
        }
        4 => {
            let table = random.of(&found.tables).start / found.cluster * found.cluster;
            put(image, entry, &(table | flags).to_be_bytes());
        }
        5 => {
            let cluster = random.below(2 * len / found.cluster + 1) * found.cluster;
            put(image, entry, &(cluster | flags).to_be_bytes());
        }
        6 => put(image, entry, &[0; 8]),
        // A refcount.
        7 | 8 => {
            let at = random.of(&found.refcounts);
            let count = random.of(&[0u16, 0, 1, 2, 3, 0xffff]);
            put(image, at, &count.to_be_bytes());
        }
        // Two entries name one cluster, and its refcount and flags agree to that.
        9 => {
            let shared = be(image, random.of(&found.entries), 8) & !(1 << 63);
            for at in &found.entries {
                if be(image, *at, 8) & !(1 << 63) == shared {
                    put(image, *at, &shared.to_be_bytes());
                }
            }
            put(image, entry, &shared.to_be_bytes());
            let cluster = (shared & 0x00ff_ffff_ffff_fe00) / found.cluster;
            // Where refcounts have 16 bits; elsewhere this is one more damage.
            if let Some(block) = found.blocks.get((cluster * 2 / found.cluster) as usize) {
                let at = block + cluster * 2 % found.cluster;
                let count = be(image, at, 2) as u16;
                put(image, at, &count.wrapping_add(1).to_be_bytes());
            }
        }
        // A field of the header, by a little or altogether.
        _ => {
            let (at, len) = random.of(&[
                (8u64, 8u64),
                (16, 4),
                (20, 4),
                (24, 8),
                (36, 4),
                (40, 8),
                (48, 8),
                (56, 4),
                (60, 4),
                (64, 8),
                (72, 8),
                (80, 8),
                (88, 8),
                (96, 4),
                (100, 4),
                (104, 8),
                (112, 8),
            ]);
            let old = be(image, at, len as usize);
            let new = match random.below(3) {
                0 => old.wrapping_add(random.below(5)).wrapping_sub(2),
                1 => old ^ 1 << random.below(8 * len),
                _ => random.below(len << 30),
            };
            let new = new.to_be_bytes();
            put(image, at, &new[8 - len as usize..]);
        }
    }
}

/// Numbers that are the same for the same round.
struct Random(Numbers);

impl Random {
    fn new(seed: u64) -> Self {
        let seed = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut numbers = Numbers(seed);
        // The first ones of neighbouring seeds are alike.
        numbers.next();
        numbers.next();
        Random(numbers)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.0.next() >> 11) % end.max(1)
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }
}
