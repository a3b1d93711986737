//! A pause costs the guest nothing but time: no request of its disk, no answer of a device, no key; and a
//! machine that is paused can still be ended, in every way there is.
//!
//! The guests are in `tests/guests/pause.rs`. What a pause means to a Linux is in `tests/linux`.

#[path = "../common/mod.rs"]
mod common;
mod disks;
mod one_vcpu;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use common::pty::Session;
use common::trials::trial;
use common::{bantam, guest};
use libtest_mimic::Arguments;

fn main() {
    let args = Arguments::from_args();
    let missing = common::kvm().err();
    let kinds = [
        ("raw", "raw", "", "1"),
        ("raw_with_io_threads", "raw", ",iothread,queues=2", "2"),
        (
            "raw_direct_by_threads",
            "raw",
            ",cache=direct,io=threads",
            "1",
        ),
        ("qcow2", "qcow2", "", "1"),
        ("raw_of_four_vcpus", "raw", "", "4"),
    ];
    let mut trials = Vec::new();
    for (name, format, options, cpus) in kinds {
        let name = format!("{name}_loses_nothing_by_pauses");
        trials.push(trial(name, missing.as_deref(), move || {
            disks::paused(format, options, cpus);
        }));
    }
    let tests: [(&str, fn()); 10] = [
        ("a_key_pauses_and_what_is_typed_meanwhile_arrives", keys),
        ("the_state_of_a_paused_machine_is_shown", state),
        (
            "a_parked_vcpu_has_got_what_a_device_has_answered",
            one_vcpu::answered,
        ),
        ("ctrl_a_x_ends_a_paused_machine", quit),
        (
            "sigterm_wakes_a_paused_guest_and_presses_its_button",
            sigterm,
        ),
        ("two_signals_end_a_paused_machine", two_signals),
        ("the_time_limit_ends_a_paused_machine", time_limit),
        ("a_storm_of_pauses_leaves_a_machine_that_runs", storm),
        ("a_pause_before_the_first_instruction_holds", early),
        ("an_end_is_heard_whatever_a_pause_is_doing", ends),
    ];
    for (name, test) in tests {
        trials.push(trial(name, missing.as_deref(), test));
    }
    libtest_mimic::run(&args, trials).exit();
}

fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, signal) };
}

fn pause(child: &Child) {
    signal(child, libc::SIGUSR1);
}

fn resume(child: &Child) {
    signal(child, libc::SIGUSR2);
}

