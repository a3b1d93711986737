//! Every engine over every kind of image, many jobs at once, against a copy in memory.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bantam::memory::BouncePool;
use bantam::storage::Format;
use bantam::storage::engine::{Layered, Uring, check_uring, start};
use bantam::storage::open;
use bantam::storage::qcow2::manage;
use bantam::storage::{Access, CacheMode, Engine, Image, IoBuffers, IoMode, Job, Overlay, Work};
use common::Numbers;
use common::trials::{exit_after, trial};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

fn main() {
    let no_uring = check_uring().err().map(|why| format!("no io_uring: {why}"));
    let tests: [(&str, fn(), bool); 10] = [
        ("threads_do_raw_images", threads_do_raw_images, false),
        ("uring_does_raw_images", uring_does_raw_images, true),
        ("threads_do_direct_io", threads_do_direct_io, false),
        ("uring_does_direct_io", uring_does_direct_io, true),
        ("threads_do_qcow2_images", threads_do_qcow2_images, false),
        ("threads_do_overlays", threads_do_overlays, false),
        ("uring_does_overlays", uring_does_overlays, true),
        (
            "uring_does_overlays_of_direct_io",
            uring_does_overlays_of_direct_io,
            true,
        ),
        (
            "uring_does_overlays_of_qcow2_images",
            uring_does_overlays_of_qcow2_images,
            true,
        ),
        ("a_drain_ends_everything", a_drain_ends_everything, false),
    ];
    let trials = tests.map(|(name, test, needs_uring)| {
        trial(name, no_uring.as_deref().filter(|_| needs_uring), test)
    });
    exit_after(trials.into());
}

const LEN: u64 = 4 << 20;
const SLOTS: u16 = 32;
/// Guest memory of one job.
const ROOM: u64 = 256 << 10;

/// What a job was to do, and the bytes that it wrote or has to find.
struct Expected {
    offset: u64,
    len: u64,
    read: Option<Vec<u8>>,
}

/// Waits as the event loop does: for the event fd, and only after `rearm` has said that nothing
/// has ended yet.
fn wait(engine: &mut dyn Engine, event: &EventFd) {
    if engine.rearm() {
        return;
    }
    let mut poll = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(event),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, valid for the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 20_000) };
    assert_eq!(ready, 1, "no end was told of within 20 s");
    let _ = event.read();
}

fn exercise(path: &Path, access: Access, mode: IoMode, seed: u64) {
    let opened = open::open(path, access).unwrap();
    let disk = exercise_image(&opened.image, vec![0; LEN as usize], mode, seed);
    drop(opened);
    compare(path, access.format, &disk);
}

