//! What a start finds before the guest runs: limits of the host, rights, a console that cannot be
//! written, a KVM that the kernel does not boot on. `--dry-run` finds the same.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::pty::Session;
use common::{Outcome, TempFile, bantam, guest, run, run_with, set_limit};
use libtest_mimic::Arguments;

const START: i32 = 3;
const QEMU: &str = "qemu-system-x86_64";

fn main() {
    let args = Arguments::from_args();
    let missing = common::kvm().err();
    let tests: [(&str, fn()); 8] = [
        ("no_reboot_means_what_qemu_means", no_reboot),
        ("check_says_which_limit_is_too_low", check),
        ("too_few_open_files_are_one_clear_error", open_files),
        ("too_little_address_space_is_one_clear_error", address_space),
        ("the_terminal_comes_back_whatever_was_missing", terminal),
        ("dry_run_finds_what_a_start_would", dry_run),
        ("dry_run_leaves_no_trace", no_trace),
        ("stock_kernels_on_pvm_are_refused_before_they_start", pvm),
    ];
    let trials = tests.map(|(name, test)| common::trial(name, missing.as_deref(), test));
    let mut trials = Vec::from(trials);
    let no_strace = (!common::has_program("strace")).then_some("strace is not installed");
    trials.push(common::trial(
        "each_call_of_kvm_that_fails_is_one_clear_error",
        missing.as_deref().or(no_strace),
        failing_calls,
    ));
    let no_qemu = (!common::has_program(QEMU)).then_some("QEMU is not installed");
    trials.push(common::trial(
        "sizes_and_topologies_are_what_qemu_makes_of_them",
        missing.as_deref().or(no_qemu),
        like_qemu,
    ));
    libtest_mimic::run(&args, trials).exit();
}

fn kernel() -> &'static str {
    guest::elf().to_str().unwrap()
}

/// `bantam` with a limit of setrlimit(2).
fn limited(args: &[&str], resource: libc::__rlimit_resource_t, value: u64) -> Outcome {
    let mut command = Command::new(bantam());
    command.args(args);
    // SAFETY: setrlimit is async-signal-safe.
    unsafe { command.pre_exec(move || set_limit(resource, value)) };
    run_with(command, b"", Duration::from_secs(60))
}

/// The guest has run, or two lines say what is missing and which limit to raise. True if it ran.
#[track_caller]
fn ran_or_said(outcome: &Outcome, limit: &str) -> bool {
    if outcome.status.code() == Some(0) {
        assert!(!outcome.stderr.contains("error"), "{outcome:?}");
        return true;
    }
    assert_eq!(outcome.status.code(), Some(START), "{outcome:?}");
    assert_eq!(outcome.stdout, "");
    let lines = outcome
        .stderr
        .lines()
        .filter(|line| !line.starts_with("console: "));
    let [error, help] = lines.collect::<Vec<_>>()[..] else {
        panic!("not two lines: {outcome:?}");
    };
    assert!(
        error.starts_with("error: ") && !error.contains("os error"),
        "{outcome:?}"
    );
    assert!(
        help.starts_with("help: ") && help.contains(limit),
        "{outcome:?}"
    );
    false
}

/// Three disks with everything that may need a descriptor or a thread, and their files.
fn rich() -> (Vec<TempFile>, Vec<String>) {
    let images: Vec<_> = (0..3)
        .map(|_| TempFile::new("disk.img", &[0; 1 << 20]))
        .collect();
    let options = ["", ",iothread,queues=2", ",io=threads"];
    let mut args: Vec<String> = ["--cpus", "4"].map(str::to_owned).into();
    for (image, options) in images.iter().zip(options) {
        args.extend(["--disk".to_owned(), format!("{}{options}", image.str())]);
    }
    (images, args)
}

fn open_files() {
    let (_images, rich) = rich();
    let rich: Vec<&str> = rich.iter().map(String::as_str).collect();
    let log = TempFile::new("log", b"");
    let to_file = format!("file={}", log.str());
    for more in [
        &[][..],
        &rich,
        &["--console", "pty"],
        &["--console", &to_file],
    ] {
        let mut ran = Vec::new();
        for files in 4..=60 {
            let args = [&["run", kernel(), "--time-limit", "30s"], more].concat();
            let outcome = limited(&args, libc::RLIMIT_NOFILE, files);
            ran.push(ran_or_said(&outcome, "ulimit -n"));
            let rehearsed = limited(
                &[&args[..], &["--dry-run"]].concat(),
                libc::RLIMIT_NOFILE,
                files,
            );
            assert!(
                matches!(rehearsed.status.code(), Some(0 | START)),
                "{rehearsed:?}"
            );
        }
        // Few are not enough, many are, and in between nothing goes back and forth.
        assert!(!ran[0] && ran[56], "{more:?}: {ran:?}");
        assert!(ran.is_sorted(), "{more:?}: {ran:?}");
    }
}

