//! `--sandbox log`: a call that the table does not allow is made all the same, and told of once.
//!
//! The kernel asks instead of refusing (seccomp_unotify(2)): the thread that has made the call waits, a listener reads
//! which call it is from a file descriptor, and answers that the thread may go on. The listener is a thread of this
//! process that has no filter itself. It answers first and writes then, as the thread that waits may hold what the
//! writing needs.
//!
//! This is no protection. It is for finding out which row the table lacks.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::violation::{Thread, write_call};
use crate::limits;
use crate::sync::lock;

/// Calls that are told of; there are not more of them.
const CALLS: usize = 512;

/// Whom the listener listens to.
struct Listeners {
    new: Mutex<Vec<(Thread, OwnedFd)>>,
    wake: EventFd,
}

static LISTENERS: std::sync::OnceLock<Listeners> = std::sync::OnceLock::new();
static STARTED: AtomicBool = AtomicBool::new(false);

/// Starts the listener, by a thread that has no filter yet.
///
/// # Errors
/// When the host allows no thread or no event fd.
pub fn start() -> io::Result<()> {
    if STARTED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    let listeners = LISTENERS.get_or_init(|| Listeners {
        new: Mutex::default(),
        wake,
    });
    limits::spawn("sandbox-log".into(), move || run(listeners)).map(drop)
}

/// Has the listener answer the calls of `thread`, which come out of `listener`.
pub fn listen(thread: Thread, listener: OwnedFd) {
    if let Some(listeners) = LISTENERS.get() {
        lock(&listeners.new).push((thread, listener));
        let _ = listeners.wake.write(1);
    }
}

fn run(listeners: &Listeners) {
    let mut all: Vec<(Thread, OwnedFd)> = Vec::new();
    let mut told: Vec<(libc::c_int, String)> = Vec::new();
    loop {
        let fds = [listeners.wake.as_raw_fd()]
            .into_iter()
            .chain(all.iter().map(|(_, fd)| fd.as_raw_fd()));
        let mut polls: Vec<libc::pollfd> = fds
            .map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        // SAFETY: as many pollfds as it is told, valid for the call.
        if unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) } < 0 {
            continue;
        }
        for ((thread, fd), poll) in all.iter().zip(polls.iter().skip(1)) {
            if poll.revents & libc::POLLIN == 0 {
                continue;
            }
            let Some(call) = answer(fd) else { continue };
            let known = (call.nr, thread.to_string());
            if told.contains(&known) || told.len() >= CALLS {
                continue;
            }
            let mut text = String::new();
            let _ = write_call(&mut text, call.nr, |at| {
                call.args.get(usize::from(at)).copied()
            });
            log::warn!("the sandbox would have stopped the thread '{thread}', which called {text}");
            told.push(known);
        }
        // A thread that has ended hangs up.
        let mut at = 0;
        all.retain(|_| {
            at += 1;
            polls
                .get(at)
                .is_none_or(|poll| poll.revents & libc::POLLHUP == 0)
        });
        let _ = listeners.wake.read();
        all.append(&mut lock(&listeners.new));
    }
}

/// Reads a call, and has its thread go on.
fn answer(listener: &OwnedFd) -> Option<libc::seccomp_data> {
    let fd = listener.as_raw_fd();
    // SAFETY: the kernel wants the structure to be zeros, which is a valid value of it, and fills it.
    let notification = unsafe {
        let mut notification: libc::seccomp_notif = std::mem::zeroed();
        let got = libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notification);
        (got == 0).then_some(notification)
    }?;
    let response = libc::seccomp_notif_resp {
        id: notification.id,
        val: 0,
        error: 0,
        flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    };
    // SAFETY: the structure lives for the call. That the thread has gone meanwhile is no matter.
    unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
    Some(notification.data)
}
