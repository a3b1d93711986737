//! A pause costs the guest nothing but time: no request of its disk, no answer of a device, no key; and a
//! machine that is paused can still be ended, in every way there is.
//!
//! The guests are in `tests/guests/pause.rs`. What a pause means to a Linux is in `tests/linux.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use bantam::board::BusDevice;
use bantam::board::bus::Bus;
use bantam::machine::Exit;
use bantam::machine::ending::ExitBox;
use bantam::machine::ending::reset::ResetFlag;
use bantam::machine::host::{Backend, backend};
use bantam::machine::vcpu::step::Vcpu;
use bantam::machine::vcpu::{Mailboxes, Shared, kick};
use common::pty::Session;
use common::{bantam, guest, run};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use libtest_mimic::Arguments;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const BLOCK: usize = 4096;
const DISK_BYTES: u64 = 16 << 20;
/// Of each kind of disk. `make soak` gives each of them twenty times as many.
const PAUSES: u64 = 200;

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
        trials.push(common::trial(name, missing.as_deref(), move || {
            disk(format, options, cpus);
        }));
    }
    let tests: [(&str, fn()); 10] = [
        ("a_key_pauses_and_what_is_typed_meanwhile_arrives", keys),
        ("the_state_of_a_paused_machine_is_shown", state),
        ("a_parked_vcpu_has_got_what_a_device_has_answered", answered),
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
        trials.push(common::trial(name, missing.as_deref(), test));
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

// --------------------------------------------------------------------------------------------- disks

fn scratch(extension: &str) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("pause-{}-{number}.{extension}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

/// Pauses a guest that has eight requests in flight, at random moments for random times. It looks at
/// everything it reads; and another program looks at the image.
fn disk(format: &str, options: &str, cpus: &str) {
    let pauses = match std::env::var("BANTAM_SOAK") {
        Ok(_) => PAUSES * 20,
        Err(_) => PAUSES,
    };
    let image = scratch(format);
    let path = image.to_str().unwrap();
    let made = run(&[
        "image",
        "create",
        "-f",
        format,
        path,
        &DISK_BYTES.to_string(),
    ]);
    assert_eq!(made.code(), 0, "{made:?}");
    let disk = format!("{path},format={format}{options}");
    let ring = match backend() {
        Backend::Pvm => "",
        _ => " ring=iret",
    };
    let append = format!("do=churn{ring}");
    let args = [
        "--append",
        &append,
        "--disk",
        &disk,
        "--cpus",
        cpus,
        "--time-limit",
        "900s",
    ];
    let mut machine = piped(&args, |_| {});
    machine.expect("at work\n");
    let start = Instant::now();
    let mut sent = 0;
    while machine.paused.load(Ordering::SeqCst) < pauses {
        assert!(
            start.elapsed() < Duration::from_secs(120) + Duration::from_millis(100) * pauses as u32,
            "{sent} signals were {} pauses",
            machine.paused.load(Ordering::SeqCst)
        );
        let before = machine.paused.load(Ordering::SeqCst);
        pause(&machine.child);
        let patience = Instant::now() + Duration::from_millis(50);
        sleep(Duration::from_micros(random(2000)));
        // Every other pause may be taken back before all vCPUs have parked. The others are reached, also where
        // there are more vCPUs than processors.
        while sent % 2 == 0
            && machine.paused.load(Ordering::SeqCst) == before
            && Instant::now() < patience
        {
            sleep(Duration::from_micros(100));
        }
        resume(&machine.child);
        sleep(Duration::from_micros(random(2000)));
        sent += 1;
    }
    let took = start.elapsed();
    machine.type_in(b"q");
    let paused = machine.paused.clone();
    let (code, said) = machine.finish();
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("WRONG"), "{said}");
    assert!(said.contains("ok all of the disk"), "{said}");
    let numbers = |name: &str| -> Vec<u64> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(name));
        lines.map(|number| number.parse().unwrap()).collect()
    };
    let writes = numbers("writes ")[0];
    let rounds = numbers("vcpu rounds ");
    println!(
        "{format}{options}, {cpus} vCPUs: {} pauses in {took:.1?}, {writes} writes and as many reads; rounds of the others {rounds:?}",
        paused.load(Ordering::SeqCst)
    );
    assert!(writes > 0, "it got nowhere between the pauses");
    assert_eq!(rounds.len() + 1, cpus.parse::<usize>().unwrap(), "{said}");
    assert!(rounds.iter().all(|rounds| *rounds > 0), "{said}");
    image_is_what_was_written(&image, format, writes);
    std::fs::remove_file(image).unwrap();
}

