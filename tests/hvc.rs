//! The virtio console: a guest whose terminal has the size of the user's, on pseudo-terminals of known size.
//!
//! The guests are real kernels, on this host's KVM or in the lab (tests/common/lab.rs).

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::linux::{LIMIT, contains, missing, path, script};
use common::pty::{self, Session};
use common::trials::trial;
use common::{bantam, lab};
use libtest_mimic::Trial;

fn main() {
    lab::main(
        missing(&["vmlinux", "initramfs.cpio.gz", "stock/vmlinuz"]),
        trials,
    )
}

fn trials(ignored: Option<&str>) -> Vec<Trial> {
    let tests: [(&str, fn()); 11] = [
        ("the_guests_terminal_follows_the_size_of_ours", size),
        ("a_boot_log_is_shown_once_and_whole", log),
        ("a_console_of_the_users_words_is_the_users", words),
        ("a_serial_console_is_the_serial_port_alone", serial),
        ("a_pipe_sees_no_virtio_console", pipe),
        ("a_kernel_with_the_driver_as_a_module_has_none", module),
        ("a_forced_one_works_on_a_pipe", forced),
        ("a_pasted_file_arrives_whole", paste),
        ("ctrl_a_x_works_with_a_guest_that_does_not_read", deaf),
        ("a_reader_who_stops_does_not_stop_the_guest", unread),
        ("a_pty_has_its_size_looked_at_with_each_key", pty_console),
    ];
    let tests = tests.into_iter();
    tests
        .map(|(name, test)| trial(name, ignored, test))
        .collect()
}

/// A shell of the test kernel on a terminal of 100 columns and 40 rows.
fn shell(words: &[&str]) -> Session {
    let (kernel, initrd) = (path("vmlinux"), path("initramfs.cpio.gz"));
    let args = [&kernel, "--initrd", &initrd, "--time-limit", LIMIT];
    let mut session = Session::sized(&[&args[..], words].concat(), (100, 40));
    session.patience = Duration::from_secs(60);
    session.expect(":/# ");
    session
}

/// What a command prints, up to its mark.
fn ask(session: &mut Session, command: &str) -> String {
    session.forget();
    session.send(format!("{command}; echo e'n'd=$?.\r").as_bytes());
    session.expect("end=");
    session.seen().to_owned()
}

fn power_off(mut session: Session) {
    session.send(b"poweroff\r");
    assert_eq!(session.finish().code(), Some(0), "{}", session.seen());
}

fn size() {
    let mut session = shell(&["--append", "quiet"]);
    contains(&ask(&mut session, "stty size"), &["40 100"]);
    contains(&ask(&mut session, "tty"), &["/dev/hvc0"]);
    session.forget();
    session.send(
        b"sh -c 'trap \"echo winch=\\$(stty size); exit 0\" WINCH; echo ar'm'ed; while :; do sleep 1; done'\r",
    );
    session.expect("armed");
    session.resize((132, 50));
    session.expect("winch=50 132");
    contains(&ask(&mut session, "stty size"), &["50 132"]);
    session.resize((20, 10));
    session.resize((80, 24));
    std::thread::sleep(Duration::from_secs(1));
    contains(&ask(&mut session, "stty size"), &["24 80"]);
    power_off(session);
}

fn log() {
    let session = shell(&[]);
    let seen = session.seen().replace('\r', "");
    contains(
        &seen,
        &[
            "Linux version",
            "console [ttyS0] enabled",
            "console [hvc0] enabled",
            "as init process",
            "bantam-guest: ready",
        ],
    );
    let stamped: Vec<&str> = seen.lines().filter(|line| line.starts_with('[')).collect();
    assert!(stamped.len() > 50, "{seen}");
    for (at, line) in stamped.iter().enumerate() {
        assert!(!stamped[..at].contains(line), "twice: {line} in {seen}");
    }
    power_off(session);
}

fn words() {
    // As it was before there was a virtio console: what they have named is what they see.
    let mut session = shell(&["--append", "quiet console=ttyS0"]);
    let said = ask(&mut session, "tty; cat /sys/class/tty/console/active");
    contains(&said, &["/dev/ttyS0", "\nttyS0\r"]);
    power_off(session);
    let mut session = shell(&["--cmdline", "quiet panic=-1 console=hvc0"]);
    let said = ask(
        &mut session,
        "tty; cat /sys/class/tty/console/active; stty size",
    );
    contains(&said, &["/dev/hvc0", "\nhvc0\r", "40 100"]);
    power_off(session);
}

