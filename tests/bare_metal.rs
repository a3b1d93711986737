//! The bare-metal guest on whatever /dev/kvm there is: entries, ports, rings, and every end.

mod common;

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bantam::machine::host::{Backend, backend};
use common::{Outcome, TempFile, bantam, guest, run, run_with};
use libtest_mimic::Arguments;

fn main() {
    let args = Arguments::from_args();
    let missing = common::kvm().err();
    let tests: [(&str, fn()); 21] = [
        ("entry_by_the_64_bit_linux_protocol", entry_linux64),
        ("entry_by_pvh", entry_pvh),
        ("entry_of_a_bzimage_in_64_and_32_bits", entry_bzimage),
        ("an_initrd_is_where_the_guest_is_told", initrd),
        ("memory_above_4_gib_is_in_the_map", large_memory),
        ("memory_of_every_backing_works_or_is_refused", backings),
        ("ports_and_mmio_answer", ports),
        ("the_block_device_obeys_the_specification", block),
        ("a_read_only_disk_is_not_written", block_read_only),
        ("many_requests_at_once_by_every_engine", block_many),
        ("broken_rings_need_a_reset", block_broken),
        ("rate_limits_are_not_exceeded", block_limits),
        ("every_kind_of_reset_is_a_success", resets),
        ("a_crash_shows_registers_and_code", triple_fault),
        ("a_panic_is_a_crash", panic),
        ("the_time_limit_ends_a_guest", time_limit),
        ("threads_that_the_host_refuses_are_an_error", no_threads),
        ("signals_press_the_button_and_then_end", signals),
        ("input_is_echoed_and_its_end_is_no_error", echo),
        ("a_flood_of_input_costs_no_memory", input_flood),
        (
            "a_slow_reader_loses_nothing_and_a_closed_pipe_is_no_error",
            output,
        ),
    ];
    let trials = tests.map(|(name, test)| common::trial(name, missing.as_deref(), test));
    libtest_mimic::run(&args, trials.into()).exit();
}

/// Runs the guest with `do=wish` and more words.
fn wish(wish: &str, more: &[&str]) -> Outcome {
    wish_of(guest::elf().to_str().unwrap(), wish, more)
}

fn wish_of(image: &str, wish: &str, more: &[&str]) -> Outcome {
    let append = format!("do={wish}");
    let mut args = vec!["run", image, "--append", &append, "--time-limit", "30s"];
    args.extend(more);
    run(&args)
}

