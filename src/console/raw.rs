//! Raw mode.
//!
//! The settings to go back to are kept in a static, because they are needed where nothing else can
//! be reached: in the panic hook and in the handlers of signals that end the process at once
//! (SIGSEGV and the like). tcsetattr(3) is async-signal-safe. Signals that can wait (SIGTERM,
//! SIGINT, SIGHUP) come through the event loop and end the machine in the ordinary way, as do SIGUSR1
//! and SIGUSR2, which end nothing.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sandbox::violation;

/// The terminal that is raw, and how it was.
struct Saved {
    armed: AtomicBool,
    termios: UnsafeCell<MaybeUninit<libc::termios>>,
}

// SAFETY: `termios` is written only while `armed` is false, by the one thread that holds a
// `RawMode` to be made, and read only after `armed` was seen true.
unsafe impl Sync for Saved {}

static SAVED: Saved = Saved {
    armed: AtomicBool::new(false),
    termios: UnsafeCell::new(MaybeUninit::uninit()),
};

const STDIN: libc::c_int = libc::STDIN_FILENO;
/// How often a terminal is asked to take its settings back; one that is gone never does.
const ATTEMPTS: u32 = 8;

/// Signals that end a process without asking it.
const FATAL: [libc::c_int; 13] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGIO,
    libc::SIGPWR,
];

/// Standard input is in raw mode as long as this lives.
#[derive(Debug)]
pub struct RawMode(());

/// True when standard input is a terminal that belongs to us now: in the background, changing it
/// would stop the process (SIGTTOU), and so would reading (SIGTTIN).
pub fn owns_terminal() -> bool {
    // SAFETY: plain queries without pointers.
    let (group, ours) = unsafe { (libc::tcgetpgrp(STDIN), libc::getpgrp()) };
    // ENOTTY: not our controlling terminal, so there is no job control on it.
    let uncontrolled = group < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOTTY);
    is_terminal() && (group == ours || uncontrolled)
}

/// True when standard input is a terminal at all.
pub fn is_terminal() -> bool {
    // SAFETY: a plain query without pointers.
    unsafe { libc::isatty(STDIN) == 1 }
}

impl RawMode {
    /// Puts standard input into raw mode, with output processing left on, so that messages of
    /// our own keep their line ends.
    ///
    /// # Errors
    /// Those of the terminal, or when it is raw already.
    pub fn enter() -> io::Result<Self> {
        if SAVED.armed.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        install_restorers();
        // SAFETY: `armed` is false, so nobody reads the cell; the call fills it or fails.
        let saved = unsafe {
            let slot = (*SAVED.termios.get()).as_mut_ptr();
            if libc::tcgetattr(STDIN, slot) != 0 {
                return Err(io::Error::last_os_error());
            }
            *slot
        };
        SAVED.armed.store(true, Ordering::SeqCst);
        let raw = RawMode(());
        set(&raw_settings(saved))?;
        Ok(raw)
    }

    /// Raw again, after the process was stopped and continued and the shell has set its own mode.
    pub fn again(&self) {
        if !owns_terminal() {
            return;
        }
        // SAFETY: `self` is the proof that the cell is filled, and nobody writes it meanwhile.
        let saved = unsafe { (*SAVED.termios.get()).assume_init() };
        // Should it fail, the user sees a cooked terminal; there is nobody to tell.
        let _ = set(&raw_settings(saved));
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn raw_settings(saved: libc::termios) -> libc::termios {
    let mut raw = saved;
    // SAFETY: works on the local copy alone.
    unsafe { libc::cfmakeraw(&raw mut raw) };
    raw.c_oflag = saved.c_oflag;
    raw
}

fn set(termios: &libc::termios) -> io::Result<()> {
    // SAFETY: the pointer is valid for the call.
    match unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, termios) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes raw mode back; safe to call at any time, from a signal handler too, any number of times.
fn restore() {
    if SAVED.armed.swap(false, Ordering::SeqCst) {
        // A terminal that was interrupted, or had no memory, is asked again: nobody else will do it.
        for _ in 0..ATTEMPTS {
            // SAFETY: `armed` was true, so the cell is filled and nobody writes it.
            let set =
                unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, (*SAVED.termios.get()).as_ptr()) };
            if set == 0 {
                return;
            }
        }
    }
}

extern "C" fn on_fatal_signal(signal: libc::c_int) {
    restore();
    // SAFETY: both calls are async-signal-safe. With the default action back in place the signal
    // ends the process, with the core dump and the status it would have had.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

fn install_restorers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        violation::before_the_end(restore);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        for signal in FATAL {
            // SAFETY: an all-zero sigaction is valid; the handler calls nothing but
            // async-signal-safe functions. On the alternate stack it also works where the
            // thread's own has overflowed.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction =
                    on_fatal_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
                action.sa_flags = libc::SA_ONSTACK;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
        // A job in the background may give the terminal back without being stopped for it.
        // SAFETY: no handler, no memory.
        unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    });
}
