//! A process by fork(2) without exec: what it gives up, and how it ends.

use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::error::ExitStatus;
use crate::sandbox::violation;
use crate::storage::lock::HELPER_NAME;
use crate::sync::lock;

/// The exit code of a helper that has panicked.
const PANICKED: i32 = 101;

/// Signals that a terminal sends to all processes of a group, or a service manager to all of a service. The VMM decides
/// what becomes of them; the helper stays until it lets go of the image.
const IGNORED: [libc::c_int; 8] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGTERM,
    libc::SIGTSTP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
];

/// A child of this process.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    /// How it has ended. Its number is its own only until then.
    ended: Mutex<Option<String>>,
}

/// Starts a child that has the descriptors `keep` and no others, and ends when `body` does, or when the calling thread
/// is gone. Its name in `ps`
/// and in /proc/PID/comm is [`HELPER_NAME`] and `name`.
///
/// No other thread of this process should be there yet: one that has a lock now has it for ever in the child.
///
/// # Errors
/// Those of fork(2): EAGAIN where the user may have no more processes, ENOMEM.
pub fn start(name: &str, keep: &[RawFd], body: impl FnOnce()) -> io::Result<Child> {
    let mut name: Vec<u8> = HELPER_NAME.bytes().chain(name.bytes()).take(15).collect();
    name.push(0);
    // SAFETY: getpid cannot fail.
    let parent = unsafe { libc::getpid() };
    // SAFETY: the child has one thread, and runs nothing that another one could have left half done: see above. It
    // does not return from here.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let done = catch_unwind(AssertUnwindSafe(|| {
                give_up(parent, &name, keep);
                body();
            }));
            let code = if done.is_ok() { 0 } else { PANICKED };
            // SAFETY: ends the process; nothing of the parent's, such as buffers of its files, is written.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Child {
            pid,
            ended: Mutex::new(None),
        }),
    }
}

/// In the child: leaves the terminal, the other files and the signals to the parent.
fn give_up(parent: libc::pid_t, name: &[u8], keep: &[RawFd]) {
    log::set_max_level(log::LevelFilter::Off);
    // Its descriptor is closed below, and its number may become that of the image.
    violation::speak_to_standard_error();
    // SAFETY: these calls read the name, which is a C string, and change what belongs to this process alone: which
    // signals it ignores and which descriptors it has. Nobody here uses those that are closed; the objects that own
    // them are never dropped, as the process ends by _exit.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent {
            // It has ended already.
            libc::_exit(0);
        }
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        for signal in IGNORED {
            libc::signal(signal, libc::SIG_IGN);
        }
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for standard in 0..3 {
            if null < 0 || libc::dup2(null, standard) < 0 {
                libc::close(standard);
            }
        }
    }
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep {
        close_between(from, fd);
        from = fd.saturating_add(1);
    }
    close_between(from, RawFd::MAX);
}

/// Closes the descriptors from `first` to before `end`.
fn close_between(first: RawFd, end: RawFd) {
    if first >= end {
        return;
    }
    let last = end.saturating_sub(1);
    // SAFETY: see `give_up`.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed == 0 {
        return;
    }
    // Older than Linux 5.9.
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: fills the struct; then as above.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        let most = RawFd::try_from(limit.rlim_cur)
            .unwrap_or(RawFd::MAX)
            .min(1 << 20);
        for fd in first..end.min(most) {
            libc::close(fd);
        }
    }
}

impl Child {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Waits until it has ended, and says how.
    pub fn wait(&self) -> String {
        // It is not reaped by this wait, so its number stays its own until `look` has the lock.
        // SAFETY: the call fills a struct that is not looked at.
        let wait = || unsafe {
            let mut info = std::mem::zeroed();
            libc::waitid(
                libc::P_PID,
                self.pid.unsigned_abs(),
                &raw mut info,
                libc::WEXITED | libc::WNOWAIT,
            )
        };
        while wait() != 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {}
        self.look().unwrap_or_else(|| "is gone".into())
    }

    /// How it has ended, if it has.
    pub fn look(&self) -> Option<String> {
        let mut ended = lock(&self.ended);
        if ended.is_none() {
            let mut status = 0;
            // SAFETY: the call fills a number.
            match unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) } {
                0 => {}
                // Somebody who ignores SIGCHLD does not get to know how children end.
                -1 => *ended = Some("is gone".into()),
                _ if libc::WIFSIGNALED(status) => {
                    *ended = Some(format!("was ended by signal {}", libc::WTERMSIG(status)));
                }
                _ => {
                    let code = libc::WEXITSTATUS(status);
                    *ended = Some(match code == ExitStatus::Sandbox as i32 {
                        true => "made a system call that the sandbox does not allow".into(),
                        false => format!("ended with code {code}"),
                    });
                }
            }
        }
        ended.clone()
    }

    /// Waits for its end, and makes one when that has not come after `time`.
    pub fn end_within(&self, time: Duration) {
        if self.ends_within(time) {
            return;
        }
        log::warn!("process {} does not end: it is killed", self.pid);
        let ended = lock(&self.ended);
        if ended.is_none() {
            // SAFETY: it has not been reaped, so the number is its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        drop(ended);
        // One that the host does not let go of is left to the host.
        self.ends_within(Duration::from_secs(1));
    }

    fn ends_within(&self, time: Duration) -> bool {
        let begin = Instant::now();
        let mut pause = Duration::from_micros(50);
        while self.look().is_none() {
            if begin.elapsed() > time {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause.saturating_mul(2)).min(Duration::from_millis(5));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_child_has_what_it_was_left_and_ends() {
        let (kept, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let fds = (kept.as_raw_fd(), other.as_raw_fd());
        // SAFETY: asks for the flags of a descriptor.
        let is_open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
        let child = start("test", &[fds.0], || {
            let good = is_open(fds.0) && !is_open(fds.1);
            // SAFETY: ends the child.
            unsafe { libc::_exit(if good { 42 } else { 43 }) }
        });
        assert_eq!(child.unwrap().wait(), "ended with code 42");
        let child = start("test", &[], || panic!("as a test wants it")).unwrap();
        assert_eq!(child.wait(), format!("ended with code {PANICKED}"));
        let child = start("test", &[], || std::thread::sleep(Duration::from_secs(60))).unwrap();
        let comm = format!("/proc/{}/comm", child.pid());
        while std::fs::read_to_string(&comm).unwrap().trim() != "bantam: test" {}
        child.end_within(Duration::from_millis(1));
        assert_eq!(child.look().as_deref(), Some("was ended by signal 9"));
    }
}