/// Does many jobs on `image`, which has `disk` as its content, and returns what it should have after
/// them.
fn exercise_image(image: &Arc<dyn Image>, mut disk: Vec<u8>, mode: IoMode, seed: u64) -> Vec<u8> {
    assert_eq!(image.len(), LEN);
    let alignment = u64::from(image.alignment()).max(512);
    let ram = u64::from(SLOTS) * ROOM;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), ram as usize)]).unwrap();
    let memory = Arc::new(memory);
    let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    // Not by threads instead.
    let mut engine: Box<dyn Engine> = match (mode, image.clone().layers()) {
        (IoMode::Uring, Some(overlay)) => {
            Box::new(Layered::new(overlay, SLOTS, 16, &event).unwrap())
        }
        (IoMode::Uring, None) => Box::new(Uring::new(image.clone(), SLOTS, &event).unwrap()),
        _ => start(image, mode, SLOTS, 16, &event),
    };
    let mut numbers = Numbers(seed);
    let mut running: HashMap<u16, Expected> = HashMap::new();
    // For direct I/O; the longest requests have more bytes than a chunk.
    let chunks = BouncePool::new(SLOTS.into()).unwrap();
    let (mut begun, mut ended) = (0, 0);
    while ended < 1500 {
        while begun < 1500 && running.len() < usize::from(SLOTS) {
            let token = (0..SLOTS).find(|t| !running.contains_key(t)).unwrap();
            // Often whole pages.
            let unit = match numbers.below(3) {
                0 => 4096,
                _ => alignment,
            };
            let len = (1 + numbers.below(40)) * unit;
            let len = len.min(ROOM - 4096);
            let len = len - len % unit;
            let offset = numbers.below((LEN - len) / unit) * unit;
            let kind = numbers.below(10);
            // Jobs that touch the same bytes have no order among them.
            if running
                .values()
                .any(|r| offset < r.offset + r.len && r.offset < offset + len)
            {
                break;
            }
            let at = u64::from(token) * ROOM + numbers.below(2) * 7;
            let mut buffers = IoBuffers::new(memory.clone());
            let span = offset as usize..(offset + len) as usize;
            let mut read = None;
            let work = match kind {
                0..4 => {
                    read = Some(disk[span].to_vec());
                    Work::Read { offset }
                }
                4..8 => {
                    let byte = numbers.below(255) as u8 + 1;
                    disk[span].fill(byte);
                    let bytes = vec![byte; len as usize];
                    memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                    let durable = kind == 7;
                    Work::Write { offset, durable }
                }
                8 => {
                    disk[span].fill(0);
                    let unmap = numbers.below(2) == 0;
                    Work::Zero { offset, len, unmap }
                }
                _ => Work::Flush,
            };
            if matches!(work, Work::Read { .. } | Work::Write { .. }) {
                // In two pieces, so that vectors are used as well.
                let first = 512 * (1 + numbers.below(len / 512)) as u32;
                assert!(buffers.push(GuestAddress(at), first));
                let rest = GuestAddress(at + u64::from(first));
                assert!(buffers.push(rest, len as u32 - first));
                let fill = matches!(work, Work::Write { .. });
                buffers
                    .align(image.alignment(), fill, Some(&chunks))
                    .unwrap();
            }
            let expected = Expected { offset, len, read };
            running.insert(token, expected);
            begun += 1;
            engine.submit(Job {
                token,
                work,
                buffers,
            });
            // The place of the data, for the check.
            memory
                .write_obj(at, GuestAddress((u64::from(token) + 1) * ROOM - 8))
                .unwrap();
        }
        engine.commit();
        let mut any = false;
        while let Some((job, result)) = engine.complete() {
            any = true;
            result.unwrap_or_else(|error| panic!("{mode:?} {seed} {:?}: {error}", job.work));
            let expected = running.remove(&job.token).unwrap();
            if let Some(bytes) = expected.read {
                let place = GuestAddress((u64::from(job.token) + 1) * ROOM - 8);
                let at: u64 = memory.read_obj(place).unwrap();
                let mut found = vec![0; bytes.len()];
                memory.read_slice(&mut found, GuestAddress(at)).unwrap();
                let wrong = found.iter().zip(&bytes).position(|(f, b)| f != b);
                if let Some(at) = wrong {
                    panic!(
                        "{mode:?} {seed} {:?}: byte {at} of {} is {} and not {}",
                        job.work,
                        bytes.len(),
                        found[at],
                        bytes[at]
                    );
                }
            }
            ended += 1;
        }
        if !any {
            wait(&mut *engine, &event);
        }
    }
    drop(engine);
    let mut none = IoBuffers::new(memory);
    image.run(Work::Flush, &mut none).unwrap();
    disk
}

/// An overlay over what is in `path`.
fn exercise_overlay(path: &Path, access: Access, mode: IoMode, seed: u64) {
    let access = Access {
        read_only: true,
        ..access
    };
    let base = open::open(path, access).unwrap();
    let before = read_all(&*base.image);
    let overlay: Arc<dyn Image> = Arc::new(Overlay::over(base.image, path).unwrap());
    let disk = exercise_image(&overlay, before.clone(), mode, seed);
    assert!(read_all(&*overlay) == disk, "the overlay reads otherwise");
    drop(overlay);
    compare(path, access.format, &before);
}

fn read_all(image: &dyn Image) -> Vec<u8> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LEN as usize)]).unwrap();
    let memory = Arc::new(memory);
    let mut buffers = IoBuffers::new(memory.clone());
    assert!(buffers.push(GuestAddress(0), LEN as u32));
    image.run(Work::Read { offset: 0 }, &mut buffers).unwrap();
    let mut bytes = vec![0; LEN as usize];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