fn serial() {
    let mut session = shell(&["--append", "quiet", "--console", "serial"]);
    let said = ask(&mut session, "tty; cat /proc/cmdline");
    contains(&said, &["/dev/ttyS0"]);
    assert!(!said.contains("hvc0"), "{said}");
    let drivers = "ls /sys/bus/virtio/drivers/virtio_console";
    assert!(!ask(&mut session, drivers).contains("virtio0"));
    power_off(session);
}

fn pipe() {
    let out = script(
        "cat /proc/cmdline; ls /sys/bus/virtio/devices; echo active=$(cat /sys/class/tty/console/active)",
        &[],
    );
    assert!(!out.contains("hvc0") && !out.contains("virtio0"), "{out}");
    contains(&out, &["active=ttyS0\n"]);
}

fn module() {
    let plan = |kernel: &str| {
        let kernel = path(kernel);
        let mut session = Session::start(&[&kernel, "--dry-run", "--console", "pty"]);
        session.patience = Duration::from_secs(60);
        session.expect("devices");
        assert_eq!(session.finish().code(), Some(0));
        session.catch_up().to_owned()
    };
    assert!(!plan("stock/vmlinuz").contains("hvc0"));
    let built_in = plan("vmlinux");
    contains(
        &built_in,
        &[
            "pseudo-terminal, ttyS0 until the guest uses hvc0",
            "console=hvc0",
            "virtio-console, hvc0",
        ],
    );
}

fn forced() {
    let out = script(
        "cat /proc/cmdline; echo active=$(cat /sys/class/tty/console/active)",
        &["--console", "virtio"],
    );
    contains(&out, &["active=ttyS0 hvc0\n", "console=hvc0"]);
    let version = "Linux version";
    assert_eq!(out.matches(version).count(), 1, "{out}");
}

fn paste() {
    let mut session = shell(&["--append", "quiet"]);
    let lines = (0..256).map(|n| format!("{n:063}\n"));
    let text = lines.collect::<String>();
    assert_eq!(text.len(), 16 * 1024);
    let mut sum = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    sum.stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let sum = sum.wait_with_output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    session.forget();
    session.send(b"stty -echo; echo re'a'dy; head -c 16384 | md5sum; stty echo\r");
    session.expect("ready");
    session.paste(text.as_bytes());
    session.expect(sum.split_whitespace().next().unwrap());
    power_off(session);
}

fn deaf() {
    let mut session = shell(&["--append", "quiet"]);
    session.forget();
    session.send(b"stty raw -echo; echo re'a'dy; sleep 1000\r");
    session.expect("ready");
    session.paste(&vec![b'x'; 300_000]);
    session.expect("the guest takes no input");
    session.send(b"\x01x");
    assert_eq!(session.finish().code(), Some(0));
}

fn unread() {
    let mut session = shell(&["--append", "quiet"]);
    session.send(b"tr '\\0' x </dev/zero | head -c 1000000\r");
    // Nobody reads the pseudo-terminal.
    std::thread::sleep(Duration::from_secs(12));
    session.expect("bytes were lost while nobody read them");
    // What of it came too late to be seen does not matter: the guest has gone on.
    contains(&ask(&mut session, "dmesg | grep -ci lockup"), &["\n0\r"]);
    // Ctrl-a x is heard although nobody reads.
    session.send(b"tr '\\0' x </dev/zero | head -c 9000000\r");
    std::thread::sleep(Duration::from_secs(2));
    session.send(b"\x01x");
    std::thread::sleep(Duration::from_secs(4));
    // The terminal is read again for the last message alone: what waits there is less than was to come.
    session.expect("bantam: terminated");
    assert_eq!(session.finish().code(), Some(0));
    assert!(session.seen().len() < 1_000_000);
}

fn pty_console() {
    let mut command = Command::new(bantam());
    command
        .args([
            "run",
            &path("vmlinux"),
            "--initrd",
            &path("initramfs.cpio.gz"),
        ])
        .args([
            "--append",
            "quiet",
            "--console",
            "pty",
            "--time-limit",
            LIMIT,
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    let name = line.trim().strip_prefix("console: ").unwrap();
    let mut console = File::options().read(true).write(true).open(name).unwrap();
    let mut seen = String::new();
    let mut expect = |console: &mut File, text: &str| {
        let end = Instant::now() + Duration::from_secs(60);
        let mut bytes = [0; 4096];
        while !seen.contains(text) {
            assert!(Instant::now() < end, "no {text} in {seen}");
            let count = console.read(&mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        seen.clear();
    };
    expect(&mut console, ":/# ");
    pty::resize(&console, (90, 30));
    console.write_all(b"\r").unwrap();
    expect(&mut console, ":/# ");
    console.write_all(b"sleep 1; stty size\r").unwrap();
    expect(&mut console, "30 90");
    console.write_all(b"poweroff\r").unwrap();
    assert!(common::wait(&mut child, Duration::from_secs(60)).is_some());
}
