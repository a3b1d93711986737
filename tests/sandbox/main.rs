//! The sandbox of a running machine: every thread has a filter and no rights, and a thread that does what it has no use
//! for ends the program.

#[path = "../common/mod.rs"]
mod common;
mod inject;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bantam::sandbox::seccomp;
use common::pty::Session;
use common::trials::{Test, each, exit_after, trials_of};
use common::{bare, end_of, guest, signal, wait};
use inject::Call;

fn main() {
    let kvm = common::kvm().err();
    let filters = (!seccomp::knows(libc::SECCOMP_RET_TRAP))
        .then(|| "the host's kernel has no seccomp filters".to_owned());
    let base = kvm.or(filters);
    let asks = (!seccomp::knows(libc::SECCOMP_RET_USER_NOTIF))
        .then(|| "the host's kernel tells nobody of calls".to_owned());
    let inject = base.clone().or_else(inject::missing);
    let asks = inject.clone().or(asks);
    let nobody = base.clone().or_else(common::nobody_missing);
    let tests: [Test; 9] = [
        (
            "every_thread_has_a_filter_and_no_rights",
            base.clone(),
            every_thread,
        ),
        (
            "without_it_threads_are_as_the_user_has_started_them",
            base.clone(),
            off,
        ),
        ("calls_are_told_of_and_made_with_log", asks, log),
        (
            "the_terminal_comes_back_after_a_violation",
            inject.clone(),
            terminal,
        ),
        ("each_life_of_a_machine_is_in_it", base.clone(), lives),
        ("root_becomes_another_user", nobody.clone(), user),
        (
            "a_user_or_root_that_cannot_be_had_is_an_error",
            nobody,
            refused,
        ),
        (
            "the_root_of_the_file_system_is_another",
            base.clone().or_else(common::nobody_missing),
            chroot,
        ),
        (
            "what_was_inherited_and_is_not_named_is_closed",
            base,
            inherited,
        ),
    ];
    let mut trials = trials_of(tests);
    trials.extend(each(
        "a_thread_may_not",
        attacks(),
        inject.as_deref(),
        attack,
    ));
    exit_after(trials);
}

/// A folder with disks of every kind, and the words for a machine that has them all.
struct Disks {
    _folder: tempfile::TempDir,
    words: Vec<String>,
}

fn disks() -> Disks {
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str| {
        let path = folder.path().join(name);
        std::fs::File::create(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        path.display().to_string()
    };
    let qcow2 = folder.path().join("c.qcow2").display().to_string();
    let made = common::run(&["image", "create", &qcow2, "1M"]);
    assert_eq!(made.code(), 0, "{made:?}");
    let disks = [
        image("a.raw"),
        image("b.raw") + ",iothread",
        image("d.raw") + ",io=threads",
        image("e.raw") + ",snapshot,queues=2",
        qcow2,
    ];
    let mut words: Vec<String> = ["--cpus", "2", "--rng", "--reclaim"]
        .map(str::to_owned)
        .into();
    words.extend(
        disks
            .into_iter()
            .flat_map(|disk| ["--disk".to_owned(), disk]),
    );
    Disks {
        _folder: folder,
        words,
    }
}

/// A machine whose guest does nothing, with all devices, once its threads are all in the sandbox.
struct Machine {
    child: Child,
    _disks: Disks,
}

impl Machine {
    fn start(more: &[&str]) -> Self {
        let disks = disks();
        let words: Vec<&str> = disks
            .words
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        let mut command = bare::command("halt", &words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Machine {
            child: command.spawn().unwrap(),
            _disks: disks,
        }
    }

    fn sandboxed(more: &[&str]) -> Self {
        let machine = Machine::start(more);
        settle(machine.child.id(), "2");
        machine
    }

    fn end(mut self) -> common::Outcome {
        let ended = wait(&mut self.child, Duration::from_secs(30));
        assert!(ended.is_some(), "the machine does not end");
        end_of(self.child, "the machine")
    }
}

/// A line of the status of each thread: by thread its number, name and value.
fn lines(pid: u32, name: &str) -> Vec<(i32, String, String)> {
    let mut found = Vec::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return found;
    };
    for task in tasks.flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}:")));
        let tid = task.file_name().to_string_lossy().parse().unwrap();
        let value = line.unwrap_or_default().trim().to_owned();
        found.push((tid, read("comm").trim().to_owned(), value));
    }
    found
}

