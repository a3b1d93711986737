//! The overlay against a copy of the disk in memory, and with files that fail.

use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;

/// Not a multiple of a grain.
const LEN: usize = 37 * 4096 + 3 * 512;

fn content() -> Vec<u8> {
    (0..LEN).map(|at| (at / 7 % 251) as u8 + 1).collect()
}

/// An overlay, its two files, and memory for requests.
struct Rig {
    overlay: Arc<Overlay>,
    base: File,
    top: File,
    memory: Arc<GuestMemoryMmap>,
}

impl Rig {
    fn new() -> Rig {
        let top = tempfile::tempfile().unwrap();
        top.set_len(LEN as u64).unwrap();
        Rig::with_top(top)
    }

    fn with_top(top: File) -> Rig {
        let base = tempfile::tempfile().unwrap();
        base.write_all_at(&content(), 0).unwrap();
        let raw = Raw::new(base.try_clone().unwrap(), LEN as u64, CacheMode::Writeback);
        let overlay = Overlay::of(
            Arc::new(raw.unwrap()),
            Grains::new(LEN as u64).unwrap(),
            top.try_clone().unwrap(),
            LEN as u64,
            ("disk.raw".into(), "/folder".into()),
        );
        let ranges = [(GuestAddress(0), LEN.next_multiple_of(4096))];
        Rig {
            overlay: Arc::new(overlay.unwrap()),
            base,
            top,
            memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()),
        }
    }

    /// Memory at the same offsets, in two pieces.
    fn buffers(&self, offset: usize, len: usize) -> IoBuffers {
        let mut buffers = IoBuffers::new(self.memory.clone());
        let first = len / 3;
        assert!(buffers.push(GuestAddress(offset as u64), first as u32));
        let rest = GuestAddress((offset + first) as u64);
        assert!(buffers.push(rest, (len - first) as u32));
        buffers
    }

    fn read(&self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        // What was written from there must not pass for what was read.
        let at = GuestAddress(offset as u64);
        self.memory.write_slice(&vec![0xee; len], at).unwrap();
        let work = Work::Read {
            offset: offset as u64,
        };
        self.overlay.run(work, &mut self.buffers(offset, len))?;
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, at).unwrap();
        Ok(bytes)
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let at = GuestAddress(offset as u64);
        self.memory.write_slice(bytes, at).unwrap();
        let work = Work::Write {
            offset: offset as u64,
            durable: offset.is_multiple_of(2),
        };
        let mut buffers = self.buffers(offset, bytes.len());
        self.overlay.run(work, &mut buffers)
    }

    fn run(&self, work: Work) -> io::Result<()> {
        self.overlay
            .run(work, &mut IoBuffers::new(self.memory.clone()))
    }

    fn zero(&self, offset: usize, len: usize, unmap: bool) -> io::Result<()> {
        self.run(Work::Zero {
            offset: offset as u64,
            len: len as u64,
            unmap,
        })
    }
}

/// A stretch of the disk: anything, or what drivers ask for.
fn stretch() -> impl Strategy<Value = (usize, usize)> {
    let of = |unit: usize, most: usize| {
        (0..LEN / unit, 1..most).prop_map(move |(at, len)| {
            let offset = at * unit;
            (offset, (len * unit).min(LEN - offset))
        })
    };
    prop_oneof![of(1, 20_000), of(512, 40), of(4096, 12)]
}

proptest! {
    #[test]
    fn whatever_is_done_it_is_a_disk_and_its_base_is_not_touched(
        steps in proptest::collection::vec((0u8..6, stretch(), any::<u8>()), 1..60),
    ) {
        let disk = Rig::new();
        let mut model = content();
        for (kind, (offset, len), byte) in steps {
            let part = offset..offset + len;
            match kind {
                0 | 1 => {
                    model[part.clone()].fill(byte);
                    disk.write(offset, &vec![byte; len]).unwrap();
                }
                2 => {
                    model[part.clone()].fill(0);
                    disk.zero(offset, len, byte > 127).unwrap();
                }
                3 => {
                    let work = Work::Discard { offset: offset as u64, len: len as u64 };
                    disk.run(work).unwrap();
                    let left = disk.read(offset, len).unwrap();
                    // A hint (virtio 1.2, 5.2.6.2): the content may stay.
                    for (now, before) in left.iter().zip(&model[part.clone()]) {
                        prop_assert!(now == before || *now == 0);
                    }
                    model[part.clone()].copy_from_slice(&left);
                }
                4 => disk.run(Work::Flush).unwrap(),
                _ => {}
            }
            prop_assert!(disk.read(offset, len).unwrap() == model[part], "step of kind {}", kind);
        }
        prop_assert!(disk.read(0, LEN).unwrap() == model);
        let mut base = vec![0; LEN];
        disk.base.read_exact_at(&mut base, 0).unwrap();
        prop_assert!(base == content());
        let top = disk.top.metadata().unwrap();
        prop_assert!(top.len() == LEN as u64, "the top is never longer than the disk");
    }
}

