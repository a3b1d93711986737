//! The console on a real pseudo-terminal: keys typed, settings given back, whatever ends it. And on files.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::pty::Session;
use common::trials::{each, exit_after, trials};
use common::{TempFile, bantam, guest, run};

fn main() {
    let missing = common::kvm().err();
    let missing = missing.as_deref();
    let tests: [(&str, fn()); 9] = [
        ("keys_reach_the_guest_one_by_one", keys),
        ("ctrl_a_x_ends_the_machine", quit),
        (
            "ctrl_a_shows_help_and_state_and_sends_itself",
            help_and_state,
        ),
        ("ctrl_a_x_works_with_a_guest_that_does_not_read", deaf),
        ("a_long_paste_arrives_whole", paste),
        ("ctrl_c_goes_to_the_guest", ctrl_c),
        ("the_pty_console_can_be_opened_by_its_name", pty_console),
        (
            "a_console_file_with_a_maximum_keeps_the_last_of_the_output",
            file_with_maximum,
        ),
        ("input_and_output_may_be_files", files),
    ];
    let mut trials = trials(missing, tests);
    let ends = [
        ("sigterm", libc::SIGTERM),
        ("sigint", libc::SIGINT),
        ("sighup", libc::SIGHUP),
    ];
    trials.extend(each(
        "the_terminal_comes_back_after",
        ends,
        missing,
        signals,
    ));
    let crashes = [
        ("sigsegv", libc::SIGSEGV),
        ("sigabrt", libc::SIGABRT),
        ("sigbus", libc::SIGBUS),
    ];
    trials.extend(each(
        "the_terminal_comes_back_after",
        crashes,
        missing,
        vmm_crash,
    ));
    exit_after(trials);
}

/// The bare-metal guest on a terminal.
fn on_terminal(wish: &str) -> Session {
    let append = format!("do={wish}");
    Session::start(&[
        guest::elf().to_str().unwrap(),
        "--append",
        &append,
        "--time-limit",
        "60s",
    ])
}

/// Short for the assertion on an exit code.
trait Code {
    fn is(self, code: i32);
}

impl Code for std::process::ExitStatus {
    #[track_caller]
    fn is(self, code: i32) {
        assert_eq!(self.code(), Some(code), "{self:?}");
    }
}

fn keys() {
    let mut session = on_terminal("echo");
    session.expect("echo");
    assert!(session.is_raw());
    session.send(b"ab");
    session.expect("ab");
    session.send(b"q");
    session.finish().is(0);
}

fn quit() {
    let mut session = on_terminal("echo");
    session.expect("echo");
    session.send(b"\x01x");
    session.finish().is(0);
}

fn help_and_state() {
    let mut session = on_terminal("echo");
    session.expect("echo");
    session.send(b"\x01h");
    session.expect("end the machine");
    session.send(b"\x01c");
    session.expect("1 vCPUs, 512 MiB");
    session.expect("vcpu0: exits to user space:");
    session.send(b"\x01aZ");
    session.expect("\x01Z");
    session.send(b"q");
    session.finish().is(0);
}

fn deaf() {
    let mut session = on_terminal("deaf");
    let end = Instant::now() + Duration::from_secs(10);
    while !session.is_raw() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..40 {
        session.send(&[b'x'; 1000]);
    }
    session.expect("the guest takes no input");
    session.send(b"\x01x");
    session.finish().is(0);
}

/// More than any buffer on the way holds, typed by a program that does not wait.
fn paste() {
    let mut session = on_terminal("echo");
    session.expect("echo");
    let lines: String = (0..4000).map(|line| format!("{line:06} ")).collect();
    session.paste(format!("{lines}end").as_bytes());
    session.expect("end");
    assert!(session.seen().contains(&lines), "{:?}", session.seen());
    session.send(b"q");
    session.finish().is(0);
}

fn ctrl_c() {
    let mut session = on_terminal("echo");
    session.expect("echo");
    session.send(b"\x03\x1aend");
    session.expect("\x03\x1aend");
    session.send(b"q");
    session.finish().is(0);
}

