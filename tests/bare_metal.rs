//! The bare-metal guest on whatever /dev/kvm there is: entries, ports, rings, and every end.

mod common;

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bantam::machine::host::{Backend, backend};
use common::bare::{self, ENGINES, all_ok, command_of, ring_word, says, wish};
use common::trials::{each, exit_after, trials};
use common::{Outcome, TempFile, bantam, guest, resident_kib, run, run_with};

fn main() {
    let missing = common::kvm().err();
    let missing = missing.as_deref();
    let tests: [(&str, fn()); 16] = [
        ("entry_by_the_64_bit_linux_protocol", entry_linux64),
        ("entry_by_pvh", entry_pvh),
        ("an_initrd_is_where_the_guest_is_told", initrd),
        ("memory_above_4_gib_is_in_the_map", large_memory),
        ("memory_of_every_backing_works_or_is_refused", backings),
        ("ports_and_mmio_answer", ports),
        ("the_block_device_obeys_the_specification", block),
        ("a_read_only_disk_is_not_written", block_read_only),
        ("broken_rings_need_a_reset", block_broken),
        ("a_crash_shows_registers_and_code", triple_fault),
        ("a_panic_is_a_crash", panic),
        ("signals_press_the_button_and_then_end", signals),
        ("input_is_echoed_and_its_end_is_no_error", echo),
        ("a_flood_of_input_costs_no_memory", input_flood),
        ("a_slow_reader_loses_nothing", slow_reader),
        ("a_closed_pipe_is_no_error", closed_pipe),
    ];
    let mut trials = trials(missing, tests);
    let no_strace = (!common::has_program("strace")).then_some("strace is not installed");
    trials.push(common::trials::trial(
        "threads_that_the_host_refuses_are_an_error",
        missing.or(no_strace),
        no_threads,
    ));
    let modes = [("64_bits", true), ("32_bits", false)];
    trials.extend(each("entry_of_a_bzimage_in", modes, missing, entry_bzimage));
    trials.extend(each("entry_of", OLD_KERNELS, missing, entry_old_bzimage));
    let raw = ENGINES.into_iter().chain([
        ("direct_io_thread", ",cache=direct,iothread"),
        ("limits", ",limit-iops=20000,limit-bw=200M"),
    ]);
    trials.extend(each("many_requests_at_once_raw", raw, missing, |options| {
        block_many("raw", options);
    }));
    let qcow2 = ENGINES
        .into_iter()
        .filter(|(_, options)| !options.contains("threads"));
    trials.extend(each(
        "many_requests_at_once_qcow2",
        qcow2,
        missing,
        |options| {
            block_many("qcow2", options);
        },
    ));
    let limits = [("requests", "limit-iops=400"), ("bytes", "limit-bw=1600k")];
    trials.extend(each(
        "a_limit_is_not_exceeded_of",
        limits,
        missing,
        block_limits,
    ));
    let resets = RESETS;
    trials.extend(each("a_reset_is_a_success_by", resets, missing, reset));
    let still = [("halts", "halt"), ("spins", "deaf")];
    trials.extend(each(
        "the_time_limit_ends_a_guest_that",
        still,
        missing,
        time_limit,
    ));
    exit_after(trials);
}

fn wish_of(image: &str, wish: &str, more: &[&str]) -> Outcome {
    run_with(command_of(image, wish, more), b"", Duration::from_secs(90))
}

const LONG_MODE: &str = "width 64 cr0 0x80000011 cr4 0x20 cs 0x10 ds 0x18 flags 0x2";
const PROTECTED_MODE: &str = "width 32 cr0 0x11 cr4 0x0 cs 0x10 ds 0x18 flags 0x2";
/// "RSD PTR " as a number.
const RSDP: &str = "rsdp 0x2052545020445352";

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

fn entry_bzimage(entry_64: bool) {
    let mode = match entry_64 {
        true => LONG_MODE,
        false => PROTECTED_MODE,
    };
    let image = TempFile::new("bzImage", &guest::bzimage(entry_64));
    let outcome = wish_of(image.str(), "entry", &[]);
    says(&outcome, &[mode, "zero page 0x53726448", RSDP, "do=entry"]);
}

/// Kernels by their boot protocols. Only the newest of these could say how much memory they need, and
/// none had a 64-bit entry.
const OLD_KERNELS: [(&str, u16); 7] = [
    ("linux_2_4_0", 0x0202),
    ("linux_2_6_14", 0x0204),
    ("linux_2_6_20", 0x0205),
    ("linux_2_6_22", 0x0206),
    ("linux_2_6_26", 0x0208),
    ("linux_2_6_30", 0x0209),
    ("linux_2_6_31", 0x020a),
];

fn entry_old_bzimage(version: u16) {
    let image = TempFile::new("old-bzImage", &guest::bzimage_of(version, true));
    let outcome = wish_of(image.str(), "entry", &["--memory", "64M"]);
    let seen = [PROTECTED_MODE, "zero page 0x53726448", RSDP, "do=entry"];
    says(&outcome, &seen);
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
    all_ok(&outcome, 11);
    assert!(outcome.stdout.contains("string output\n"), "{outcome:?}");
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
    all_ok(&outcome, 19);
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
    let outcome = wish(
        "block-read-only",
        &["--disk", &format!("{},ro", disk.str())],
    );
    all_ok(&outcome, 6);
    assert!(std::fs::read(disk.path()).unwrap().iter().all(|b| *b == 0));
}

