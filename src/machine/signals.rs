//! Signals as events: they are blocked everywhere and read from a signalfd by the event loop. The main thread blocks them
//! here, the others begin with them blocked ([`limits::spawn`](crate::limits::spawn)).

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;

/// Has the machine pause. Of signals that are pending together the kernel hands over the lower number first,
/// so of a pause and a resume that nobody has heard yet the resume counts, whichever was sent last.
pub const PAUSE: libc::c_int = libc::SIGUSR1;
/// Has it go on.
pub const RESUME: libc::c_int = libc::SIGUSR2;

/// Signals that ask the machine to end, those that have it pause and go on, SIGCONT, after which the
/// terminal is made raw again, and SIGWINCH, upon which its size is looked at. The last one is blocked in all
/// threads like the others: one that did not block it would be given it, and would ignore it.
const WATCHED: [libc::c_int; 8] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGCONT,
    libc::SIGWINCH,
    PAUSE,
    RESUME,
];

/// The signalfd.
#[derive(Debug)]
pub struct Signals(File);

impl Signals {
    /// Blocks the signals in this thread, and so in all that it starts later.
    ///
    /// # Errors
    /// Those of sigprocmask(2) and signalfd(2).
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset fills the set before anything reads it; all pointers are valid for
        // the calls; the file descriptor is new and ours.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in WATCHED {
                if !ignored(signal) {
                    libc::sigaddset(set.as_mut_ptr(), signal);
                }
            }
            if libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Signals(File::from_raw_fd(fd)))
        }
    }

    /// The next signal that has arrived.
    pub fn next(&self) -> Option<libc::c_int> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        let read = (&self.0).read(&mut info).ok()?;
        let number = info.first_chunk().filter(|_| read == info.len())?;
        libc::c_int::try_from(u32::from_ne_bytes(*number)).ok()
    }
}

/// Has a pause that is asked for while the machine is still being set up wait until there is one: these two
/// signals would end the process otherwise, and nobody means that by them. To be called before any
/// thread is started, as the kernel gives a signal to whichever thread does not block it. The signals that
/// ask for the end do that at once until [`Signals::block`] is called.
pub fn hold_pauses_back() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set before anything reads it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [PAUSE, RESUME] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Whether our parent has us ignore the signal, as nohup(1) does with SIGHUP. A signalfd would
/// report it all the same.
fn ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the call fills the struct or fails.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Name of a watched signal.
pub fn name(signal: libc::c_int) -> &'static str {
    match signal {
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGHUP => "SIGHUP",
        libc::SIGQUIT => "SIGQUIT",
        _ => "a signal",
    }
}