/// The first asks the guest to power off, which it does not; the second ends the machine.
fn signals(signal: i32) {
    let mut session = on_terminal("echo");
    session.expect("echo");
    assert!(session.is_raw());
    for _ in 0..2 {
        common::signal(&session.child, signal);
        std::thread::sleep(Duration::from_millis(200));
    }
    session.finish().is(5);
}

/// A signal that ends a process on the spot.
fn vmm_crash(signal: i32) {
    use std::os::unix::process::ExitStatusExt;
    let mut session = on_terminal("echo");
    session.expect("echo");
    assert!(session.is_raw());
    common::signal(&session.child, signal);
    let status = session.finish();
    assert_eq!(status.signal(), Some(signal), "the signal is not swallowed");
}

fn pty_console() {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new(bantam())
        .args(["run", guest::elf().to_str().unwrap(), "--append", "do=echo"])
        .args(["--console", "pty", "--time-limit", "30s"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let path = line.trim().strip_prefix("console: ").unwrap().to_owned();
    let mut console = File::options().read(true).write(true).open(path).unwrap();
    console.write_all(b"hi").unwrap();
    let mut seen = String::new();
    while !seen.contains("hi") {
        let mut bytes = [0; 64];
        let count = console.read(&mut bytes).unwrap();
        seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    console.write_all(b"q").unwrap();
    let status = common::wait(&mut child, Duration::from_secs(15)).expect("it ends");
    status.is(0);
}

fn file_with_maximum() {
    let log = TempFile::new("a,b.log", b"of another machine\n");
    let old = format!("{}.1", log.str());
    let elf = guest::elf().to_str().unwrap();
    let console = format!("file={},max=20K", log.str().replace(',', ",,"));
    let flood = ["run", elf, "--append", "do=flood", "--time-limit", "60s"];
    let outcome = run(&[&flood[..], &["--console", &console]].concat());
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    // 4096 numbered lines, 200 KiB.
    let (new, old) = (
        std::fs::read_to_string(log.path()).unwrap(),
        std::fs::read_to_string(old).unwrap(),
    );
    for text in [&new, &old] {
        assert!((1..=20 << 10).contains(&text.len()), "{}", text.len());
    }
    let kept = format!("{old}{new}");
    // The first may be cut.
    let whole = |line: &&str| line.starts_with("flood 0x") && line.matches('.').count() == 39;
    let numbers: Vec<u64> = kept
        .lines()
        .filter(whole)
        .map(|line| u64::from_str_radix(line[8..].trim_end_matches('.'), 16).unwrap())
        .collect();
    let first = numbers[0];
    assert!(numbers.iter().copied().eq(first..4096), "{numbers:?}");
    assert!(numbers.len() > 300, "{}", numbers.len());

    let fifo = TempFile::on_disk("fifo");
    let made = Command::new("mkfifo").arg(fifo.path()).status().unwrap();
    assert!(made.success());
    let console = format!("file={},max=20K", fifo.str());
    for more in [&[][..], &["--dry-run"]] {
        let outcome = run(&[&flood[..], &["--console", &console], more].concat());
        assert_eq!(outcome.code(), 3, "{outcome:?}");
        assert!(outcome.stderr.contains("begun again"), "{outcome:?}");
    }
}

/// More than waits in a pipe, in both directions.
fn files() {
    let text: String = (0..12_000).map(|line| format!("{line:06} ")).collect();
    let input = TempFile::new("input", format!("{text}q").as_bytes());
    let output = TempFile::new("output", b"");
    let lines = TempFile::new("lines", b"");
    let mut child = Command::new(bantam())
        .args(["run", guest::elf().to_str().unwrap(), "-v"])
        .args(["--append", "do=echo", "--time-limit", "120s"])
        .stdin(File::open(input.path()).unwrap())
        .stdout(File::create(output.path()).unwrap())
        .stderr(File::create(lines.path()).unwrap())
        .spawn()
        .unwrap();
    let status = common::wait(&mut child, Duration::from_secs(150)).expect("it ends");
    status.is(0);
    let seen = std::fs::read_to_string(output.path()).unwrap();
    assert_eq!(seen, format!("echo\n{text}"));
    let said = std::fs::read_to_string(lines.path()).unwrap();
    assert_eq!(said, "bantam: info: the guest powered off\n");
}