/// The same sequence as in `tests/guests/pause.rs`.
fn image_is_what_was_written(image: &Path, format: &str, writes: u64) {
    let raw = scratch("plain");
    let (from, to) = (image.to_str().unwrap(), raw.to_str().unwrap());
    let out = run(&["image", "convert", "-f", format, "-O", "raw", from, to]);
    assert_eq!(out.code(), 0, "{out:?}");
    let bytes = std::fs::read(&raw).unwrap();
    assert_eq!(bytes.len() as u64, DISK_BYTES);
    let blocks = DISK_BYTES / BLOCK as u64;
    let latest: HashMap<u64, u64> = (1..=writes)
        .map(|n| (n.wrapping_mul(7919) % blocks, n))
        .collect();
    for (block, content) in (0..).zip(bytes.chunks_exact(BLOCK)) {
        for (word, found) in (0..).zip(content.chunks_exact(8)) {
            let found = u64::from_le_bytes(found.try_into().unwrap());
            let wanted = latest.get(&block).map_or(0, |n| n << 16 | word);
            assert_eq!(found, wanted, "word {word} of block {block}");
        }
    }
    std::fs::remove_file(raw).unwrap();
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

// ------------------------------------------------------------------------------------ one vCPU alone

/// A device that takes its time: it says that it is asked, and answers with what it is given.
struct Slow(SyncSender<()>, Mutex<Receiver<u8>>);

impl BusDevice for Slow {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        self.0.send(()).unwrap();
        data.fill(self.1.lock().unwrap().recv().unwrap());
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

fn slow() -> (Arc<Slow>, Receiver<()>, SyncSender<u8>) {
    let (asked, is_asked) = sync_channel(1);
    let (answer, get_answer) = sync_channel(1);
    (Arc::new(Slow(asked, get_answer.into())), is_asked, answer)
}

/// KVM puts what a device has answered into the register only with the next KVM_RUN. A vCPU that parks before
/// that would be seen within the instruction, and be saved there.
fn answered() {
    const PORT: u64 = 0x300;
    const PAGE: u64 = 0xa0000;
    #[rustfmt::skip]
    let code = [
        0xba, 0x00, 0x03, // mov dx, 0x300
        0xec,             // in al, dx
        0xb8, 0x00, 0xa0, // mov ax, 0xa000
        0x8e, 0xd8,       // mov ds, ax
        0xa0, 0x00, 0x00, // mov al, [0]
        0xeb, 0xfe,       // jmp $
    ];
    kick::install_handler().unwrap();
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let ranges = [(GuestAddress(0), 0x10000)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    memory.write_slice(&code, GuestAddress(0x1000)).unwrap();
    let region = kvm_userspace_memory_region {
        memory_size: 0x10000,
        userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        ..Default::default()
    };
    // SAFETY: the memory outlives the vCPU, whose thread is joined below.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let mut sregs = fd.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).unwrap();
    let mut regs = fd.get_regs().unwrap();
    regs.rip = 0x1000;
    fd.set_regs(&regs).unwrap();

    let (on_port, port_asked, port_answer) = slow();
    let (on_page, page_asked, page_answer) = slow();
    let (mut pio, mut mmio) = (Bus::default(), Bus::default());
    pio.insert(PORT, 1, on_port).unwrap();
    mmio.insert(PAGE, 4096, on_page).unwrap();
    let exit = Arc::new(ExitBox::new().unwrap());
    let mailboxes = Arc::new(Mailboxes::new(1).unwrap());
    let alarmed = mailboxes.clone();
    exit.set_alarm(move || alarmed.alarm());
    let shared = Arc::new(Shared {
        pio,
        mmio,
        memory: memory.clone(),
        reset: Arc::new(ResetFlag::new(memory, false, || false)),
        exit: exit.clone(),
    });
    let mailbox = mailboxes.iter().next().unwrap().clone();
    let vcpu = Vcpu::new(0, fd, shared, mailbox);
    let thread = std::thread::spawn(move || vcpu.run());

    const SOON: Duration = Duration::from_secs(20);
    for (asked, answer, byte, behind) in [
        (port_asked, port_answer, 0x5a, 0x1004),
        (page_asked, page_answer, 0x77, 0x100c),
    ] {
        asked.recv_timeout(SOON).unwrap();
        mailboxes.park();
        answer.send(byte).unwrap();
        let end = Instant::now() + SOON;
        while !mailboxes.all_parked() {
            assert!(Instant::now() < end, "it does not park");
        }
        let state = mailboxes.states(SOON).remove(0);
        let general = state.registers.expect("it answers").general;
        assert_eq!(general.rip, behind, "the instruction has been executed");
        assert_eq!(general.rax as u8, byte);
        assert!(state.parked);
        mailboxes.unpark();
    }
    exit.post(Exit::Quit);
    thread.join().unwrap();
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
