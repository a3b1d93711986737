//! The host's storage, or whoever reads what is printed, does not answer: a machine can still be paused, resumed
//! and ended, and the end comes in time.
//!
//! A file system that is frozen (fsfreeze(8) is the command for it) keeps whoever writes to it waiting in the kernel, where not even
//! SIGKILL ends it. So the process of a machine that has ended stays as a zombie until the file system answers
//! again; that is the kernel's doing. What can be seen before is that the main thread is gone, and what was said.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::mount::{Frozen, Mount};
use common::pty::Session;
use common::trials::{each, trials};
use common::{bantam, guest, run};
use libtest_mimic::Arguments;

/// No wait of these tests is longer: Bantam gives a host ten seconds, and the rest is for this one.
const PATIENCE: Duration = Duration::from_secs(90);

fn main() {
    let no_kvm = common::kvm().err();
    let no_mount = Mount::new().err();
    let missing = no_kvm.as_deref().or(no_mount.as_deref());
    let kinds = [
        ("raw", "raw", ""),
        ("raw_by_threads", "raw", ",io=threads"),
        ("raw_direct", "raw", ",cache=direct"),
        ("raw_direct_by_threads", "raw", ",cache=direct,io=threads"),
        ("raw_with_io_threads", "raw", ",iothread"),
        ("raw_write_through_two_queues", "raw", ",iothread,queues=2"),
        ("qcow2", "qcow2", ""),
    ];
    let disks = kinds.map(|(name, format, options)| (name, (format, options)));
    let mut all = each(
        "sigterm_ends_a_machine_whose_disk_is_stuck",
        disks,
        missing,
        sigterm,
    );
    all.extend(each(
        "a_pause_waits_for_a_stuck_disk_and_can_be_taken_back",
        disks,
        missing,
        pause,
    ));
    all.extend(each(
        "a_reset_of_a_stuck_disk_waits_and_the_machine_can_be_ended",
        disks,
        missing,
        reset,
    ));
    all.extend(trials(
        missing,
        [
            (
                "the_time_limit_ends_a_machine_whose_disk_is_stuck",
                time_limit as fn(),
            ),
            ("ctrl_a_x_ends_a_machine_whose_disk_is_stuck", quit),
            (
                "a_console_on_a_stuck_file_system_does_not_hold_up_the_end",
                console,
            ),
        ],
    ));
    all.extend(trials(
        no_kvm.as_deref(),
        [
            (
                "a_terminal_that_nobody_reads_does_not_hold_up_the_end",
                unread_terminal as fn(),
            ),
            (
                "lines_that_nobody_reads_hold_up_nobody_and_are_counted",
                unread_lines,
            ),
        ],
    ));
    let mut arguments = Arguments::from_args();
    // They wait most of the time.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    libtest_mimic::run(&arguments, all).exit()
}

/// A machine with pipes for all three.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// What it has said on standard error so far.
    said: Arc<Mutex<String>>,
}

fn start(wish: &str, args: &[&str]) -> Running {
    let mut child = Command::new(bantam())
        .args(["run", guest::elf().to_str().unwrap(), "-v"])
        .args(["--append", &format!("do={wish}")])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let said = Arc::new(Mutex::new(String::new()));
    let collected = said.clone();
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            collected.lock().unwrap().push_str(&format!("{line}\n"));
        }
    });
    Running {
        child,
        stdout,
        said,
    }
}

