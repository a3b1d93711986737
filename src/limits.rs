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
    limit_of(libc::RLIMIT_AS)
}

/// Whether there is a limit on the memory that this process may have by itself (`ulimit -v`, `ulimit -d`).
fn has_limit() -> bool {
    address_space().is_some() || limit_of(libc::RLIMIT_DATA).is_some()
}

fn limit_of(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: fills the struct, which lives for the call.
    let got = unsafe { libc::getrlimit(resource, &raw mut limit) };
    (got == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Signals by which somebody asks something of the process: the main thread answers them. The kernel gives a
/// signal to any thread that does not block it, and SIGTERM for one of the others would end the process on the
/// spot. (The signal that has a vCPU leave KVM_RUN is not among them.)
const ASKED_OF_THE_PROCESS: [libc::c_int; 8] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGCONT,
    libc::SIGWINCH,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// These signals are blocked in this thread, and so in all that it starts, until this is dropped.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn now() -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset fills the set before anything reads it, and pthread_sigmask, which fails for
        // no valid arguments, the other.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in ASKED_OF_THE_PROCESS {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            Blocked(before.assume_init())
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is one that was in force before.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut());
        }
    }
}

/// Starts a thread of this name. It is given no signal by which something is asked of the process.
///
/// # Errors
/// When the host allows no more of them, or there is no room for it.
pub fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let _inherited = Blocked::now();
    let builder = Builder::new().name(name);
    if !has_limit() {
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
    if !has_limit() {
        return Ok(());
    }
    // Writable, or it would not count as data.
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    // SAFETY: a new mapping that nobody else knows of, and that is gone again at once.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0);
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

    #[test]
    fn a_thread_is_given_no_signal_that_asks_something_of_the_process() {
        let mask = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        let before = mask();
        let theirs = super::spawn("x".into(), mask).unwrap().join().unwrap();
        for signal in super::ASKED_OF_THE_PROCESS {
            assert_ne!(theirs & 1 << (signal - 1), 0, "{signal}");
        }
        assert_eq!(theirs & 1 << (libc::SIGRTMIN() - 1), 0, "the kick");
        assert_eq!(mask(), before, "and nothing has changed here");
    }
}