/// QEMU's -no-reboot: a guest that resets the machine ends it, whatever else was asked for.
fn no_reboot() {
    let config = TempFile::new("vm.toml", b"reboot = true\n");
    let resets = |more: &[&str]| {
        let args = [
            "run",
            kernel(),
            "--append",
            "do=kbd-reset",
            "--time-limit",
            "2s",
        ];
        run(&[&args[..], &["--config", config.str()], more].concat())
    };
    const TIME_LIMIT: i32 = 6;
    assert_eq!(resets(&[]).code(), TIME_LIMIT, "it starts again and again");
    for word in ["-no-reboot", "--no-reboot"] {
        assert_eq!(resets(&[word]).code(), 0, "{word}");
        assert_eq!(resets(&["--reboot", word]).code(), 0, "{word}");
    }
    assert_eq!(resets(&["-no-reboot", "--reboot"]).code(), TIME_LIMIT);
}

/// The nth ioctl of each thread fails, by fault injection into the real binary.
fn failing_calls() {
    let disk = TempFile::new("disk.img", &[0; 4096]);
    let mut named = std::collections::BTreeSet::new();
    for (errno, hint) in [("EINVAL", "help: "), ("ENOMEM", "no memory left")] {
        for nth in 1..=21 {
            let mut command = Command::new("strace");
            let inject = format!("inject=ioctl:error={errno}:when={nth}");
            command
                .args([
                    "-f",
                    "-qq",
                    "-o",
                    "/dev/null",
                    "-e",
                    "trace=ioctl",
                    "-e",
                    &inject,
                ])
                .args([
                    bantam(),
                    "run",
                    kernel(),
                    "--cpus",
                    "2",
                    "--disk",
                    disk.str(),
                ])
                .args(["--time-limit", "30s"]);
            let outcome = run_with(command, b"", Duration::from_secs(60));
            assert_eq!(outcome.code(), START, "{errno} {nth}: {outcome:?}");
            let lines: Vec<_> = outcome.stderr.lines().collect();
            assert!(
                lines.len() == 2 && lines[0].starts_with("error: "),
                "{nth}: {outcome:?}"
            );
            assert!(lines[1].starts_with("help: "), "{nth}: {outcome:?}");
            assert!(!lines[1].contains("--memory"), "{nth}: {outcome:?}");
            if let Some(call) = lines[0].strip_prefix("error: KVM_") {
                assert!(lines[1].contains(hint), "{nth}: {outcome:?}");
                named.insert(call.split(' ').next().unwrap().to_owned());
            }
        }
    }
    assert!(named.len() >= 8, "{named:?}");
}

/// The same words for QEMU, which is asked by its monitor what they mean, and for ours.
fn like_qemu() {
    for (smp, memory) in [
        ("4", "300"),
        ("8,sockets=2,cores=2,threads=2", "size=300"),
        ("8,sockets=2", "1G"),
        ("cpus=4,threads=2", "512M"),
        ("sockets=2,cores=2", "2048"),
    ] {
        let mut command = Command::new(QEMU);
        command.args([
            "-M",
            "pc",
            "-accel",
            "tcg",
            "-S",
            "-nodefaults",
            "-display",
            "none",
        ]);
        command.args(["-monitor", "stdio", "-smp", smp, "-m", memory]);
        let questions = b"info memory_size_summary\ninfo hotpluggable-cpus\nquit\n";
        let theirs = run_with(command, questions, Duration::from_secs(60));
        let distinct = |what: &str| {
            let lines = theirs.stdout.lines().map(str::trim);
            let ids = lines.filter(|line| line.starts_with(what));
            ids.collect::<std::collections::BTreeSet<_>>().len()
        };
        let plural = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let ids = ["socket", "core", "thread"].map(|id| (distinct(&format!("{id}-id:")), id));
        let [sockets, cores, threads] = ids.map(|(count, what)| plural(count, what));
        let bytes = theirs.stdout.lines().find_map(|line| {
            let text = line.trim().strip_prefix("base memory: ")?;
            text.parse::<u64>().ok()
        });
        let bytes = bytes.unwrap_or_else(|| panic!("{theirs:?}"));
        let ours = run(&["run", kernel(), "-smp", smp, "-m", memory, "--dry-run"]);
        assert_eq!(ours.code(), 0, "{ours:?}");
        for line in [
            format!("({sockets}, {cores}, {threads})\n"),
            format!("memory    {} MiB\n", bytes >> 20),
        ] {
            assert!(
                ours.stdout.contains(&line),
                "{smp} {memory}: no '{line}' in {ours:?}"
            );
        }
    }
}

