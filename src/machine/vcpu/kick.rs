//! The kick: a signal that makes a vCPU thread leave KVM_RUN, so that it looks at its mailbox.
//!
//! KVM_RUN returns when a signal is pending. That alone would not be enough: a signal that arrives
//! right before the call has been handled by the time the call is made, and the call would go on for
//! as long as the guest likes. So the handler also sets `immediate_exit` in the thread's own
//! `kvm_run` (KVM API, 5): with that byte set, KVM_RUN returns EINTR at once.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Mutex;

use kvm_bindings::kvm_run;

use crate::sync::lock;

thread_local! {
    /// Where this thread's vCPU has its `kvm_run`, for the signal handler.
    static KVM_RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// The thread that a kick goes to, as long as there is one.
///
/// A signal must never go to the id of a thread that has ended: the C library may have given the id
/// to another one, or have unmapped the memory that it points to. So the id stands here from the
/// thread's beginning to its end, and whoever sends the signal holds the lock meanwhile.
#[derive(Debug, Default)]
pub struct Target(Mutex<Option<libc::pthread_t>>);

impl Target {
    /// Makes this thread, whose vCPU has this `kvm_run`, the target until the guard is dropped. A
    /// thread without a vCPU has none.
    pub(super) fn enter(&self, run: Option<&mut kvm_run>) -> Entered<'_> {
        // In this order: the handler may run as soon as the id is known.
        KVM_RUN.set(run.map_or(ptr::null_mut(), ptr::from_mut));
        hear_kicks();
        // SAFETY: takes nothing and cannot fail.
        *lock(&self.0) = Some(unsafe { libc::pthread_self() });
        Entered {
            target: self,
            _stays: PhantomData,
        }
    }

    /// Whether there is a thread.
    pub fn is_there(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Kicks the thread, if there is one.
    pub fn kick(&self) {
        let thread = lock(&self.0);
        if let Some(thread) = *thread {
            // SAFETY: the thread has not ended: before it does, it takes its id away, and for that it
            // needs the lock that is held here. The signal has a handler before any thread is here
            // (`install_handler`).
            unsafe { libc::pthread_kill(thread, SIGNAL) };
        }
    }
}

/// This thread is a [`Target`]. The guard cannot go to another thread.
pub(super) struct Entered<'a> {
    target: &'a Target,
    _stays: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *lock(&self.target.0) = None;
        // After the line above no kick is sent any more, but one may still be on its way.
        KVM_RUN.set(ptr::null_mut());
    }
}

/// The signal. A real-time signal would be queued, and is refused (EAGAIN) where the user's queue of signals is full,
/// which any other program of theirs can bring about (RLIMIT_SIGPENDING, signal(7)): then no vCPU could be paused
/// or stopped. One of the standard signals is never refused. This one is ignored by whoever has no handler for it.
const SIGNAL: libc::c_int = libc::SIGURG;

extern "C" fn on_kick(_signal: libc::c_int) {
    let run = KVM_RUN.get();
    if !run.is_null() {
        // SAFETY: the pointer is into this thread's own kvm_run, mapped as long as `Entered` lives.
        // KVM_RUN reads the byte; our own code writes it only between two runs, on this same thread,
        // and never keeps a reference to it.
        unsafe { ptr::write_volatile(&raw mut (*run).immediate_exit, 1) };
    }
}

/// Has this thread hear the signal, also where whoever has started the program blocks it.
fn hear_kicks() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set before anything reads it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), SIGNAL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
    }
}

/// Installs the signal's handler, once per process.
///
/// # Errors
/// Those of sigaction(2).
pub fn install_handler() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as libc::sighandler_t;
        match libc::sigaction(SIGNAL, &raw const action, ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
