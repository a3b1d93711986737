//! The process that reads a qcow2 image: what it has, what becomes of it, and what becomes of a machine that has lost it.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bantam::storage::engine::start;
use bantam::storage::qcow2::manage;
use bantam::storage::{Access, Format, Image, IoBuffers, IoMode, Job, Work, open};
use common::bare::{ENGINES, all_ok, at_work};
use common::trials::{Test, each, exit_after, trials_of};
use common::{Numbers, TempFile, end_of, has_program, run, signal};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

fn main() {
    let no_kvm = common::kvm().err();
    let no_qemu_img = (!has_program("qemu-img")).then(|| "no qemu-img".to_owned());
    let tests: [Test; 6] = [
        (
            "a_helper_has_its_image_and_nothing_else",
            no_kvm.clone(),
            has,
        ),
        (
            "a_helper_is_gone_after_its_vmm_was_killed",
            no_kvm.clone(),
            killed_vmm,
        ),
        (
            "a_helper_is_gone_when_its_machine_ends",
            no_kvm.clone(),
            ended_vmm,
        ),
        (
            "a_helper_does_not_hear_the_terminals_signals",
            no_kvm.clone(),
            signals,
        ),
        (
            "discards_among_transfers_on_whole_clusters_lose_nothing",
            no_qemu_img.clone(),
            storm_of_clusters,
        ),
        (
            "discards_among_transfers_on_parts_of_clusters_lose_nothing",
            no_qemu_img.clone(),
            storm_of_parts,
        ),
    ];
    let mut trials = trials_of(tests);
    trials.extend(each(
        "without_its_helper_a_disk_gives_io_errors_by",
        ENGINES,
        no_kvm.as_deref(),
        killed,
    ));
    exit_after(trials);
}

/// An image of 8 MiB.
fn image() -> TempFile {
    let file = TempFile::on_disk("disk.qcow2");
    let made = run(&["image", "create", file.str(), "8M"]);
    assert_eq!(made.code(), 0, "{made:?}");
    file
}

/// The children of a process, by their names.
fn children(pid: u32) -> Vec<(u32, String)> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.map(|pid| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        (pid, comm.trim().to_owned())
    })
    .collect()
}

fn helper_of(vmm: &Child) -> u32 {
    let children = children(vmm.id());
    let [(pid, name)] = children.as_slice() else {
        panic!("one helper: {children:?}");
    };
    assert_eq!(name, "bantam: vda");
    *pid
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: the number is that of a process of ours which was there a moment ago.
    unsafe { libc::kill(pid as i32, signal) };
}

fn is_there(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // One that is dead and that nobody has asked about yet is as good as gone.
    !status.is_empty() && !status.contains("State:\tZ")
}