/// The file, read by others, holds what was written.
fn compare(path: &Path, format: Format, disk: &[u8]) {
    match format {
        Format::Raw => assert!(
            std::fs::read(path).unwrap() == disk,
            "the file holds otherwise"
        ),
        Format::Qcow2 => {
            // tests/disk_images has qemu-img read it.
            let access = Access {
                format,
                read_only: true,
                ..Access::default()
            };
            let again = open::open(path, access).unwrap();
            assert!(read_all(&*again.image) == disk, "the image holds otherwise");
        }
    }
}

fn raw() -> tempfile::NamedTempFile {
    // Not in /tmp: that may be a tmpfs, which has no direct I/O on older hosts.
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.as_file().set_len(LEN).unwrap();
    file
}

fn threads_do_raw_images() {
    exercise(raw().path(), Access::default(), IoMode::Threads, 1);
}

fn uring_does_raw_images() {
    exercise(raw().path(), Access::default(), IoMode::Uring, 2);
}

fn direct(mode: IoMode, seed: u64) {
    let access = Access {
        cache: CacheMode::Direct,
        ..Access::default()
    };
    exercise(raw().path(), access, mode, seed);
}

fn threads_do_direct_io() {
    direct(IoMode::Threads, 3);
}

fn uring_does_direct_io() {
    direct(IoMode::Uring, 4);
}

fn qcow2() -> (tempfile::TempDir, PathBuf, Access) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let new = manage::New {
        len: LEN,
        cluster: manage::CLUSTER,
        backing: None,
    };
    let mut file = std::fs::File::options();
    file.read(true).write(true).create_new(true);
    drop(manage::make(file.open(&path).unwrap(), &new).unwrap());
    let access = Access {
        format: Format::Qcow2,
        ..Access::default()
    };
    (folder, path, access)
}

fn threads_do_qcow2_images() {
    let (_folder, path, access) = qcow2();
    exercise(&path, access, IoMode::Auto, 5);
}

/// A raw image that is not all zeros.
fn raw_with_content() -> tempfile::NamedTempFile {
    let file = raw();
    let bytes: Vec<_> = (0..LEN).map(|at| (at / 7 % 251) as u8 + 1).collect();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn threads_do_overlays() {
    let file = raw_with_content();
    exercise_overlay(file.path(), Access::default(), IoMode::Threads, 6);
}

fn uring_does_overlays() {
    let file = raw_with_content();
    exercise_overlay(file.path(), Access::default(), IoMode::Uring, 7);
}

fn uring_does_overlays_of_direct_io() {
    let access = Access {
        cache: CacheMode::Direct,
        ..Access::default()
    };
    exercise_overlay(raw_with_content().path(), access, IoMode::Uring, 8);
}

fn uring_does_overlays_of_qcow2_images() {
    let (_folder, path, access) = qcow2();
    exercise(&path, access, IoMode::Auto, 9);
    exercise_overlay(&path, access, IoMode::Uring, 10);
}

fn a_drain_ends_everything() {
    let file = raw();
    let image = open::open(file.path(), Access::default()).unwrap().image;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let memory = Arc::new(memory);
    let overlay: Arc<dyn Image> = Arc::new(Overlay::over(image.clone(), file.path()).unwrap());
    for (what, image, mode) in [
        ("raw", &image, IoMode::Auto),
        ("raw", &image, IoMode::Threads),
        ("overlay", &overlay, IoMode::Auto),
        ("overlay", &overlay, IoMode::Threads),
    ] {
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut engine = start(image, mode, SLOTS, 16, &event);
        for token in 0..SLOTS {
            // A flush of an overlay ends at once; a part of a page does not.
            let zero = Work::Zero {
                offset: u64::from(token) * 8192 + 512,
                len: 512,
                unmap: true,
            };
            let work = match image.clone().layers() {
                Some(_) => zero,
                None => Work::Flush,
            };
            engine.submit(Job {
                token,
                work,
                buffers: IoBuffers::new(memory.clone()),
            });
        }
        engine.commit();
        engine.drain();
        assert!(engine.complete().is_none(), "{what} {mode:?}");
        std::thread::sleep(Duration::from_millis(20));
        assert!(engine.complete().is_none(), "{what} {mode:?}: a late end");
    }
}