/// The guest reports "ok ..." or "WRONG ..." line by line.
fn all_ok(outcome: &Outcome, at_least: usize) {
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let wrong: Vec<_> = outcome
        .stdout
        .lines()
        .filter(|line| line.starts_with("WRONG"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let ok = outcome.stdout.matches("ok ").count();
    assert!(ok >= at_least, "only {ok} checks: {outcome:?}");
}

const LONG_MODE: &str = "width 64 cr0 0x80000011 cr4 0x20 cs 0x10 ds 0x18 flags 0x2";
const PROTECTED_MODE: &str = "width 32 cr0 0x11 cr4 0x0 cs 0x10 ds 0x18 flags 0x2";
/// "RSD PTR " as a number.
const RSDP: &str = "rsdp 0x2052545020445352";

fn says(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    for word in words {
        assert!(outcome.stdout.contains(word), "no '{word}' in {outcome:?}");
    }
}

fn entry_linux64() {
    let outcome = wish("entry", &["--protocol", "linux"]);
    says(
        &outcome,
        &[
            LONG_MODE,
            "zero page 0x53726448 e820 0x3",
            RSDP,
            "command line console=ttyS0",
        ],
    );
}

fn entry_pvh() {
    for more in [&["--protocol", "pvh"][..], &[]] {
        let outcome = wish("entry", more);
        says(
            &outcome,
            &[
                PROTECTED_MODE,
                "pvh magic 0x336ec578 memmap 0x3 modules 0x0",
                RSDP,
            ],
        );
    }
}

fn entry_bzimage() {
    for (entry_64, mode) in [(true, LONG_MODE), (false, PROTECTED_MODE)] {
        let image = TempFile::new("bzImage", &guest::bzimage(entry_64));
        let outcome = wish_of(image.str(), "entry", &[]);
        says(&outcome, &[mode, "zero page 0x53726448", RSDP, "do=entry"]);
    }
    // Linux 2.4.0, 2.6.14, 2.6.20, 2.6.22, 2.6.26, 2.6.30, 2.6.31: only the newest of these could
    // say how much memory they need, and none had a 64-bit entry.
    for version in [0x0202, 0x0204, 0x0205, 0x0206, 0x0208, 0x0209, 0x020a] {
        let image = TempFile::new("old-bzImage", &guest::bzimage_of(version, true));
        let outcome = wish_of(image.str(), "entry", &["--memory", "64M"]);
        let seen = [PROTECTED_MODE, "zero page 0x53726448", RSDP, "do=entry"];
        says(&outcome, &seen);
    }
}

fn initrd() {
    let initrd = TempFile::new("initrd", b"RDINITRD and so on");
    let outcome = wish("entry", &["--protocol", "linux", "--initrd", initrd.str()]);
    says(&outcome, &["initrd 0x12 starting 0x4e494452"]);
    let outcome = wish("entry", &["--protocol", "pvh", "--initrd", initrd.str()]);
    says(&outcome, &["modules 0x1"]);
}

fn backings() {
    let shared = wish("hello", &["--memory-backing", "shared"]);
    assert_eq!(shared.code(), 0, "{shared:?}");
    assert!(shared.stdout.contains("hello"), "{shared:?}");

    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"))
        .map_or(0, |pages| pages.trim().parse().unwrap());
    let huge = wish("hello", &["--memory-backing=hugetlbfs", "--memory=16M"]);
    if free >= 8 {
        assert_eq!(huge.code(), 0, "{huge:?}");
    } else {
        assert_eq!(huge.code(), 3, "{huge:?}");
        assert!(huge.stderr.contains("sysctl vm.nr_hugepages=8"), "{huge:?}");
    }
    let odd = wish("hello", &["--memory-backing=hugetlbfs", "--memory=15M"]);
    assert_eq!(odd.code(), 2, "{odd:?}");
    assert!(odd.stderr.contains("give 16M"), "{odd:?}");
}

fn large_memory() {
    let outcome = wish("entry", &["--protocol", "linux", "--memory", "5G"]);
    says(&outcome, &["e820 0x4"]);
}

fn ports() {
    let outcome = wish("ports", &[]);
    all_ok(&outcome, 10);
    assert!(outcome.stdout.contains("string output\n"));
}

fn disk() -> TempFile {
    TempFile::new("disk.img", &vec![0; 1 << 20])
}

fn block() {
    let disk = disk();
    let outcome = wish(
        "block",
        &["--disk", &format!("{},serial=bantam-1", disk.str())],
    );
    all_ok(&outcome, 18);
    says(&outcome, &["capacity 2048\n", "serial bantam-1\n"]);
    let bytes = std::fs::read(disk.path()).unwrap();
    assert!(
        bytes[..4096].iter().all(|b| *b == 0),
        "sector 0 is untouched"
    );
    assert!(
        bytes[4096..8192].iter().any(|b| *b != 0),
        "sector 8 is written"
    );
    assert!(
        bytes[8192..].iter().all(|b| *b == 0),
        "the rest is untouched"
    );
}

fn block_read_only() {
    let disk = disk();
    let outcome = wish("block", &["--disk", &format!("{},ro", disk.str())]);
    assert!(
        outcome.stdout.contains("WRONG a write is done"),
        "{outcome:?}"
    );
    assert!(std::fs::read(disk.path()).unwrap().iter().all(|b| *b == 0));
}

/// A disk image of 1 MiB in the build folder, which is no tmpfs: those have no direct I/O on
/// older kernels.
fn real_disk(name: &str) -> String {
    let (folder, id) = (env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let path = format!("{folder}/{id}-{name}");
    let _ = std::fs::remove_file(&path);
    let made = run(&["image", "create", &path, "1M"]);
    assert_eq!(made.code(), 0, "{made:?}");
    path
}

/// Many requests at once, and resets with some in flight, by every engine.
fn block_many() {
    for options in [
        "",
        ",io=threads",
        ",cache=direct",
        ",cache=direct,io=threads",
        ",iothread",
        ",cache=direct,iothread",
        ",limit-iops=20000,limit-bw=200M",
    ] {
        let path = real_disk("many.raw");
        let disk = format!("{path}{options}");
        all_ok(&wish("block-many", &["--disk", &disk]), 11);
        std::fs::remove_file(path).unwrap();
    }
    for options in ["", ",cache=direct", ",iothread"] {
        let path = real_disk("many.qcow2");
        let disk = format!("{path},format=qcow2{options}");
        all_ok(&wish("block-many", &["--disk", &disk]), 11);
        std::fs::remove_file(path).unwrap();
    }
}

/// How near to the limit it comes is for `make bench` to say; that it never exceeds it, for this.
fn block_limits() {
    let (requests, rate) = (600, 400);
    for limit in ["limit-iops=400", "limit-bw=1600k"] {
        let path = real_disk("limited.raw");
        let words = format!(
            "base=3489660928 step=4096 places=16 bytes=4096 depth=8 count={requests} write"
        );
        let mut vmm = Command::new(bantam())
            .args(["run", guest::elf().to_str().unwrap()])
            .args(["--append", &format!("do=disk {words}{}", ring_word())])
            .args(["--disk", &format!("{path},{limit}"), "--time-limit", "60s"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        let stdout = vmm.stdout.as_mut().unwrap();
        let mut start = Instant::now();
        while byte != *b")" && stdout.read_exact(&mut byte).is_ok() {
            text.push(byte[0]);
            if byte == *b"(" {
                start = Instant::now();
            }
        }
        let took = start.elapsed().as_secs_f64();
        let _ = vmm.kill();
        let _ = vmm.wait();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("failed=0"), "{limit}: {text}");
        let least = f64::from(requests) / f64::from(rate) * 0.95;
        assert!(took > least, "{limit}: {requests} requests in {took} s");
        std::fs::remove_file(path).unwrap();
    }
}

/// How the guest gets to ring 3.
fn ring_word() -> &'static str {
    match backend() {
        Backend::Pvm => "",
        _ => " ring=iret",
    }
}

fn block_broken() {
    let disk = disk();
    all_ok(&wish("block-broken", &["--disk", disk.str()]), 7);
}

fn resets() {
    for how in [
        "acpi-reset",
        "kbd-reset",
        "cf9-reset",
        "flag-reset",
        "idt-reset",
    ] {
        let outcome = wish(how, &["-v"]);
        if how == "idt-reset" && backend() == Backend::Svm {
            // There, KVM has reset the vCPU before anybody can look at its IDT.
            assert_eq!(outcome.code(), 4, "{how}: {outcome:?}");
            continue;
        }
        assert_eq!(outcome.code(), 0, "{how}: {outcome:?}");
        assert!(outcome.stderr.contains("asked for a reset"), "{outcome:?}");
    }
}

fn triple_fault() {
    let outcome = wish("triple-fault", &[]);
    assert_eq!(outcome.code(), 4, "{outcome:?}");
    for word in [
        "rip 0",
        "cr3 0",
        "code at rip:",
        "error: vcpu0 crashed: triple fault",
        "help: ",
    ] {
        assert!(outcome.stderr.contains(word), "no '{word}' in {outcome:?}");
    }
}

fn panic() {
    let outcome = wish("panic", &[]);
    assert_eq!(outcome.code(), 4, "{outcome:?}");
    assert!(outcome.stderr.contains("the guest's kernel panicked"));
}

/// clone3(2) fails from the n-th call on, by fault injection: the first vCPU's thread, the second's.
fn no_threads() {
    for (from, what) in [(1, "start a thread"), (2, "start a vCPU thread")] {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e"]);
        command.arg(format!("inject=clone3:error=EAGAIN:when={from}+"));
        command.args([bantam(), "run", guest::elf().to_str().unwrap(), "--cpus=2"]);
        let outcome = run_with(command, b"", Duration::from_secs(30));
        assert_eq!(outcome.code(), 3, "{outcome:?}");
        assert_eq!(outcome.stdout, "", "no guest has run");
        for words in [what, "ulimit -u"] {
            assert!(
                outcome.stderr.contains(words),
                "no '{words}' in {outcome:?}"
            );
        }
        assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:?}");
    }
}

fn time_limit() {
    for how in ["halt", "deaf"] {
        let outcome = wish(how, &["--time-limit", "300ms", "--cpus", "2"]);
        assert_eq!(outcome.code(), 6, "{outcome:?}");
        assert!(
            outcome
                .stderr
                .starts_with("error: ended by the time limit\nhelp: ")
        );
    }
}

fn signals() {
    // The guest has no driver for the button, so a second signal is needed.
    let mut child = Command::new(bantam())
        .args(["run", guest::elf().to_str().unwrap(), "--append", "do=echo"])
        .args(["--time-limit", "30s", "-v"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // "echo\n" says that the guest runs, so that the signals are being watched.
    let mut first = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    for _ in 0..2 {
        assert_eq!(child.try_wait().unwrap(), None);
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        std::thread::sleep(Duration::from_millis(300));
    }
    let status = common::wait(&mut child, Duration::from_secs(5)).expect("it ends");
    assert_eq!(status.code(), Some(5));
}

fn echo() {
    let mut command = Command::new(bantam());
    command.args(["run", guest::elf().to_str().unwrap(), "--append", "do=echo"]);
    // 1000 bytes are more than the FIFO takes; no escape keys on a pipe.
    let mut text = "0123456789".repeat(100);
    text.push_str("\x01x");
    let outcome = run_with(
        command,
        format!("{text}q").as_bytes(),
        Duration::from_secs(30),
    );
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert_eq!(outcome.stdout, format!("echo\n{text}"));
    let outcome = wish("halt", &["--time-limit", "300ms"]);
    assert_eq!(outcome.code(), 6, "an end of input alone ends nothing");
}

fn input_flood() {
    let mut child = Command::new(bantam())
        .args(["run", guest::elf().to_str().unwrap(), "--append", "do=deaf"])
        .args(["--time-limit", "20s"])
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status_of = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = |pid| {
        let text = status_of(pid);
        let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    std::thread::sleep(Duration::from_millis(500));
    let before = resident(child.id());
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let after = resident(child.id());
    let _ = child.kill();
    let _ = child.wait();
    assert!(
        after <= before + 1024,
        "grew from {before} to {after} KiB in {:?}",
        started.elapsed()
    );
}

fn output() {
    use std::io::Read;
    let start = || {
        Command::new(bantam())
            .args([
                "run",
                guest::elf().to_str().unwrap(),
                "--append",
                "do=flood",
            ])
            .args(["--time-limit", "60s"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // Reads nothing for a while, then everything: nothing is lost, as the guest was made to wait.
    let mut slow = start();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(
        slow.try_wait().unwrap(),
        None,
        "the guest waits for its reader"
    );
    let mut text = String::new();
    slow.stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(slow.wait().unwrap().code(), Some(0));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4096);
    for (n, line) in lines.iter().enumerate() {
        assert!(
            line.starts_with(&format!("flood {n:#x}.")),
            "line {n}: {line}"
        );
    }
    // Closes the pipe: the guest goes on to its end.
    let mut closed = start();
    drop(closed.stdout.take());
    let status = common::wait(&mut closed, Duration::from_secs(30)).expect("it ends");
    assert_eq!(status.code(), Some(0));
}