#[test]
fn many_at_once_in_the_same_grains_lose_nothing() {
    let disk = Arc::new(Rig::new());
    // Each thread has its own sectors; each grain has sectors of all threads, and of none.
    let threads: Vec<_> = (0..4)
        .map(|thread: usize| {
            let disk = disk.clone();
            std::thread::spawn(move || {
                for sector in (thread..LEN / 512).step_by(5) {
                    let bytes = [thread as u8 + 200; 512];
                    match sector % 3 {
                        0 => disk.zero(sector * 512, 512, false).unwrap(),
                        _ => disk.write(sector * 512, &bytes).unwrap(),
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let found = disk.read(0, LEN).unwrap();
    let before = content();
    for sector in 0..LEN / 512 {
        let part = sector * 512..(sector + 1) * 512;
        match sector % 5 {
            4 => assert!(found[part.clone()] == before[part], "{sector}: untouched"),
            _ if sector % 3 == 0 => assert!(found[part].iter().all(|b| *b == 0), "{sector}"),
            thread => {
                let byte = thread as u8 + 200;
                assert!(found[part].iter().all(|b| *b == byte), "{sector}");
            }
        }
    }
}

#[test]
fn places_are_told_and_whole_grains_need_nothing_from_the_base() {
    let disk = Rig::new();
    let overlay = &disk.overlay;
    assert_eq!(overlay.place(0, LEN as u64), Place::Base);
    let whole = |offset, len| overlay.write_whole(offset as u64, &mut disk.buffers(offset, len));
    assert!(whole(512, 4096).is_none());
    assert!(whole(4096, 4608).is_none());
    assert!(whole(4096, 8192).unwrap().is_ok());
    assert_eq!(overlay.place(4096, 8192), Place::Top);
    assert_eq!(overlay.place(0, 8192), Place::Both);
    assert_eq!(overlay.place(8192, 8192), Place::Both);
    // The last grain is whole where the disk ends.
    assert!(whole(37 * 4096, 3 * 512).unwrap().is_ok());
    // Somebody is at work on it: not here.
    let claim = overlay.grains.claim(20..21);
    assert!(whole(20 * 4096, 4096).is_none());
    drop(claim);
    assert!(whole(20 * 4096, 4096).unwrap().is_ok());
}

#[test]
fn zeros_and_discards_give_the_tops_space_back() {
    let disk = Rig::new();
    disk.write(0, &vec![1; 32 * 4096]).unwrap();
    disk.top.sync_all().unwrap();
    let blocks = |disk: &Rig| disk.top.metadata().unwrap().blocks();
    let full = blocks(&disk);
    disk.zero(0, 16 * 4096, false).unwrap();
    let (offset, len) = (16 * 4096, 8 * 4096);
    disk.run(Work::Discard { offset, len }).unwrap();
    assert!(blocks(&disk) + 24 * 8 <= full, "{full} {}", blocks(&disk));
}

#[test]
fn a_full_top_is_an_error_that_names_disk_and_folder_and_reads_go_on() {
    let full = File::options().read(true).write(true).open("/dev/full");
    let disk = Rig::with_top(full.unwrap());
    for _ in 0..3 {
        let error = disk.write(4096, &[9; 4096]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let text = error.to_string();
        assert!(
            text.contains("disk.raw") && text.contains("/folder"),
            "{text}"
        );
        assert!(disk.write(100, &[9; 10]).is_err(), "nor is a part written");
    }
    // What could not be written is what it was, and nobody waits for a claim that has gone.
    assert!(disk.read(0, LEN).unwrap() == content());
}

#[test]
fn a_base_that_fails_fails_only_what_needs_it() {
    let disk = Rig::new();
    disk.base.set_len(4 * 4096).unwrap();
    assert!(disk.read(0, 4 * 4096).is_ok());
    assert!(disk.read(4 * 4096, 512).is_err());
    assert!(disk.read(3 * 4096, 8192).is_err(), "nor what is half there");
    let part = disk.write(6 * 4096 + 512, &[7; 512]);
    assert!(part.is_err(), "the rest of the grain is not to be had");
    disk.write(6 * 4096, &[7; 4096]).unwrap();
    disk.write(6 * 4096 + 512, &[8; 512]).unwrap();
    disk.zero(8 * 4096, 4096, true).unwrap();
    let found = disk.read(6 * 4096, 4096).unwrap();
    assert!(found[..512].iter().all(|b| *b == 7) && found[512..1024].iter().all(|b| *b == 8));
    assert!(disk.read(8 * 4096, 4096).unwrap().iter().all(|b| *b == 0));
}