fn random(below: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    (u64::from(now.unwrap().subsec_nanos()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % below
}

/// A guest with pipes for stdin and stdout, and what its VMM says counted: how often it was paused.
struct Piped {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    paused: Arc<AtomicU64>,
}

fn piped(args: &[&str], change: impl FnOnce(&mut Command)) -> Piped {
    let mut command = Command::new(bantam());
    command
        .args(["run", guest::elf().to_str().unwrap(), "-v"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    change(&mut command);
    let mut child = command.spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let paused = Arc::new(AtomicU64::new(0));
    let counter = paused.clone();
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            if line.ends_with("info: paused") {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    Piped {
        child,
        stdout,
        paused,
    }
}

impl Piped {
    fn type_in(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// Reads what the guest says up to this line.
    #[track_caller]
    fn expect(&mut self, wanted: &str) {
        let mut line = String::new();
        while !line.ends_with(wanted) {
            let mut byte = [0];
            if self.stdout.read_exact(&mut byte).is_err() {
                panic!("no '{wanted}' in {line:?}");
            }
            line.push(byte[0] as char);
        }
    }

    /// Waits until the machine has been paused so often.
    #[track_caller]
    fn expect_paused(&self, times: u64) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.paused.load(Ordering::SeqCst) < times {
            assert!(Instant::now() < end, "not paused {times} times");
            sleep(Duration::from_micros(200));
        }
    }

    /// The exit code, and what else the guest has said.
    #[track_caller]
    fn finish(mut self) -> (i32, String) {
        // In a thread: a machine that hangs holds its output open.
        let mut stdout = self.stdout;
        let rest = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_to_string(&mut text);
            text
        });
        let status = common::wait(&mut self.child, Duration::from_secs(30));
        let Some(status) = status else {
            let _ = self.child.kill();
            panic!("it did not end");
        };
        let text = rest.join().unwrap();
        (status.code().expect("no signal has ended it"), text)
    }
}

// -------------------------------------------------------------------------------------- at the keys

fn ticking() -> Session {
    let kernel = guest::elf().to_str().unwrap();
    let words = ["--append", "do=tick", "--cpus", "2", "--time-limit", "60s"];
    let mut session = Session::start(&[&[kernel], &words[..]].concat());
    session.expect("ticking");
    session.expect("...");
    session
}

/// Pauses by key, and lets what the guest has said before reach the terminal.
fn paused_by_key(session: &mut Session) {
    session.send(b"\x01p");
    session.expect("paused (Ctrl-a p goes on)");
    sleep(Duration::from_millis(200));
    session.catch_up();
    session.forget();
}

fn keys() {
    let mut session = ticking();
    for _ in 0..2 {
        session.forget();
        paused_by_key(&mut session);
        session.send(b"typed meanwhile\r");
        sleep(Duration::from_millis(400));
        assert_eq!(session.catch_up(), "", "a paused guest says nothing");
        session.send(b"\x01p");
        session.expect("resumed");
        session.expect("[typed meanwhile]");
        session.expect("...");
    }
    session.send(b"q\r");
    assert_eq!(session.finish().code(), Some(0));
}

fn state() {
    let mut session = ticking();
    session.send(b"\x01c");
    session.expect("running, up for");
    session.expect("vcpu0: exits to user space: ");
    session.expect(" MMIO; at 0x");
    session.expect("vcpu1: exits to user space: 0 port, 0 MMIO; not started by the guest");
    paused_by_key(&mut session);
    let mut shown = Vec::new();
    for _ in 0..2 {
        session.forget();
        session.send(b"\x01c");
        session.expect("paused, up for");
        session.expect("not started by the guest");
        let lines = session
            .seen()
            .lines()
            .skip_while(|line| !line.starts_with("vcpu0"));
        shown.push(lines.map(str::to_owned).collect::<Vec<_>>());
    }
    assert!(shown[0][0].contains(" MMIO; at 0x"), "{shown:?}");
    assert_eq!(shown[0], shown[1], "it stands still");
    session.send(b"\x01pq\r");
    assert_eq!(session.finish().code(), Some(0));
}

fn quit() {
    let mut session = ticking();
    paused_by_key(&mut session);
    session.send(b"\x01x");
    assert_eq!(session.finish().code(), Some(0));
}

// ------------------------------------------------------------------------------------------ the end

fn ticking_piped(limit: &str) -> Piped {
    let args = ["--append", "do=tick", "--cpus", "3", "--time-limit", limit];
    let mut machine = piped(&args, |_| {});
    machine.expect("ticking\n");
    machine
}

fn sigterm() {
    let machine = ticking_piped("60s");
    pause(&machine.child);
    machine.expect_paused(1);
    signal(&machine.child, libc::SIGTERM);
    let (code, said) = machine.finish();
    assert!(said.ends_with("power button\n"), "{said}");
    assert_eq!(code, 0);
}

fn two_signals() {
    let machine = ticking_piped("60s");
    pause(&machine.child);
    machine.expect_paused(1);
    // Both are there before either is heard: the guest has no time to react to the first.
    signal(&machine.child, libc::SIGSTOP);
    signal(&machine.child, libc::SIGTERM);
    signal(&machine.child, libc::SIGINT);
    signal(&machine.child, libc::SIGCONT);
    assert_eq!(machine.finish().0, 5);
}

fn time_limit() {
    let machine = ticking_piped("2s");
    pause(&machine.child);
    machine.expect_paused(1);
    assert_eq!(machine.finish().0, 6);
}

/// Waits for so many microseconds; a sleep takes longer than that.
fn spin(micros: u64) {
    let end = Instant::now() + Duration::from_micros(micros);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

fn storm() {
    let mut machine = ticking_piped("60s");
    let end = Instant::now() + Duration::from_secs(1);
    let mut pairs = 0;
    while Instant::now() < end {
        for _ in 0..100 {
            pause(&machine.child);
            resume(&machine.child);
        }
        // Now the machine comes to do something about each of them.
        for _ in 0..100 {
            pause(&machine.child);
            spin(random(100));
            resume(&machine.child);
            spin(random(100));
        }
        pairs += 200;
    }
    // Of two signals that are pending together, the kernel hands over the lower number first.
    resume(&machine.child);
    machine.type_in(b"still there\n");
    machine.expect("[still there]");
    println!(
        "{pairs} pairs of signals were {} pauses",
        machine.paused.load(Ordering::SeqCst)
    );
    // And it can be paused as before.
    let before = machine.paused.load(Ordering::SeqCst);
    pause(&machine.child);
    machine.expect_paused(before + 1);
    resume(&machine.child);
    machine.type_in(b"q\n");
    assert_eq!(machine.finish().0, 0);
}

/// Has the process begin with SIGUSR1 pending: no time is too early for that.
fn born_paused(command: &mut Command) {
    // SAFETY: all calls are async-signal-safe. The mask and what is pending outlive execve(2).
    unsafe {
        command.pre_exec(|| {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGUSR1);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::raise(libc::SIGUSR1);
            Ok(())
        });
    }
}

fn early() {
    let args = ["--append", "do=tick", "--cpus", "3", "--time-limit", "60s"];
    let mut machine = piped(&args, born_paused);
    machine.expect_paused(1);
    resume(&machine.child);
    machine.expect("ticking\n");
    machine.type_in(b"q\n");
    assert_eq!(machine.finish().0, 0);

    // Right after the start, at whatever the program is doing. It must have begun, or the signal
    // does what it does to any program.
    for _ in 0..20 {
        let args = ["--append", "do=hello", "--cpus", "3", "--time-limit", "60s"];
        let machine = piped(&args, |_| {});
        while !masks_pauses(&machine.child) {
            sleep(Duration::from_micros(50));
        }
        sleep(Duration::from_micros(random(8000)));
        pause(&machine.child);
        sleep(Duration::from_micros(random(8000)));
        resume(&machine.child);
        assert_eq!(machine.finish().0, 0);
    }
}

/// Whether the process's first thread has SIGUSR1 blocked (proc(5), SigBlk), or has ended.
fn masks_pauses(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    let blocked = u64::from_str_radix(&field("SigBlk:"), 16).unwrap();
    blocked & 1 << (libc::SIGUSR1 - 1) != 0 || field("State:").starts_with('Z')
}

/// Guests that power off by themselves, and signals that end the machine, in the middle of pauses.
fn ends() {
    for round in 0..30 {
        let wish = ["do=hello", "do=tick"][round % 2];
        let args = ["--append", wish, "--cpus", "4", "--time-limit", "60s"];
        let machine = piped(&args, born_paused);
        machine.expect_paused(1);
        let end = Instant::now() + Duration::from_micros(random(10_000));
        while Instant::now() < end {
            resume(&machine.child);
            pause(&machine.child);
        }
        let wanted = match wish {
            "do=hello" => {
                resume(&machine.child);
                sleep(Duration::from_millis(1));
                // Should both have been pending together, the pause was heard last.
                resume(&machine.child);
                0
            }
            _ => {
                signal(&machine.child, libc::SIGINT);
                signal(&machine.child, libc::SIGTERM);
                5
            }
        };
        let (code, said) = machine.finish();
        let powered_off = wanted == 5 && code == 0 && said.ends_with("power button\n");
        assert!(
            code == wanted || powered_off,
            "{code}, round {round}: {said}"
        );
    }
}
