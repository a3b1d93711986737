//! Runs a program and changes what the kernel answers to it, by ptrace(2): the program is the one that is shipped.
//!
//! ```text
//!   this thread                         the program
//!   ───────────                         ───────────
//!   fork, exec ───────────────────────▶ PTRACE_TRACEME, a seccomp filter, execve
//!   waitpid ◀── SECCOMP stop ────────── a thread is about to make a call that the filter names
//!      │   nothing        ─ PTRACE_CONT ▶ the call is made
//!      │   an error       ─ orig_rax = -1, rax = -errno ▶ the call is not made, and is said to have failed
//!      │   a short count  ─ a smaller length ▶ the call moves less than was asked for
//! ```
//!
//! The filter (seccomp(2), SECCOMP_RET_TRACE) lets all other calls go by at full speed. The tracer of a process is a
//! thread: whoever calls [`run`] forks the program, and waits for it alone (`__WNOTHREAD`), so several threads of the
//! test program may do so at the same time.
//!
//! strace(1) can inject errors as well, but counts the calls of each thread by itself, tells no ioctl from another, and
//! cannot shorten a transfer.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, pid_t};

/// A call to the kernel, as it is about to be made.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The process's number.
    pub process: pid_t,
    /// The call's number.
    pub number: c_long,
    /// The first six registers of it.
    pub args: [u64; 6],
}

/// What is done with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is made.
    Made,
    /// It is not made, and has failed with this errno.
    Fails(c_int),
    /// It moves half as much as it was asked to, but something.
    Half,
}

/// How a program has ended.
#[derive(Debug)]
pub struct End {
    pub status: ExitStatus,
    /// It did not end by itself in time.
    pub killed: bool,
    /// Processes that it had started and that were still there after its end.
    pub left_behind: usize,
}

/// Which calls stop the program.
#[derive(Debug, Clone)]
pub enum Stops {
    /// All.
    All,
    /// Those with these numbers.
    At(Vec<c_long>),
}

/// How long what the program has started may outlive it.
const AFTERLIFE: Duration = Duration::from_secs(3);

/// Runs `command` to its end; `started` is told its number, and `decide` says what becomes of each call of its. After
/// `limit` it is killed.
pub fn run(
    mut command: Command,
    stops: &Stops,
    limit: Duration,
    started: impl FnOnce(pid_t),
    mut decide: impl FnMut(Call) -> Answer,
) -> io::Result<End> {
    let filter = filter(stops);
    // SAFETY: the closure calls nothing but async-signal-safe functions, and allocates nothing.
    unsafe {
        command.pre_exec(move || be_traced(&filter));
    }
    let child = command.spawn()?;
    // What the command holds of pipes is not the child's any more.
    drop(command);
    let main = child.id() as pid_t;
    started(main);
    let (over, is_over) = mpsc::channel::<()>();
    // Dropped when this function returns, which ends the watch as well.
    let watch = std::thread::spawn(move || {
        let late = is_over.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            kill(main);
        }
        late
    });
    let mut tracees = Tracees::new(main);
    let status = tracees.follow(&mut decide);
    drop(over);
    let killed = watch.join().unwrap_or(false);
    let left_behind = tracees.outlive();
    Ok(End {
        status: status?,
        killed,
        left_behind,
    })
}

fn kill(process: pid_t) {
    // SAFETY: takes numbers alone. The number is of a child of ours that nobody has waited for to the end.
    unsafe { libc::kill(process, libc::SIGKILL) };
}

// ------------------------------------------------------------------------------- the program's side

/// The filter, in the language of bpf(4): the call's number decides.
fn filter(stops: &Stops) -> Vec<libc::sock_filter> {
    // SAFETY: both functions compute the struct.
    let (load, jump, give) = unsafe {
        (
            |at| libc::BPF_STMT((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, at),
            |number: c_long, yes, no| {
                let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
                libc::BPF_JUMP(equal, number as u32, yes, no)
            },
            |what| libc::BPF_STMT((libc::BPF_RET | libc::BPF_K) as u16, what),
        )
    };
    let mut program = vec![load(0)];
    match stops {
        // Until the exec nobody has said yet that such stops are wanted.
        Stops::All => program.extend([
            jump(libc::SYS_execve, 0, 1),
            give(libc::SECCOMP_RET_ALLOW),
            give(libc::SECCOMP_RET_TRACE),
        ]),
        Stops::At(numbers) => {
            for number in numbers {
                program.extend([jump(*number, 0, 1), give(libc::SECCOMP_RET_TRACE)]);
            }
            program.push(give(libc::SECCOMP_RET_ALLOW));
        }
    }
    program
}

fn be_traced(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads the program, which lives for the call; the rest takes numbers.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) == 0
    };
    match done {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}