fn is_gone_soon(pid: u32) {
    let end = Instant::now() + Duration::from_secs(20);
    while is_there(pid) {
        assert!(Instant::now() < end, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn killed(options: &str) {
    let file = image();
    let disk = format!("{}{options}", file.str());
    let vmm = at_work("gone", &disk);
    kill(helper_of(&vmm), libc::SIGKILL);
    let outcome = end_of(vmm, &disk);
    all_ok(&outcome, 5);
    let said = "the process that reads the image was ended by signal 9";
    assert!(outcome.stderr.contains(said), "{outcome:?}");
    // Nobody has the image any more.
    let again = run(&["image", "resize", file.str(), "+1M"]);
    assert_eq!(again.code(), 0, "{again:?}");
}

fn has() {
    let file = image();
    let vmm = at_work("gone", file.str());
    let helper = helper_of(&vmm);
    let fds = std::fs::read_dir(format!("/proc/{helper}/fd")).unwrap();
    let mut found: HashMap<String, usize> = HashMap::new();
    for entry in fds {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap();
        let target = target.to_str().unwrap();
        let kind = target.split(':').next().unwrap();
        *found.entry(kind.to_owned()).or_default() += 1;
    }
    let real = file.path().canonicalize().unwrap();
    let kinds: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    let expected = ["/dev/null", real.to_str().unwrap(), "anon_inode", "socket"];
    assert_eq!(kinds, BTreeSet::from(expected), "{found:?}");
    // One queue's event, and one socket.
    assert_eq!((found["anon_inode"], found["socket"]), (1, 1), "{found:?}");
    // Nothing of the guest's 256 MiB.
    let maps = std::fs::read_to_string(format!("/proc/{helper}/maps")).unwrap();
    let shared = maps.lines().filter(|line| {
        let rights = line.split_whitespace().nth(1).unwrap();
        rights.ends_with('s')
    });
    let bytes: u64 = shared
        .map(|line| {
            let (from, to) = line
                .split_whitespace()
                .next()
                .unwrap()
                .split_once('-')
                .unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            number(to) - number(from)
        })
        .sum();
    assert!(bytes < 8 << 20, "{maps}");
    // Each of its threads has its system calls checked, and no capability.
    let tasks = std::fs::read_dir(format!("/proc/{helper}/task")).unwrap();
    let mut threads = 0;
    for task in tasks {
        let status = task.unwrap().path().join("status");
        let status = std::fs::read_to_string(status).unwrap();
        for line in [
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
        ] {
            assert!(status.lines().any(|one| one == line), "{line}: {status}");
        }
        threads += 1;
    }
    assert_eq!(threads, 17, "one for each slot, and the first");
    kill(helper, libc::SIGKILL);
    all_ok(&end_of(vmm, "has"), 5);
}

fn killed_vmm() {
    let file = image();
    let mut vmm = at_work("gone", file.str());
    let helper = helper_of(&vmm);
    vmm.kill().unwrap();
    vmm.wait().unwrap();
    is_gone_soon(helper);
}

fn ended_vmm() {
    let file = image();
    let vmm = at_work("gone", file.str());
    let helper = helper_of(&vmm);
    signal(&vmm, libc::SIGTERM);
    let outcome = end_of(vmm, "ended");
    assert_eq!(outcome.code(), 5, "{outcome:?}");
    assert!(!outcome.stderr.contains("process"), "{outcome:?}");
    assert!(!is_there(helper), "the VMM has waited for its end");
}

/// What comes from a terminal, a service manager, and whoever pauses a machine.
const SIGNALS: [i32; 6] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGTERM,
    libc::SIGTSTP,
    libc::SIGUSR1,
];

fn signals() {
    let file = image();
    let vmm = at_work("gone", file.str());
    let helper = helper_of(&vmm);
    for signal in SIGNALS {
        kill(helper, signal);
    }
    // The process neither ends nor stops.
    let status = std::fs::read_to_string(format!("/proc/{helper}/status")).unwrap();
    let line = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{status}")).to_owned()
    };
    assert!(!line("State:").contains("stopped"), "{status}");
    let ignored = line("SigIgn:")
        .split_whitespace()
        .nth(1)
        .map(|mask| u64::from_str_radix(mask, 16).unwrap());
    for signal in SIGNALS {
        assert_eq!(
            ignored.unwrap() >> (signal - 1) & 1,
            1,
            "{signal}: {status}"
        );
    }
    signal(&vmm, libc::SIGTERM);
    let outcome = end_of(vmm, "signals");
    assert_eq!(outcome.code(), 5, "{outcome:?}");
    assert!(!outcome.stderr.contains("process"), "{outcome:?}");
}

/// Sectors of the disk of a storm.
const SECTORS: u64 = 16384;
/// Threads, each with a queue of its own.
const QUEUES: u64 = 4;
/// Jobs at a time in each queue, and memory of each.
const SLOTS: u16 = 16;
const ROOM: u64 = 64 << 10;

fn storm_of_clusters() {
    // Each queue has 16 clusters in a row: discards free them while others' writes want new ones.
    storm(4096, 128, 1);
}

fn storm_of_parts() {
    // Each cluster belongs to all queues.
    storm(64 << 10, 8, 2);
}

/// A sector: a byte that it is full of, or anything.
type Model = Vec<Option<u8>>;

/// Queues at work on one image, each on its own stretches of `stretch` sectors. At the end qemu-img looks at the image.
fn storm(cluster: usize, stretch: u64, seed: u64) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk.qcow2");
    let new = manage::New {
        len: SECTORS * 512,
        cluster,
        backing: None,
    };
    let mut file = std::fs::File::options();
    file.read(true).write(true).create_new(true);
    drop(manage::make(file.open(&path).unwrap(), &new).unwrap());
    let access = Access {
        format: Format::Qcow2,
        ..Access::default()
    };
    let opened = open::open(&path, access).unwrap();
    let parts: Vec<Model> = std::thread::scope(|scope| {
        let queues: Vec<_> = (0..QUEUES)
            .map(|queue| {
                let image = opened.image.clone();
                scope.spawn(move || work(&image, queue, stretch, seed * 100 + queue))
            })
            .collect();
        queues
            .into_iter()
            .map(|queue| queue.join().unwrap())
            .collect()
    });
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
    opened
        .image
        .run(Work::Flush, &mut IoBuffers::new(memory))
        .unwrap();
    drop(opened);
    let plain = plain(&path);
    for (number, sector) in plain.chunks(512).enumerate() {
        let owner = number as u64 / stretch % QUEUES;
        if let Some(byte) = parts[owner as usize][number] {
            let wrong = sector.iter().position(|found| *found != byte);
            assert_eq!(
                wrong, None,
                "sector {number} is {} and not {byte}",
                sector[0]
            );
        }
    }
}