/// A disk image of 1 MiB.
fn real_disk(format: &str) -> TempFile {
    let file = TempFile::on_disk("disk");
    let made = run(&["image", "create", "-f", format, file.str(), "1M"]);
    assert_eq!(made.code(), 0, "{made:?}");
    file
}

/// Many requests at once, and resets with some in flight.
fn block_many(format: &str, options: &str) {
    let file = real_disk(format);
    let disk = format!("{},format={format}{options}", file.str());
    all_ok(&wish("block-many", &["--disk", &disk]), 11);
}

/// How near to the limit it comes is for `make bench` to say; that it never exceeds it, for this.
fn block_limits(limit: &str) {
    let (requests, rate) = (600, 400);
    let file = real_disk("raw");
    let words =
        format!("base=3489660928 step=4096 places=16 bytes=4096 depth=8 count={requests} write");
    let disk = format!("{},{limit}", file.str());
    let mut vmm = bare::command(&format!("disk {words}{}", ring_word()), &["--disk", &disk])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = Vec::new();
    let mut byte = [0];
    let stdout = vmm.stdout.as_mut().unwrap();
    let mut start = None;
    while byte != *b")" && stdout.read_exact(&mut byte).is_ok() {
        text.push(byte[0]);
        if byte == *b"(" {
            start = Some(Instant::now());
        }
    }
    let took = start.map(|start| start.elapsed().as_secs_f64());
    let _ = vmm.kill();
    let _ = vmm.wait();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("failed=0") && text.ends_with(')'), "{text}");
    let least = f64::from(requests) / f64::from(rate) * 0.95;
    let took = took.expect("the guest says when it begins");
    assert!(took > least, "{requests} requests in {took} s");
}

fn block_broken() {
    let disk = disk();
    all_ok(&wish("block-broken", &["--disk", disk.str()]), 7);
}

const RESETS: [(&str, &str); 5] = [
    ("acpi", "acpi-reset"),
    ("the_keyboard_controller", "kbd-reset"),
    ("port_0xcf9", "cf9-reset"),
    ("a_triple_fault_after_the_flag", "flag-reset"),
    ("a_triple_fault_without_an_idt", "idt-reset"),
];

fn reset(how: &str) {
    let outcome = wish(how, &["-v"]);
    if how == "idt-reset" && backend() == Backend::Svm {
        // There, KVM has reset the vCPU before anybody can look at its IDT.
        assert_eq!(outcome.code(), 4, "{outcome:?}");
        return;
    }
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stderr.contains("asked for a reset"), "{outcome:?}");
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
    let said = "the guest's kernel panicked";
    assert!(outcome.stderr.contains(said), "{outcome:?}");
}

/// clone3(2) fails from the n-th call on, by fault injection: the first vCPU's thread, the second's.
fn no_threads() {
    for (from, what) in [(1, "start a thread"), (2, "start a vCPU thread")] {
        let rule = format!("clone3:error=EAGAIN:when={from}+");
        let mut command = common::with_failing(&rule, &[]);
        command.args(["run", guest::elf().to_str().unwrap(), "--cpus=2"]);
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

fn time_limit(how: &str) {
    let outcome = wish(how, &["--time-limit", "300ms", "--cpus", "2"]);
    assert_eq!(outcome.code(), 6, "{outcome:?}");
    let said = "error: ended by the time limit\nhelp: ";
    assert!(outcome.stderr.starts_with(said), "{outcome:?}");
}

fn signals() {
    // The guest has no driver for the button, so a second signal is needed.
    let mut child = common::at_work(bare::command("echo", &["-v"]), "echo\n");
    for _ in 0..2 {
        assert_eq!(child.try_wait().unwrap(), None);
        common::signal(&child, libc::SIGTERM);
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
    let mut child = bare::command("deaf", &[])
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let before = resident_kib(child.id());
    std::thread::sleep(Duration::from_secs(1));
    let after = resident_kib(child.id());
    assert_eq!(child.try_wait().unwrap(), None, "the machine runs");
    let _ = child.kill();
    let _ = child.wait();
    let more = after.saturating_sub(before);
    assert!(more <= 1024, "{more} KiB more than {before} in a second");
}

/// The guest writes 4096 long lines, and ends.
fn flood() -> Child {
    bare::command("flood", &[])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Reads nothing for a while, then everything.
fn slow_reader() {
    let mut slow = flood();
    std::thread::sleep(Duration::from_millis(1500));
    let ended = slow.try_wait().unwrap();
    assert_eq!(ended, None, "the guest waits for its reader");
    let mut text = String::new();
    let mut stdout = slow.stdout.take().unwrap();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(slow.wait().unwrap().code(), Some(0));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4096);
    for (n, line) in lines.iter().enumerate() {
        let start = format!("flood {n:#x}.");
        assert!(line.starts_with(&start), "line {n}: {line}");
    }
}

/// The guest goes on to its end.
fn closed_pipe() {
    let mut closed = flood();
    drop(closed.stdout.take());
    let status = common::wait(&mut closed, Duration::from_secs(30)).expect("it ends");
    assert_eq!(status.code(), Some(0));
}