// --------------------------------------------------------------------------------- the tracer's side

/// The threads that are traced.
struct Tracees {
    main: pid_t,
    /// All, and to which process each belongs.
    alive: HashMap<pid_t, pid_t>,
    /// What is to be put back as a call returns.
    shortened: HashMap<pid_t, Shortened>,
}

/// A transfer that was made shorter: registers and memory as they were.
struct Shortened {
    registers: libc::user_regs_struct,
    /// An address, and the word that was there.
    word: Option<(u64, u64)>,
}

impl Tracees {
    fn new(main: pid_t) -> Self {
        Tracees {
            main,
            alive: HashMap::from([(main, main)]),
            shortened: HashMap::new(),
        }
    }

    /// Until the program has ended.
    fn follow(&mut self, decide: &mut impl FnMut(Call) -> Answer) -> io::Result<ExitStatus> {
        let mut begun = false;
        loop {
            let Some((thread, status)) = wait(0)? else {
                continue;
            };
            let status = ExitStatus::from_raw(status);
            let Some(stop) = status.stopped_signal() else {
                self.alive.remove(&thread);
                if thread == self.main {
                    return Ok(status);
                }
                continue;
            };
            // Without its event a stop looks like a SIGTRAP.
            let event = status.into_raw() >> 16;
            if !begun && thread == self.main {
                // The exec.
                begun = true;
                set_options(thread)?;
                go_on(libc::PTRACE_CONT, thread, 0);
                continue;
            }
            match (stop, event) {
                (libc::SIGTRAP, libc::PTRACE_EVENT_SECCOMP) => self.call(thread, decide),
                (libc::SIGTRAP, libc::PTRACE_EVENT_CLONE) => {
                    let process = self.alive.get(&thread).copied().unwrap_or(thread);
                    self.alive.entry(message(thread)).or_insert(process);
                    go_on(libc::PTRACE_CONT, thread, 0);
                }
                (libc::SIGTRAP, libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK) => {
                    let process = message(thread);
                    self.alive.insert(process, process);
                    go_on(libc::PTRACE_CONT, thread, 0);
                }
                (libc::SIGTRAP, 1..) => go_on(libc::PTRACE_CONT, thread, 0),
                // PTRACE_O_TRACESYSGOOD: a call returns.
                (stop, _) if stop == libc::SIGTRAP | 0x80 => {
                    self.returned(thread);
                    go_on(libc::PTRACE_CONT, thread, 0);
                }
                // A new thread's first stop may come before the event that tells of it.
                (libc::SIGSTOP, _) if is_new(thread) => go_on(libc::PTRACE_CONT, thread, 0),
                (signal, _) => go_on(libc::PTRACE_CONT, thread, signal),
            }
        }
    }

    fn call(&mut self, thread: pid_t, decide: &mut impl FnMut(Call) -> Answer) {
        // A thread that is killed meanwhile cannot be asked any more.
        let Some(registers) = registers(thread) else {
            return;
        };
        let call = Call {
            process: self.alive.get(&thread).copied().unwrap_or(self.main),
            number: registers.orig_rax as c_long,
            args: [
                registers.rdi,
                registers.rsi,
                registers.rdx,
                registers.r10,
                registers.r8,
                registers.r9,
            ],
        };
        match decide(call) {
            Answer::Made => go_on(libc::PTRACE_CONT, thread, 0),
            Answer::Fails(errno) => {
                let mut changed = registers;
                changed.orig_rax = u64::MAX;
                changed.rax = i64::from(-errno) as u64;
                set_registers(thread, changed);
                go_on(libc::PTRACE_CONT, thread, 0);
            }
            Answer::Half => {
                self.shorten(thread, registers);
                // Up to its return.
                go_on(libc::PTRACE_SYSCALL, thread, 0);
            }
        }
    }

