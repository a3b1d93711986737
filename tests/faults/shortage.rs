//! A host that has no memory left, for the machine alone or for all that is in its cgroup.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::{bare, run_with, set_limit};
use crate::machines::{Console, Format, Machine};
use crate::tracer::{Answer, Stops};
use crate::verdict;

use std::os::unix::process::CommandExt;

/// cgroups(7), version 1. Where there is only version 2, a group with a limit may not have both processes and
/// groups below it, and is somebody else's to make.
const GROUPS: &str = "/sys/fs/cgroup/memory";

/// A group of processes that may use so much memory.
struct Group(PathBuf);

impl Group {
    fn of(bytes: u64) -> Result<Self, String> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let path = Path::new(GROUPS).join(format!("bantam-{}-{number}", std::process::id()));
        let failed =
            |error: std::io::Error| format!("no memory cgroup: {}: {error}", path.display());
        fs::create_dir(&path).map_err(failed)?;
        fs::write(path.join("memory.limit_in_bytes"), bytes.to_string()).map_err(failed)?;
        Ok(Group(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Why no machine can be put into a group of its own here.
pub fn group_missing() -> Option<String> {
    Group::of(1 << 30).err()
}

/// The kernel ends the machine when its guest has used up what the group may have: what was flushed is in the image, and
/// nothing is left over.
pub fn ended_by_the_kernel(disk: (Format, &'static str)) {
    let disks = Box::leak(Box::new([disk]));
    let machine = Machine {
        name: "a_group",
        console: Console::Pipes,
        disks,
        words: &["--memory", "512M"],
        wish: "hog",
        limit: "60s",
    };
    let group = Group::of(96 << 20).unwrap();
    let tasks = group.0.join("cgroup.procs");
    let enter = move |command: &mut std::process::Command| {
        let tasks = std::ffi::CString::new(tasks.to_str().unwrap()).unwrap();
        // SAFETY: the calls are async-signal-safe; "0" is the process that writes it.
        unsafe {
            command.pre_exec(move || {
                let fd = libc::open(tasks.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                match libc::write(fd, c"0".as_ptr().cast(), 1) {
                    1 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    };
    let run = machine.run_in(enter, &Stops::At(Vec::new()), |_| {}, |_| Answer::Made);
    let killed = run.end.status.signal() == Some(libc::SIGKILL);
    assert!(
        killed && !run.end.killed,
        "{:?}\n{}\n{}",
        run.end,
        run.stdout,
        run.stderr
    );
    let flushed = run.stdout.matches(" ok\n").count();
    assert!(flushed > 3, "{}", run.stdout);
    assert_eq!(verdict::nothing_left(&machine, &run, true), Ok(()));
}

/// A limit on the data of the process (RLIMIT_DATA): the machine runs, or says why it does not.
pub fn little_data() {
    let (mut ran, mut refused) = (0, 0);
    for kib in (512..16_384).step_by(512).chain([32_768, 65_536, 262_144]) {
        let mut command = bare::command("hello", &["--memory", "16M", "--rng"]);
        // SAFETY: setrlimit is async-signal-safe.
        unsafe {
            command.pre_exec(move || set_limit(libc::RLIMIT_DATA, kib << 10));
        }
        let outcome = run_with(command, b"", Duration::from_secs(60));
        match outcome.status.code() {
            Some(0) if outcome.stdout.contains("hello") => ran += 1,
            Some(3) if outcome.stderr.contains("error: ") && outcome.stderr.contains("help: ") => {
                refused += 1
            }
            _ => panic!("{kib} KiB: {outcome:?}"),
        }
    }
    assert!(ran > 0 && refused > 0, "{ran} ran, {refused} were refused");
}