impl Running {
    fn type_in(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    fn signal(&self, signal: libc::c_int) {
        common::signal(&self.child, signal);
    }

    /// Reads what the guest says up to this line.
    #[track_caller]
    fn expect(&mut self, wanted: &str) {
        let mut seen = String::new();
        while !seen.ends_with(wanted) {
            let mut byte = [0];
            if self.stdout.read_exact(&mut byte).is_err() {
                panic!("no '{wanted}' in {seen:?}; it said {:?}", self.said());
            }
            seen.push(byte[0] as char);
        }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    #[track_caller]
    fn expect_said(&self, words: &str) {
        wait_for(words, || self.said().contains(words), || self.said());
    }

    /// Waits until one of its threads is in a call of the kernel that nothing interrupts, and stays there.
    #[track_caller]
    fn expect_stuck(&self) {
        expect_stuck(self.child.id());
    }

    /// The main thread has done all that it had to do. Whoever waits for the process hears of that as soon as
    /// the last of its threads comes out of the kernel.
    #[track_caller]
    fn expect_gone(&self) {
        let pid = self.child.id();
        let zombie = || thread(pid, pid).is_none_or(|(_, state)| state == 'Z');
        let seen = || format!("{:?} {}", threads(pid), self.said());
        wait_for("end", zombie, seen);
    }

    #[track_caller]
    fn end(mut self) -> (ExitStatus, String) {
        let status = common::wait(&mut self.child, PATIENCE).expect("it ends");
        let end = Instant::now() + PATIENCE;
        while Arc::strong_count(&self.said) > 1 && Instant::now() < end {
            sleep(Duration::from_millis(5));
        }
        (status, self.said())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

#[track_caller]
fn wait_for(what: &str, there: impl Fn() -> bool, seen: impl Fn() -> String) {
    let end = Instant::now() + PATIENCE;
    while !there() {
        assert!(Instant::now() < end, "no '{what}' in {}", seen());
        sleep(Duration::from_millis(5));
    }
}

/// Name and state of a thread (proc_pid_stat(5)); the main thread has the number of its process.
fn thread(pid: u32, number: u32) -> Option<(String, char)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{number}/stat")).ok()?;
    let (name, rest) = stat.rsplit_once(") ")?;
    let (_, name) = name.split_once('(')?;
    Some((name.to_owned(), rest.chars().next()?))
}

fn threads(pid: u32) -> Vec<(String, char)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let numbers = tasks.into_iter().flatten();
    let numbers = numbers.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter_map(|number| thread(pid, number)).collect()
}

/// Those of the process, and of the processes that it has made: one of these may be who waits for a qcow2 image.
fn threads_of_all(pid: u32) -> Vec<(String, char)> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children
        .split_whitespace()
        .map(|child| child.parse().unwrap());
    std::iter::once(pid)
        .chain(children)
        .flat_map(threads)
        .collect()
}

#[track_caller]
fn expect_stuck(pid: u32) {
    let stuck = || threads_of_all(pid).iter().any(|(_, state)| *state == 'D');
    let since = Mutex::new(None);
    let for_a_while = || {
        let mut since = since.lock().unwrap();
        match stuck() {
            true => since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(200),
            false => {
                *since = None;
                false
            }
        }
    };
    wait_for("stuck thread", for_a_while, || {
        format!("{:?}", threads_of_all(pid))
    });
}

/// A disk image on `mount`, and the words of `--disk` for it.
fn image(mount: &Mount, format: &str, options: &str) -> String {
    let path = mount.path("disk");
    let path = path.to_str().unwrap();
    let made = run(&["image", "create", "-f", format, path, "1M"]);
    assert_eq!(made.code(), 0, "{made:?}");
    format!("{path},format={format}{options}")
}

/// A machine whose disk does not answer.
fn stuck((format, options): (&str, &str), more: &[&str]) -> (Running, Frozen, Mount) {
    let mount = Mount::new().unwrap();
    let disk = image(&mount, format, options);
    let cpus = if options.contains("queues=2") {
        "2"
    } else {
        "1"
    };
    let args = [&["--disk", &disk, "--cpus", cpus], more].concat();
    let mut machine = start("stuck", &args);
    machine.expect("at work\n");
    let frozen = mount.freeze();
    machine.expect_stuck();
    (machine, frozen, mount)
}

/// Ended by two signals, of which the first only asks the guest.
fn ended_by_sigterm(machine: Running, frozen: Frozen) {
    machine.signal(libc::SIGTERM);
    machine.expect_said("pressing the guest's power button");
    machine.signal(libc::SIGTERM);
    machine.expect_said("ended by SIGTERM");
    machine.expect_gone();
    drop(frozen);
    let (status, said) = machine.end();
    assert_eq!(status.code(), Some(5), "{said}");
    assert!(said.contains("a disk does not answer"), "{said}");
}

fn sigterm(disk: (&'static str, &'static str)) {
    let (machine, frozen, _mount) = stuck(disk, &[]);
    ended_by_sigterm(machine, frozen);
}

fn time_limit() {
    let (machine, frozen, _mount) = stuck(("raw", ""), &["--time-limit", "20s"]);
    machine.expect_said("ended by the time limit");
    machine.expect_gone();
    drop(frozen);
    let (status, said) = machine.end();
    assert_eq!(status.code(), Some(6), "{said}");
}

fn quit() {
    let mount = Mount::new().unwrap();
    let disk = image(&mount, "raw", "");
    let elf = guest::elf().to_str().unwrap();
    let mut session = Session::start(&[elf, "--append", "do=stuck", "--disk", &disk]);
    session.patience = PATIENCE;
    session.expect("at work");
    let frozen = mount.freeze();
    expect_stuck(session.child.id());
    session.send(b"\x01c");
    session.expect("running, up for");
    session.send(b"\x01x");
    session.expect("bantam: terminated");
    drop(frozen);
    assert_eq!(session.finish().code(), Some(0));
}

/// Not paused before nothing is in flight; and the wait for that holds up nobody.
fn pause(disk: (&'static str, &'static str)) {
    let (mut machine, frozen, _mount) = stuck(disk, &[]);
    let paused = |machine: &Running| machine.said().matches("info: paused").count();
    machine.signal(libc::SIGUSR1);
    sleep(Duration::from_millis(300));
    assert_eq!(paused(&machine), 0, "{}", machine.said());
    machine.signal(libc::SIGUSR2);
    machine.expect_said("info: resumed");
    machine.signal(libc::SIGUSR1);
    sleep(Duration::from_millis(100));
    assert_eq!(paused(&machine), 0, "{}", machine.said());
    drop(frozen);
    machine.expect_said("info: paused");
    machine.signal(libc::SIGUSR2);
    machine.type_in(b"q");
    machine.expect("ok and flushed\n");
    let (status, said) = machine.end();
    assert_eq!(status.code(), Some(0), "{said}");
}

fn reset(disk: (&'static str, &'static str)) {
    // It waits for as long as the disk does, and then goes on.
    let (mut machine, frozen, _mount) = stuck(disk, &[]);
    machine.type_in(b"r");
    machine.expect("resetting\n");
    sleep(Duration::from_millis(200));
    drop(frozen);
    machine.expect("it is reset\n");
    machine.type_in(b"q");
    machine.expect("ok and flushed\n");
    let (status, said) = machine.end();
    assert_eq!(status.code(), Some(0), "{said}");

    // And it does not hold up the end.
    let (mut machine, frozen, _mount) = stuck(disk, &[]);
    machine.type_in(b"r");
    machine.expect("resetting\n");
    sleep(Duration::from_millis(100));
    ended_by_sigterm(machine, frozen);
}

fn console() {
    let mount = Mount::new().unwrap();
    let log = mount.path("log");
    std::fs::write(&log, "").unwrap();
    let console = format!("file={}", log.display());
    let machine = start("tick", &["--console", &console]);
    wait_for(
        "output",
        || std::fs::metadata(&log).is_ok_and(|meta| meta.len() > 0),
        || machine.said(),
    );
    let frozen = mount.freeze();
    machine.expect_stuck();
    // This guest does power off.
    machine.signal(libc::SIGTERM);
    machine.expect_said("does not answer: the last of it may be lost");
    machine.expect_gone();
    drop(frozen);
    let (status, said) = machine.end();
    assert_eq!(status.code(), Some(0), "{said}");
}

/// As after Ctrl-s, or at the other end of a connection that is gone.
fn unread_terminal() {
    let elf = guest::elf().to_str().unwrap();
    let mut session = Session::start(&[elf, "--append", "do=flood"]);
    session.expect("flood");
    // Until the guest waits for a reader.
    wait_for_rest(session.child.id());
    session.send(b"\x01h\x01c\x01x");
    let status = common::wait(&mut session.child, PATIENCE).expect("it ends");
    assert_eq!(status.code(), Some(0));
    session.finish();
}

/// Waits until the main thread of a process has used no processor time for a while.
fn wait_for_rest(pid: u32) {
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        let words = rest.split(' ').skip(11).take(2);
        words
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum::<u64>()
    };
    let end = Instant::now() + PATIENCE;
    let mut before = None;
    while before != Some(used()) && Instant::now() < end {
        before = Some(used());
        sleep(Duration::from_millis(500));
    }
}

fn unread_lines() {
    let elf = guest::elf().to_str().unwrap();
    let mut session = Session::start(&[elf, "--append", "do=deaf"]);
    session.patience = PATIENCE;
    wait_for("raw mode", || session.is_raw(), String::new);
    // The help has several lines: more than wait in the terminal, and in the process, which are 64 KiB each.
    for _ in 0..3000 {
        session.send(b"\x01h");
    }
    wait_for_rest(session.child.id());
    // Now somebody reads: what was kept comes without another line, and how much was lost.
    session.expect("lines were lost while nobody read them");
    session.forget();
    session.send(b"\x01h");
    session.expect("Ctrl-a x  end the machine");
    session.send(b"\x01x");
    session.expect("bantam: terminated");
    assert_eq!(session.finish().code(), Some(0));
}