    /// Has a call move half of its bytes: of a vector, half of the first piece.
    fn shorten(&mut self, thread: pid_t, registers: libc::user_regs_struct) {
        let mut changed = registers;
        let mut word = None;
        match registers.orig_rax as c_long {
            libc::SYS_preadv
            | libc::SYS_pwritev
            | libc::SYS_preadv2
            | libc::SYS_pwritev2
            | libc::SYS_readv
            | libc::SYS_writev => {
                let at = registers.rsi + 8;
                let len = peek(thread, at);
                word = Some((at, len));
                poke(thread, at, half(len));
                changed.rdx = 1;
            }
            _ => changed.rdx = half(registers.rdx),
        }
        set_registers(thread, changed);
        self.shortened.insert(thread, Shortened { registers, word });
    }

    fn returned(&mut self, thread: pid_t) {
        let (Some(before), Some(mut now)) = (self.shortened.remove(&thread), registers(thread))
        else {
            return;
        };
        // A call keeps all registers but rax, rcx and r11.
        now.rdx = before.registers.rdx;
        set_registers(thread, now);
        if let Some((at, word)) = before.word {
            poke(thread, at, word);
        }
    }

    /// What is there after the end of the program, of what it had started; it is ended as well.
    fn outlive(&mut self) -> usize {
        let end = Instant::now() + AFTERLIFE;
        while Instant::now() < end {
            match wait(libc::WNOHANG) {
                Err(_) => return 0,
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Ok(Some((thread, status))) => {
                    let status = ExitStatus::from_raw(status);
                    match status.stopped_signal() {
                        None => drop(self.alive.remove(&thread)),
                        Some(signal) if signal & 0x7f == libc::SIGTRAP => {
                            go_on(libc::PTRACE_CONT, thread, 0);
                        }
                        Some(libc::SIGSTOP) => go_on(libc::PTRACE_CONT, thread, 0),
                        Some(signal) => go_on(libc::PTRACE_CONT, thread, signal),
                    }
                }
            }
        }
        let processes: BTreeSet<_> = self.alive.values().copied().collect();
        processes.iter().for_each(|process| kill(*process));
        while wait(0).is_ok() {}
        processes.len()
    }
}

fn half(len: u64) -> u64 {
    (len / 2).max(1)
}

/// A child or traced thread of this thread that has stopped or ended; ECHILD when there is none any more.
fn wait(flags: c_int) -> io::Result<Option<(pid_t, c_int)>> {
    let mut status = 0;
    let flags = flags | libc::__WALL | libc::__WNOTHREAD;
    loop {
        // SAFETY: fills the number, which lives for the call.
        match unsafe { libc::waitpid(-1, &raw mut status, flags) } {
            0 => return Ok(None),
            thread @ 1.. => return Ok(Some((thread, status))),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn set_options(thread: pid_t) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_EXITKILL;
    // SAFETY: takes numbers alone.
    match unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, thread, 0, options) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the thread has not run yet: its SIGSTOP is ptrace's own, and has no sender.
fn is_new(thread: pid_t) -> bool {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel fills the struct or fails; zeroed, it is one.
    unsafe {
        libc::ptrace(libc::PTRACE_GETSIGINFO, thread, 0, info.as_mut_ptr()) == 0
            && info.assume_init().si_pid() == 0
    }
}

fn go_on(how: libc::c_uint, thread: pid_t, signal: c_int) {
    // SAFETY: takes numbers alone. A thread that has been killed meanwhile is told of by wait.
    unsafe { libc::ptrace(how, thread, 0, signal) };
}

/// What an event tells: the number of a new thread or process.
fn message(thread: pid_t) -> pid_t {
    let mut number: libc::c_ulong = 0;
    // SAFETY: fills the number, which lives for the call.
    unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, thread, 0, &raw mut number) };
    number as pid_t
}

fn registers(thread: pid_t) -> Option<libc::user_regs_struct> {
    let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
    // SAFETY: the kernel fills the struct, or the call fails.
    unsafe {
        let got = libc::ptrace(libc::PTRACE_GETREGS, thread, 0, registers.as_mut_ptr());
        (got == 0).then(|| registers.assume_init())
    }
}

fn set_registers(thread: pid_t, registers: libc::user_regs_struct) {
    // SAFETY: reads the struct, which lives for the call.
    unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, 0, &raw const registers) };
}

fn peek(thread: pid_t, at: u64) -> u64 {
    // SAFETY: reads the tracee's memory, not ours; -1 where there is none, which is as good as any word here.
    unsafe { libc::ptrace(libc::PTRACE_PEEKDATA, thread, at, 0) as u64 }
}

fn poke(thread: pid_t, at: u64, word: u64) {
    // SAFETY: writes the tracee's memory, not ours.
    unsafe { libc::ptrace(libc::PTRACE_POKEDATA, thread, at, word) };
}