fn check() {
    let outcome = limited(&["check"], libc::RLIMIT_NOFILE, 3);
    // Where even the program's libraries cannot be opened, nobody can say anything.
    if limited(&["--version"], libc::RLIMIT_NOFILE, 3)
        .status
        .code()
        == Some(0)
    {
        assert_eq!(outcome.code(), 1, "{outcome:?}");
        assert!(outcome.stdout.contains("ulimit -n"), "{outcome:?}");
    }
    assert_eq!(run(&["check"]).code(), 0);
}

fn address_space() {
    let (_images, rich) = rich();
    let rich: Vec<&str> = rich.iter().map(String::as_str).collect();
    for more in [
        &["--memory", "4M"][..],
        &[&rich[..], &["--memory", "4M"]].concat(),
    ] {
        let (mut said, mut ran) = (0, 0);
        for mib in (4..40).chain([48, 64, 100, 200, 1000]) {
            for kib in [0, 300, 700] {
                let bytes = (mib * 1024 + kib) * 1024;
                // Where the program itself cannot be loaded, nobody can say anything.
                let loads = limited(&["--version"], libc::RLIMIT_AS, bytes);
                if loads.status.code() != Some(0) {
                    continue;
                }
                let args = [&["run", kernel(), "--time-limit", "30s"], more].concat();
                match ran_or_said(&limited(&args, libc::RLIMIT_AS, bytes), "ulimit -v") {
                    true => ran += 1,
                    false => said += 1,
                }
            }
        }
        assert!(said > 0 && ran > 0, "{said} {ran}");
    }
    let args = ["run", kernel(), "--memory", "2G", "--time-limit", "30s"];
    let outcome = limited(&args, libc::RLIMIT_AS, 1 << 30);
    ran_or_said(&outcome, "--memory");
    assert!(
        outcome.stderr.contains("2048 MiB of guest memory"),
        "{outcome:?}"
    );
}

fn terminal() {
    let args = [kernel(), "--memory", "4M", "--time-limit", "30s"];
    let limits = (4..=30).map(|files| (libc::RLIMIT_NOFILE, files));
    let spaces = (8..24).map(|mib| (libc::RLIMIT_AS, mib << 20));
    for limit in limits.chain(spaces) {
        if limited(&["--version"], limit.0, limit.1).status.code() != Some(0) {
            continue;
        }
        let mut session = Session::limited(&args, limit);
        // Checks the settings.
        let status = session.finish();
        assert!(
            matches!(status.code(), Some(0 | START)),
            "{limit:?}: {}",
            session.catch_up()
        );
        let seen = session.catch_up();
        assert!(!seen.contains("panicked"), "{seen}");
        assert!(
            seen.contains(if status.success() { "hello" } else { "help: " }),
            "{seen}"
        );
    }
}

/// Refused by a start and by its rehearsal alike, with the same words; the machine is shown if its
/// files are good.
#[track_caller]
fn both_refuse(args: &[&str], words: &[&str]) {
    let started = run(&[&["run"], args, &["--time-limit", "30s"]].concat());
    let rehearsed = run(&[&["run"], args, &["--time-limit", "30s", "--dry-run"]].concat());
    for outcome in [&started, &rehearsed] {
        assert_eq!(outcome.code(), START, "{outcome:?}");
        for word in words {
            assert!(outcome.stderr.contains(word), "no '{word}' in {outcome:?}");
        }
    }
    // Numbers of processes may differ: one that another test has just begun has our files open for a
    // moment.
    let text = |outcome: &Outcome| outcome.stderr.replace(|c: char| c.is_ascii_digit(), "");
    assert_eq!(text(&started), text(&rehearsed));
    assert_eq!(started.stdout, "");
}

