//! What happens when a thread makes a call that its role has no use for: the program says so and ends, with an exit code
//! of its own.
//!
//! The kernel does not make the call. It sends SIGSYS to the thread instead, and the handler here runs in the middle of
//! whatever the thread was doing, perhaps under the hands of an attacker. So it takes no lock and no memory, and makes
//! only calls that every role is allowed: write(2), the ioctl that gives the terminal back, exit_group(2).

use std::cell::Cell;
use std::fmt::{self, Write};
use std::sync::OnceLock;

use syscalls::Sysno;

use super::Role;
use super::table::TABLE;
use crate::error::ExitStatus;

/// A thread's name is at most 15 bytes long, and then a NUL (PR_GET_NAME).
const NAME: usize = 16;
/// si_code of a SIGSYS that a filter has sent (asm-generic/siginfo.h).
const SYS_SECCOMP: libc::c_int = 1;
/// Where siginfo_t has the number of the call: behind three ints, a gap, and the address of the instruction.
const SI_SYSCALL: usize = 24;

/// Who a thread is.
#[derive(Debug, Clone, Copy)]
pub struct Thread {
    name: [u8; NAME],
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self
            .name
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        f.write_str(std::str::from_utf8(name).unwrap_or("?"))
    }
}

thread_local! {
    /// This thread, as the handler names it: in the sandbox it may not ask for its name.
    static THREAD: Cell<Option<Thread>> = const { Cell::new(None) };
}

/// What is called before the program ends.
static LAST_ACT: OnceLock<fn()> = OnceLock::new();

/// Has `act` called before a violation ends the program: it gives the terminal back. It must be async-signal-safe. The
/// first one counts.
pub fn before_the_end(act: fn()) {
    let _ = LAST_ACT.set(act);
}

/// Finds out what this thread is called, and keeps that for the handler.
pub fn name_thread(role: Role) -> Thread {
    let mut name = [0; NAME];
    match role {
        // Its name in the kernel is the program's.
        Role::Main | Role::MainReboot => name
            .iter_mut()
            .zip(b"main")
            .for_each(|(to, from)| *to = *from),
        // SAFETY: the kernel writes at most 16 bytes, which is what there is.
        _ => drop(unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) }),
    }
    let thread = Thread { name };
    THREAD.set(Some(thread));
    thread
}

/// Installs the handler, once per process, before the first filter.
pub fn handle() {
    // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe, and works on the alternate stack where
    // the thread has one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_violation as extern "C" fn(_, _, _) as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn on_violation(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel hands both structures to a handler with SA_SIGINFO; a SIGSYS has the number of the call where
    // SI_SYSCALL says.
    let (code, number, registers) = unsafe {
        let number = info
            .cast::<u8>()
            .add(SI_SYSCALL)
            .cast::<libc::c_int>()
            .read();
        let context = context.cast::<libc::ucontext_t>();
        ((*info).si_code, number, &mut (*context).uc_mcontext.gregs)
    };
    if code == SYS_SECCOMP && std::thread::panicking() {
        // The standard library looks for the names of the functions that led to a panic, in files. It finds none, and
        // the panic ends the program as it does anywhere.
        if let Some(result) = registers.get_mut(libc::REG_RAX as usize) {
            *result = -i64::from(libc::EACCES);
        }
        return;
    }
    if let Some(act) = LAST_ACT.get() {
        act();
    }
    if code != SYS_SECCOMP {
        // Somebody else has sent it, and means to end the program. SAFETY: async-signal-safe.
        unsafe { libc::_exit(ExitStatus::Signal as libc::c_int) };
    }
    let mut line = Line::new();
    let _ = describe(&mut line, THREAD.get(), number, |argument| {
        const PLACES: [libc::c_int; 6] = [
            libc::REG_RDI,
            libc::REG_RSI,
            libc::REG_RDX,
            libc::REG_R10,
            libc::REG_R8,
            libc::REG_R9,
        ];
        let place = PLACES.get(usize::from(argument)).copied()?;
        registers.get(place as usize).map(|value| *value as u64)
    });
    let bytes = line.text();
    // SAFETY: both are async-signal-safe; the buffer lives for the call.
    unsafe {
        libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(ExitStatus::Sandbox as libc::c_int);
    }
}

/// What is said. Where the table pins an argument of this call, that argument is shown.
fn describe(
    out: &mut impl Write,
    thread: Option<Thread>,
    number: libc::c_int,
    argument: impl Fn(u8) -> Option<u64>,
) -> fmt::Result {
    write!(out, "error: the sandbox has stopped the thread '")?;
    match thread {
        Some(thread) => write!(out, "{thread}")?,
        None => write!(out, "?")?,
    }
    write!(out, "', which called ")?;
    write_call(out, number, argument)?;
    write!(
        out,
        ": a defect of bantam, or a guest or a file that has got the better of it\n\
         help: report this line; with '--sandbox log' such calls are made and told of\n"
    )
}

/// A call by its name and number, and the argument that the table pins, if it does.
pub(super) fn write_call(
    out: &mut impl Write,
    number: libc::c_int,
    argument: impl Fn(u8) -> Option<u64>,
) -> fmt::Result {
    let call = usize::try_from(number).ok().and_then(Sysno::new);
    write!(
        out,
        "{} ({number}",
        call.map_or("an unknown call", |call| call.name())
    )?;
    let mut rows = TABLE.iter().filter(|row| Some(row.call) == call);
    // Of an ioctl the number, not the file.
    let pinned = rows.find_map(|row| row.pins.iter().map(|pin| pin.argument()).max());
    if let Some((at, value)) = pinned.and_then(|at| Some((at, argument(at)?))) {
        write!(out, ", argument {}: {value:#x}", at.saturating_add(1))?;
    }
    write!(out, ")")
}

/// Text in memory that is there already.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Line {
            bytes: [0; 512],
            len: 0,
        }
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
            self.len = self.len.saturating_add(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(number: libc::c_int) -> String {
        let mut line = Line::new();
        describe(&mut line, None, number, |at| Some(u64::from(at) + 0x70)).unwrap();
        String::from_utf8(line.text().to_vec()).unwrap()
    }

    #[test]
    fn a_violation_is_told_in_two_lines() {
        let text = said(257);
        assert!(text.starts_with(
            "error: the sandbox has stopped the thread '?', which called openat (257):"
        ));
        assert!(
            text.ends_with("told of\n") && text.lines().count() == 2,
            "{text}"
        );
        assert!(
            said(16).contains("ioctl (16, argument 2: 0x71)"),
            "{}",
            said(16)
        );
        assert!(said(9999).contains("an unknown call (9999)"));
    }
}