/// Waits until all threads of a machine with two vCPUs are there, in this mode of seccomp.
fn settle(pid: u32, mode: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let threads = lines(pid, "Seccomp");
        let in_mode = threads
            .iter()
            .all(|(_, name, value)| value == mode || name == "sandbox-log");
        if threads.iter().any(|(_, name, _)| name == "vcpu1") && in_mode {
            return;
        }
        assert!(Instant::now() < end, "{threads:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn every_thread() {
    let machine = Machine::sandboxed(&[]);
    let pid = machine.child.id();
    let expect = |name: &str, value: &str| {
        for (_, thread, found) in lines(pid, name) {
            assert_eq!(found, value, "{name} of {thread}");
        }
    };
    expect("Seccomp", "2");
    expect("NoNewPrivs", "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        expect(set, "0000000000000000");
    }
    if common::nobody_missing().is_none() {
        expect("CapBnd", "0000000000000000");
    }
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    for (_, name, _) in lines(pid, "Seccomp") {
        *kinds.entry(name).or_default() += 1;
    }
    for name in ["vcpu0", "vcpu1", "disk-io"] {
        assert!(kinds.contains_key(name), "no {name} in {kinds:?}");
    }
    signal(&machine.child, libc::SIGKILL);
    drop(machine.child.wait_with_output());
}

fn off() {
    let machine = Machine::start(&["--sandbox", "off"]);
    let pid = machine.child.id();
    settle(pid, "0");
    for (_, thread, value) in lines(pid, "NoNewPrivs") {
        assert_eq!(value, "0", "{thread}");
    }
    signal(&machine.child, libc::SIGKILL);
    drop(machine.child.wait_with_output());
}

/// A thread by the beginning of its name, what is put into it, and how that is called.
struct Attack {
    thread: &'static str,
    call: Call,
    said: &'static str,
}

fn attacks() -> Vec<(&'static str, Attack)> {
    let attack = |thread, number, arguments: &[u64], said| {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        Attack {
            thread,
            call: (number, all),
            said,
        }
    };
    let here = libc::AT_FDCWD as u64;
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let process = libc::SIGCHLD as u64;
    vec![
        (
            "open_main",
            attack("bantam", libc::SYS_openat, &[here], "openat (257)"),
        ),
        (
            "open_vcpu",
            attack("vcpu1", libc::SYS_openat, &[here], "openat (257)"),
        ),
        (
            "open_io",
            attack("vdb", libc::SYS_openat, &[here], "openat (257)"),
        ),
        (
            "open_pool",
            attack("disk-io", libc::SYS_openat, &[here], "openat (257)"),
        ),
        (
            "connect_main",
            attack("bantam", libc::SYS_socket, &[2, 1, 0], "socket (41)"),
        ),
        (
            "connect_vcpu",
            attack("vcpu0", libc::SYS_socket, &[2, 1, 0], "socket (41)"),
        ),
        (
            "connect_io",
            attack("vdb", libc::SYS_connect, &[3], "connect (42)"),
        ),
        (
            "connect_pool",
            attack("disk-io", libc::SYS_connect, &[3], "connect (42)"),
        ),
        (
            "execute_main",
            attack("bantam", libc::SYS_execve, &[], "execve (59)"),
        ),
        (
            "execute_vcpu",
            attack("vcpu0", libc::SYS_execve, &[], "execve (59)"),
        ),
        (
            "execute_io",
            attack("vdb", libc::SYS_execve, &[], "execve (59)"),
        ),
        (
            "execute_pool",
            attack("disk-io", libc::SYS_execve, &[], "execve (59)"),
        ),
        (
            "fork_main",
            attack("bantam", libc::SYS_clone, &[process], "clone (56"),
        ),
        (
            "start_threads_vcpu",
            attack("vcpu0", libc::SYS_clone3, &[], "clone3 (435)"),
        ),
        (
            "make_code_main",
            attack(
                "bantam",
                libc::SYS_mmap,
                &[0, 4096, executable, anonymous],
                "mmap (9, argument 3: 0x5)",
            ),
        ),
        (
            "make_code_vcpu",
            attack(
                "vcpu0",
                libc::SYS_mmap,
                &[0, 4096, executable, anonymous],
                "mmap (9, argument 3: 0x5)",
            ),
        ),
        (
            "make_code_io",
            attack(
                "vdb",
                libc::SYS_mprotect,
                &[0, 4096, executable],
                "mprotect (10, argument 3: 0x5)",
            ),
        ),
        (
            "signal_others_vcpu",
            attack(
                "vcpu0",
                libc::SYS_tgkill,
                &[1, 1, 9],
                "tgkill (234, argument 1: 0x1)",
            ),
        ),
        (
            "signal_others_main",
            attack("bantam", libc::SYS_tkill, &[1, 9], "tkill (200)"),
        ),
        (
            "look_into_others_main",
            attack("bantam", libc::SYS_ptrace, &[16, 1], "ptrace (101)"),
        ),
        (
            "type_for_the_user_main",
            attack(
                "bantam",
                libc::SYS_ioctl,
                &[0, libc::TIOCSTI],
                "ioctl (16, argument 2: 0x5412)",
            ),
        ),
        (
            "run_the_guest_main",
            attack(
                "bantam",
                libc::SYS_ioctl,
                &[9, 0xae80],
                "ioctl (16, argument 2: 0xae80)",
            ),
        ),
        (
            "run_the_guest_io",
            attack(
                "vdb",
                libc::SYS_ioctl,
                &[9, 0xae80],
                "ioctl (16, argument 2: 0xae80)",
            ),
        ),
        (
            "make_a_vm_vcpu",
            attack(
                "vcpu0",
                libc::SYS_ioctl,
                &[3, 0xae01],
                "ioctl (16, argument 2: 0xae01)",
            ),
        ),
        (
            "touch_disks_vcpu",
            attack("vcpu0", libc::SYS_pwritev, &[3], "pwritev (296)"),
        ),
        (
            "silence_the_sandbox_vcpu",
            attack(
                "vcpu0",
                libc::SYS_rt_sigaction,
                &[31, 0, 0, 8],
                "rt_sigaction (13, argument 1: 0x1f)",
            ),
        ),
    ]
}

fn attack(attack: Attack) {
    let machine = Machine::sandboxed(&[]);
    let pid = machine.child.id();
    let threads = lines(pid, "Seccomp");
    let found = threads
        .iter()
        .find(|(_, name, _)| name.starts_with(attack.thread));
    let (tid, name, _) = found.unwrap_or_else(|| panic!("no {} in {threads:?}", attack.thread));
    inject::make(*tid, attack.call);
    let ended = machine.end();
    assert_eq!(ended.code(), 7, "{ended:?}");
    let name = if *tid == pid as i32 { "main" } else { name };
    let said = format!(
        "error: the sandbox has stopped the thread '{name}', which called {}",
        attack.said
    );
    assert!(ended.stderr.contains(&said), "no '{said}' in {ended:?}");
    assert!(ended.stderr.contains("\nhelp: "), "{ended:?}");
}

fn log() {
    let mut machine = Machine::sandboxed(&["--sandbox", "log", "-v"]);
    let threads = lines(machine.child.id(), "Seccomp");
    // It waits for work, and takes no notice of a wait that has failed.
    let (tid, ..) = threads
        .iter()
        .find(|(_, name, _)| name == "disk-io")
        .unwrap();
    inject::make(*tid, (libc::SYS_openat, [u64::MAX, 0, 0, 0, 0, 0]));
    let said = "would have stopped the thread 'disk-io', which called openat (257)";
    let mut stderr = BufReader::new(machine.child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(said) {
        line.clear();
        assert!(
            stderr.read_line(&mut line).unwrap() > 0,
            "the machine has ended"
        );
    }
    // It goes on, and ends as any other.
    signal(&machine.child, libc::SIGTERM);
    while !line.contains("power button") && stderr.read_line(&mut line).unwrap() > 0 {}
    signal(&machine.child, libc::SIGTERM);
    let status = wait(&mut machine.child, Duration::from_secs(30)).unwrap();
    assert_eq!(status.code(), Some(5));
}

fn terminal() {
    let kernel = guest::elf().to_str().unwrap();
    let mut session = Session::start(&[
        kernel,
        "--append",
        "do=halt",
        "--cpus",
        "2",
        "--time-limit",
        "60s",
    ]);
    let pid = session.child.id();
    settle(pid, "2");
    assert!(session.is_raw(), "the terminal is not raw");
    let threads = lines(pid, "Seccomp");
    let (tid, ..) = threads.iter().find(|(_, name, _)| name == "vcpu1").unwrap();
    inject::make(*tid, (libc::SYS_openat, [0; 6]));
    session.expect("the sandbox has stopped the thread 'vcpu1'");
    let status = wait(&mut session.child, Duration::from_secs(20)).unwrap();
    assert_eq!(status.code(), Some(7));
    assert!(!session.is_raw(), "the terminal is still raw");
}

/// The filter of the first life's main thread lies over those of the second life's threads.
fn lives() {
    let mut command = bare::command("acpi-reset", &["--reboot"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let threads = lines(child.id(), "Seccomp_filters");
        let vcpu = threads.iter().find(|(_, name, _)| name == "vcpu0");
        if vcpu.is_some_and(|(.., filters)| filters == "2") {
            break;
        }
        assert!(Instant::now() < end, "{threads:?}");
    }
    signal(&child, libc::SIGKILL);
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!said.contains("sandbox"), "{said}");
}

fn user() {
    for (name, id) in [("nobody", "65534"), ("4711", "4711")] {
        let machine = Machine::sandboxed(&["--user", name]);
        for (_, thread, ids) in lines(machine.child.id(), "Uid") {
            assert!(
                ids.split_whitespace().all(|found| found == id),
                "{thread}: {ids}"
            );
        }
        for (_, thread, groups) in lines(machine.child.id(), "Groups") {
            assert_eq!(groups, "", "{thread}");
        }
        signal(&machine.child, libc::SIGKILL);
        drop(machine.child.wait_with_output());
    }
}

fn refused() {
    let kernel = guest::elf().to_str().unwrap();
    let says = |mut command: Command, words: &[&str], error: &str, help: &str| {
        command.args(["run", kernel]).args(words);
        let ended = common::run_with(command, b"", Duration::from_secs(60));
        assert_eq!(ended.code(), 3, "{ended:?}");
        assert!(
            ended.stderr.contains(error) && ended.stderr.contains(help),
            "{ended:?}"
        );
    };
    let root = || Command::new(common::bantam());
    says(
        root(),
        &["--user", "x-y-z"],
        "there is no such user",
        "/etc/passwd",
    );
    says(
        root(),
        &["--chroot", "/nowhere"],
        "--chroot /nowhere: No such file",
        "mkdir",
    );
    says(root(), &["--chroot", kernel], "ot a directory", "mkdir");
    // Where a user without rights can reach it.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let program = folder.path().join("bantam");
    common::copy_program(&program);
    let image = folder.path().join("guest");
    std::fs::copy(kernel, &image).unwrap();
    let says_to_nobody = |words: &[&str], error: &str| {
        let mut command = common::as_nobody(&program);
        command.arg("run").arg(&image).args(words);
        let ended = common::run_with(command, b"", Duration::from_secs(60));
        assert_eq!(ended.code(), 3, "{ended:?}");
        assert!(ended.stderr.contains(error), "{ended:?}");
    };
    says_to_nobody(&["--user", "root"], "only root can become another user");
    says_to_nobody(&["--chroot", "/"], "only root can change the root");
}

fn chroot() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::sandboxed(&[
        "--chroot",
        folder.path().to_str().unwrap(),
        "--user",
        "nobody",
    ]);
    let pid = machine.child.id();
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    let root: PathBuf = folder.path().canonicalize().unwrap();
    assert_eq!((link("root"), link("cwd")), (root.clone(), root));
    signal(&machine.child, libc::SIGKILL);
    drop(machine.child.wait_with_output());
}

fn inherited() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (named, forgotten) = (70, 71);
    let start = |words: &[&str]| {
        let mut command = bare::command("halt", &[&["--cpus", "2"], words].concat());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let fd = writer.as_raw_fd();
        // SAFETY: dup2 is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                let both = libc::dup2(fd, named) == named && libc::dup2(fd, forgotten) == forgotten;
                both.then_some(()).ok_or_else(std::io::Error::last_os_error)
            });
        }
        let child = command.spawn().unwrap();
        settle(child.id(), if words.contains(&"off") { "0" } else { "2" });
        child
    };
    let has = |child: &Child, fd: i32| Path::new(&format!("/proc/{}/fd/{fd}", child.id())).exists();
    let end = |child: Child| {
        signal(&child, libc::SIGKILL);
        drop(child.wait_with_output());
    };
    let child = start(&["--console", "file=/dev/fd/70"]);
    assert!(has(&child, named) && !has(&child, forgotten));
    end(child);
    let child = start(&["--sandbox", "off"]);
    assert!(has(&child, named) && has(&child, forgotten));
    end(child);
    drop(writer);
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
}
