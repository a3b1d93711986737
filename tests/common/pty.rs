//! bantam on a real pseudo-terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::bantam;

/// A pseudo-terminal with bantam on it, in a session of its own.
pub struct Session {
    master: File,
    slave: File,
    pub child: Child,
    before: Vec<u8>,
    seen: String,
    /// How long `expect` and `finish` wait.
    pub patience: Duration,
}

fn termios(file: &File) -> Vec<u8> {
    // SAFETY: tcgetattr fills the struct, or the test ends.
    let settings = unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(file.as_raw_fd(), &raw mut settings), 0);
        settings
    };
    format!(
        "{:x} {:x} {:x} {:x} {:?}",
        settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag, settings.c_cc
    )
    .into_bytes()
}

/// Gives a terminal so many columns and rows.
pub fn resize(terminal: &File, (columns, rows): (u16, u16)) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the struct is valid for the call.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(done, 0);
}

fn run(args: &[&str]) -> Command {
    let mut command = Command::new(bantam());
    command.arg("run").args(args);
    command
}

impl Session {
    /// `bantam run` with these words.
    pub fn start(args: &[&str]) -> Self {
        Session::of(run(args))
    }

    /// The same on a terminal of so many columns and rows.
    pub fn sized(args: &[&str], size: (u16, u16)) -> Self {
        Session::begin(run(args), None, Some(size))
    }

    /// The same with a limit of setrlimit(2).
    pub fn limited(args: &[&str], limit: (libc::__rlimit_resource_t, u64)) -> Self {
        Session::begin(run(args), Some(limit), None)
    }

    /// Any command on a terminal of its own.
    pub fn of(command: Command) -> Self {
        Session::begin(command, None, None)
    }

    fn begin(
        mut command: Command,
        limit: Option<(libc::__rlimit_resource_t, u64)>,
        size: Option<(u16, u16)>,
    ) -> Self {
        let (mut master, mut slave) = (0, 0);
        // SAFETY: openpty fills both descriptors; the rest may be null.
        let opened = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        assert_eq!(opened, 0);
        for fd in [master, slave] {
            // SAFETY: takes a descriptor alone. What the child gets of them, it gets as its stdio.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        // SAFETY: both are new and ours.
        let (master, slave) = unsafe {
            (
                File::from(OwnedFd::from_raw_fd(master)),
                File::from(OwnedFd::from_raw_fd(slave)),
            )
        };
        if let Some(size) = size {
            resize(&master, size);
        }
        let before = termios(&slave);
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: all calls are async-signal-safe; two make the terminal the child's own.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                if let Some((resource, value)) = limit {
                    super::set_limit(resource, value)?;
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        Session {
            master,
            slave,
            child,
            before,
            seen: String::new(),
            patience: Duration::from_secs(20),
        }
    }

    /// Gives the terminal so many columns and rows.
    pub fn resize(&self, size: (u16, u16)) {
        resize(&self.master, size);
    }

    pub fn send(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Types in the background: a paste may have to wait for what it causes to be read.
    pub fn paste(&self, keys: &[u8]) {
        let mut master = self.master.try_clone().unwrap();
        let keys = keys.to_vec();
        std::thread::spawn(move || master.write_all(&keys));
    }

    /// Wipes what has been seen, so that the next `expect` is for something new.
    pub fn forget(&mut self) {
        self.seen.clear();
    }

    /// What the screen has shown.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// Waits until the screen shows `text`.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        self.expect_by(text, |seen| seen.contains(text));
    }

    /// Waits until what the screen has shown is as `there` wants it; `what` that is, for the
    /// message.
    #[track_caller]
    pub fn expect_by(&mut self, what: &str, there: impl Fn(&str) -> bool) {
        let end = Instant::now() + self.patience;
        while !there(&self.seen) {
            assert!(Instant::now() < end, "no '{what}' in {:?}", self.seen);
            let mut poll = libc::pollfd {
                fd: self.master.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one pollfd, valid for the call.
            if unsafe { libc::poll(&raw mut poll, 1, 100) } == 1 {
                let mut bytes = [0; 4096];
                if let Ok(count) = self.master.read(&mut bytes) {
                    self.seen
                        .push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
            }
        }
    }

    /// What the screen has shown, with what has just come.
    pub fn catch_up(&mut self) -> &str {
        let mut bytes = [0; 4096];
        let mut poll = libc::pollfd {
            fd: self.master.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, valid for the call.
        while unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 {
            match self.master.read(&mut bytes) {
                Ok(count @ 1..) => self
                    .seen
                    .push_str(&String::from_utf8_lossy(&bytes[..count])),
                _ => break,
            }
        }
        &self.seen
    }

    pub fn is_raw(&self) -> bool {
        termios(&self.slave) != self.before
    }

    /// Waits for the end, and checks that the terminal is as it was.
    #[track_caller]
    pub fn finish(&mut self) -> std::process::ExitStatus {
        let status = super::wait(&mut self.child, self.patience);
        let Some(status) = status else {
            let _ = self.child.kill();
            panic!("it did not end; seen: {:?}", self.seen);
        };
        assert_eq!(
            String::from_utf8_lossy(&termios(&self.slave)),
            String::from_utf8_lossy(&self.before),
            "the terminal's settings"
        );
        status
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
