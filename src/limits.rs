//! What this process may have: the address space that `ulimit -v` leaves it, and threads within it.
//!
//! The standard library panics where a new thread finds no memory for its signal stack, a few pages
//! that are mapped after the thread has begun. So where address space is limited, there must be room
//! for all of a thread before it is started, and the next thing is begun when it has its stack.
//! Without a limit, a thread is started as everywhere.

use std::io;
use std::mem::MaybeUninit;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

/// A thread's stack, and what its signal stack and the heap need beside it.
const THREAD_BYTES: usize = (2 << 20) + (1 << 20);

/// What reading the command line takes, and a configuration of a few pages.
const WORDS_BYTES: usize = 1 << 20;

/// The limit of `ulimit -v` in bytes, where there is one.
pub fn address_space() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: fills the struct, which lives for the call.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    (got == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Starts a thread of this name, which leaves signals to the main thread.
///
/// # Errors
/// When the host allows no more of them, or there is no room for it.
pub fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = Builder::new().name(name);
    let _blocked = SignalsBlocked::here();
    if address_space().is_none() {
        return builder.spawn(body);
    }
    room_for_a_thread()?;
    let (begun, has_begun) = mpsc::sync_channel(1);
    let thread = builder.spawn(move || {
        let _ = begun.send(());
        body()
    })?;
    let _ = has_begun.recv();
    Ok(thread)
}

/// Has all signals that are for the program go to the main thread, which waits for them: they are blocked while a thread
/// is made, which begins with what its maker blocks, and until this is dropped. The kernel gives a signal to any thread
/// that does not block it: one that was started before the main thread has blocked SIGTERM would be given it, and the
/// whole program would end at once, without a word to the guest. A thread cannot do this by itself, as on a busy host it
/// may not have run at all when the signal comes.
///
/// What a thread brings about by itself stays its own (SIGSEGV and the like, a call that seccomp forbids), and so does
/// SIGURG, by which a vCPU's thread is kicked.
struct SignalsBlocked(MaybeUninit<libc::sigset_t>);

impl SignalsBlocked {
    fn here() -> Self {
        const OWN: [libc::c_int; 8] = [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGABRT,
            libc::SIGSYS,
            libc::SIGTRAP,
            libc::SIGURG,
        ];
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset and sigemptyset fill the sets before anything reads them.
        unsafe {
            libc::sigemptyset(before.as_mut_ptr());
            libc::sigfillset(set.as_mut_ptr());
            for signal in OWN {
                libc::sigdelset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
        }
        SignalsBlocked(before)
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set has been filled when this was made.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, self.0.as_ptr(), std::ptr::null_mut());
        }
    }
}

/// Whether a thread could have its memory now.
///
/// # Errors
/// ENOMEM.
pub fn room_for_a_thread() -> io::Result<()> {
    room_for(THREAD_BYTES)
}

/// Whether a command line and a configuration can be read: an allocation that fails there would end the
/// process without a word of ours.
///
/// # Errors
/// ENOMEM.
pub fn room_for_words() -> io::Result<()> {
    room_for(WORDS_BYTES)
}

fn room_for(bytes: usize) -> io::Result<()> {
    if address_space().is_none() {
        return Ok(());
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping that nobody else knows of, and that is gone again at once.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::munmap(at, bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn threads_are_started() {
        let thread = super::spawn("x".into(), || 7).unwrap();
        assert_eq!(thread.join().unwrap(), 7);
        assert!(super::room_for_a_thread().is_ok());
    }
}