/// The disk as QEMU reads it, after it has looked at all tables.
fn plain(path: &Path) -> Vec<u8> {
    let qemu_img = |words: &[&str]| {
        let out = Command::new("qemu-img").args(words).output().unwrap();
        assert!(out.status.success(), "{words:?}: {out:?}");
    };
    let plain: PathBuf = path.with_extension("raw");
    let (image, raw) = (path.to_str().unwrap(), plain.to_str().unwrap());
    qemu_img(&["check", "-f", "qcow2", image]);
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", image, raw]);
    std::fs::read(plain).unwrap()
}

/// What a job was to do.
struct Expected {
    sectors: std::ops::Range<u64>,
    read: Option<Model>,
}

/// One queue's jobs: what its sectors should have after them.
fn work(image: &Arc<dyn Image>, queue: u64, stretch: u64, seed: u64) -> Model {
    let mut model: Model = vec![Some(0); SECTORS as usize];
    let memory = u64::from(SLOTS) * ROOM;
    let memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), memory as usize)]).unwrap());
    let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let mut engine = start(image, IoMode::Auto, SLOTS, 4, &event);
    let mut numbers = Numbers(seed);
    let mut running: HashMap<u16, Expected> = HashMap::new();
    let (mut begun, mut ended) = (0, 0);
    let jobs = 4000;
    while ended < jobs {
        while begun < jobs && running.len() < usize::from(SLOTS) {
            // Few stretches, so that they are used again and again.
            let first = (numbers.below(12) * QUEUES + queue) * stretch;
            let from = first + numbers.below(stretch);
            let most = (first + stretch - from).min(ROOM / 512);
            let sectors = from..from + 1 + numbers.below(most);
            let overlaps =
                |r: &Expected| r.sectors.start < sectors.end && sectors.start < r.sectors.end;
            if running.values().any(overlaps) {
                break;
            }
            let token = (0..SLOTS).find(|t| !running.contains_key(t)).unwrap();
            let (at, len) = (u64::from(token) * ROOM, (sectors.end - sectors.start) * 512);
            let offset = sectors.start * 512;
            let span = sectors.start as usize..sectors.end as usize;
            let mut buffers = IoBuffers::new(memory.clone());
            let mut read = None;
            let work = match numbers.below(16) {
                0..6 => {
                    read = Some(model[span].to_vec());
                    Work::Read { offset }
                }
                6..11 => {
                    let byte = numbers.below(255) as u8 + 1;
                    model[span].fill(Some(byte));
                    memory
                        .write_slice(&vec![byte; len as usize], GuestAddress(at))
                        .unwrap();
                    Work::Write {
                        offset,
                        durable: false,
                    }
                }
                11..14 => {
                    // All of a stretch, so that whole clusters are freed.
                    let all = first..first + stretch;
                    let overlaps =
                        |r: &Expected| r.sectors.start < all.end && all.start < r.sectors.end;
                    if running.values().any(overlaps) {
                        break;
                    }
                    model[first as usize..all.end as usize].fill(None);
                    let (offset, len) = (first * 512, stretch * 512);
                    running.insert(
                        token,
                        Expected {
                            sectors: all,
                            read: None,
                        },
                    );
                    begun += 1;
                    let work = Work::Discard { offset, len };
                    engine.submit(Job {
                        token,
                        work,
                        buffers,
                    });
                    continue;
                }
                14 => {
                    model[span].fill(Some(0));
                    let unmap = numbers.below(2) == 0;
                    Work::Zero { offset, len, unmap }
                }
                _ => Work::Flush,
            };
            if matches!(work, Work::Read { .. } | Work::Write { .. }) {
                assert!(buffers.push(GuestAddress(at), len as u32));
            }
            running.insert(token, Expected { sectors, read });
            begun += 1;
            engine.submit(Job {
                token,
                work,
                buffers,
            });
        }
        engine.commit();
        let mut any = false;
        while let Some((job, result)) = engine.complete() {
            any = true;
            result.unwrap_or_else(|error| panic!("{:?}: {error}", job.work));
            let expected = running.remove(&job.token).unwrap();
            for (number, byte) in expected.read.iter().flatten().enumerate() {
                let at = u64::from(job.token) * ROOM + number as u64 * 512;
                let mut found = [0; 512];
                memory.read_slice(&mut found, GuestAddress(at)).unwrap();
                let good = byte.is_none_or(|byte| found.iter().all(|found| *found == byte));
                assert!(
                    good,
                    "{:?}, sector {number}: {} and not {byte:?}",
                    job.work, found[0]
                );
            }
            ended += 1;
        }
        if !any && !engine.rearm() {
            let mut poll = libc::pollfd {
                fd: std::os::fd::AsRawFd::as_raw_fd(&*event),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one pollfd, valid for the call.
            let ready = unsafe { libc::poll(&raw mut poll, 1, 60_000) };
            assert_eq!(ready, 1, "no end was told of within a minute");
            let _ = event.read();
        }
    }
    model
}