fn dry_run() {
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("file={}/none/log", folder.path().display());
    both_refuse(
        &[kernel(), "--console", &missing],
        &["/none/log", "No such file", "mkdir -p"],
    );
    let is_folder = format!("file={}", folder.path().display());
    both_refuse(
        &[kernel(), "--console", &is_folder],
        &["directory", "name a file"],
    );
    both_refuse(
        &[kernel(), "--console", "file=/dev/null/x"],
        &["/dev/null/x"],
    );
    let disk = TempFile::new("disk.img", &[0; 4096]);
    let access = bantam::storage::Access::default();
    let locked = bantam::storage::open::open(disk.path(), access).unwrap();
    both_refuse(&[kernel(), "--disk", disk.str()], &["in use by process"]);
    drop(locked);
    both_refuse(
        &[kernel(), "--memory-backing", "hugetlbfs", "--memory", "64G"],
        &["nr_hugepages"],
    );
    let small = |args: &[&str]| {
        let args = [&["run", kernel(), "--memory", "2G"], args].concat();
        limited(&args, libc::RLIMIT_AS, 1 << 30)
    };
    let (started, rehearsed) = (small(&[]), small(&["--dry-run"]));
    assert_eq!(rehearsed.code(), START);
    assert_eq!(started.stderr, rehearsed.stderr);
    assert!(
        rehearsed.stdout.contains("memory    2048 MiB"),
        "{rehearsed:?}"
    );
    as_nobody();
}

/// A user without rights: /dev/kvm, and a folder of somebody else's.
fn as_nobody() {
    // SAFETY: a plain query.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    let folder = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let (binary, kernel) = (folder.path().join("bantam"), folder.path().join("kernel"));
    common::copy_program(&binary);
    fs::copy(guest::elf(), &kernel).unwrap();
    let nobody = |more: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args([&binary, Path::new("run"), &kernel])
            .args(more);
        run_with(command, b"", Duration::from_secs(60))
    };
    if !fs::metadata("/dev/kvm").is_ok_and(|meta| meta.permissions().mode() & 0o006 == 0o006) {
        let (started, rehearsed) = (nobody(&[]), nobody(&["--dry-run"]));
        assert_eq!((started.code(), rehearsed.code()), (START, START));
        assert_eq!(started.stderr, rehearsed.stderr);
        assert!(
            started
                .stderr
                .contains("/dev/kvm: permission denied for user nobody")
        );
        assert!(rehearsed.stdout.contains("memory map"), "{rehearsed:?}");
    }
}

fn no_trace() {
    let log = TempFile::new("log", b"kept");
    let disk = TempFile::new("disk.img", &[7; 4096]);
    let to_file = format!("file={}", log.str());
    let modified = || fs::metadata(disk.path()).unwrap().modified().unwrap();
    let before = modified();
    let new = log.path().with_file_name("new");
    for console in [
        to_file.as_str(),
        "pty",
        "stdio",
        &format!("file={}", new.display()),
    ] {
        let outcome = run(&[
            "run",
            kernel(),
            "--dry-run",
            "--console",
            console,
            "--disk",
            disk.str(),
        ]);
        assert_eq!(
            (outcome.code(), outcome.stderr.as_str()),
            (0, ""),
            "{outcome:?}"
        );
        // Neither the guest nor its console has begun.
        assert!(!outcome.stdout.contains("hello"), "{outcome:?}");
    }
    assert_eq!(fs::read(log.path()).unwrap(), b"kept");
    assert_eq!(fs::read(disk.path()).unwrap(), [7; 4096]);
    assert_eq!(modified(), before);
    assert!(!new.exists());
    // Nor is a lock left behind.
    let access = bantam::storage::Access::default();
    assert!(bantam::storage::open::open(disk.path(), access).is_ok());
}

/// The guest with the words that Linux has in it: whether it can boot is told by them alone.
fn pvm() {
    let banner = b"Linux version 6.1.0-test (x@y) (gcc) #1 SMP\n".to_vec();
    // What PVM's guests ask their host with.
    let aware = b"\x0f\x01\x3c\x25\x50\x56\x4d\xff\x0f\xa2";
    let image = |more: &[u8]| {
        let mut bytes = fs::read(guest::elf()).unwrap();
        bytes.extend(more);
        TempFile::new("vmlinux", &bytes)
    };
    let stock = image(&banner);
    let built_for_it = image(&[&banner[..], aware].concat());
    let host = run(&["check", "--json"]);
    if host.stdout.contains("\"backend\": \"pvm\"") {
        both_refuse(
            &[stock.str(), "--append", "a b"],
            &[
                "PVM",
                "CONFIG_PVM_GUEST",
                "resources/lab/lab --time-limit 600 -- ",
                "--append 'a b'",
            ],
        );
        assert!(run(&["check"]).stdout.contains("resources/lab/lab"));
    } else {
        let outcome = run(&["run", stock.str(), "--time-limit", "30s"]);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
    }
    for good in [built_for_it.str(), kernel()] {
        let outcome = run(&["run", good, "--time-limit", "30s"]);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        assert!(outcome.stdout.contains("hello"), "{outcome:?}");
    }
    for words in ["runs ", "runs not", "next "] {
        assert!(
            run(&["check"]).stdout.contains(&format!("\n{words}")),
            "{words}"
        );
    }
}
