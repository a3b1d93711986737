//! Where output goes, without ever blocking on it.
//!
//! A pipe or terminal may be slow, and its O_NONBLOCK flag belongs to everybody who shares the open
//! file, the shell among them. So it is not set on the file that we were given: the same file is
//! opened anew through /proc, with the flag. Where that is not possible (a socket, another user's
//! terminal), poll(2) is asked first and little is written at a time. Files are written by a
//! [thread](super::thread).

use super::keeper::Keeper;
use super::thread::{STDERR, Writer};
use crate::error::io_reason;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

/// What fits into a pipe or socket that poll(2) calls writable, POSIX's PIPE_BUF.
const SMALL_WRITE: usize = 512;

/// How long what was written last may take to reach its file, or its reader.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Says EAGAIN instead of blocking.
    NonBlocking,
    /// May block: ask poll(2), write little.
    Polled,
    /// Like `NonBlocking`, but what does not fit is dropped.
    Lossy,
    /// The reader is gone.
    Closed,
}

/// What became of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrote {
    /// This many are done with.
    Bytes(usize),
    /// Nothing fits: wait until the file descriptor is writable.
    Full,
}

/// An output.
#[derive(Debug)]
pub struct Output {
    to: To,
    mode: Mode,
    /// Why it was closed has been logged. Standard error has nowhere to say it.
    told: bool,
    /// What `Polled` writes at a time.
    small: usize,
}

/// Where the bytes are put.
#[derive(Debug)]
enum To {
    Nowhere,
    Here(File),
    /// Into a pipe, from which a thread takes them.
    Thread(Writer),
}

impl To {
    fn file(&self) -> Option<&File> {
        match self {
            To::Nowhere => None,
            To::Here(file) => Some(file),
            To::Thread(writer) => writer.pipe(),
        }
    }
}

impl Output {
    fn new(to: To, mode: Mode) -> Self {
        Output {
            to,
            mode,
            told: false,
            small: SMALL_WRITE,
        }
    }

    /// Discards everything.
    pub fn none() -> Self {
        Output::new(To::Nowhere, Mode::Closed)
    }

    /// A file, which a thread called `name` writes.
    ///
    /// # Errors
    /// When the host has no thread or no pipe.
    pub fn file(name: &str, file: Keeper) -> io::Result<Self> {
        let writer = Writer::start(name, file, LAST_WORDS)?;
        Ok(Output::new(To::Thread(writer), Mode::NonBlocking))
    }

    /// A pseudo-terminal's master, already non-blocking: what nobody reads is lost.
    pub fn lossy(file: File) -> Self {
        Output::new(To::Here(file), Mode::Lossy)
    }

    /// Standard output (1) or standard error (2), whatever it is. Closed from the start where there is none.
    ///
    /// # Errors
    /// When the host has no second descriptor for it, or no thread or pipe for one that is a file.
    pub fn standard(number: RawFd) -> io::Result<Self> {
        let Some(file) = duplicate(number)? else {
            return Ok(Output::none());
        };
        let fd = file.as_raw_fd();
        let kind = file.metadata().map(|meta| meta.file_type());
        if kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device()) {
            let name = match number {
                libc::STDERR_FILENO => STDERR,
                _ => "stdout",
            };
            return Output::file(name, Keeper::endless(file));
        }
        let anew = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{fd}"));
        Ok(match anew {
            Ok(file) => Output::new(To::Here(file), Mode::NonBlocking),
            Err(_) => Output {
                // A terminal is writable as soon as one byte fits.
                small: if file.is_terminal() { 1 } else { SMALL_WRITE },
                ..Output::new(To::Here(file), Mode::Polled)
            },
        })
    }

    /// The same, that does not log that its reader has gone: for standard error, to which logs go.
    #[must_use]
    pub fn quiet(self) -> Self {
        Output { told: true, ..self }
    }

    /// The descriptor to wait on after [`Wrote::Full`].
    pub fn fd(&self) -> Option<RawFd> {
        self.to.file().map(AsRawFd::as_raw_fd)
    }

    /// Writes some of `bytes`. Bytes for a reader that is gone count as done.
    pub fn write(&mut self, bytes: &[u8]) -> Wrote {
        let Some(mut file) = self.to.file().filter(|_| self.mode != Mode::Closed) else {
            return Wrote::Bytes(bytes.len());
        };
        let part = match self.mode {
            Mode::Polled if !writable(file, 0) => return Wrote::Full,
            Mode::Polled => bytes.get(..self.small).unwrap_or(bytes),
            _ => bytes,
        };
        match file.write(part) {
            Ok(0) => {
                self.mode = Mode::Closed;
                Wrote::Bytes(bytes.len())
            }
            Ok(count) => Wrote::Bytes(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Wrote::Bytes(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.mode {
                Mode::Lossy => Wrote::Bytes(bytes.len()),
                _ => Wrote::Full,
            },
            Err(error) => {
                if !self.told {
                    log::warn!("console output is gone: {}", io_reason(&error));
                }
                self.mode = Mode::Closed;
                Wrote::Bytes(bytes.len())
            }
        }
    }

    /// Waits until more can be written, or the deadline has passed.
    pub fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = left.min(Duration::from_secs(60)).as_millis() as libc::c_int;
        self.to.file().is_some_and(|file| writable(file, millis))
    }
}

/// A descriptor of our own for a standard one, so that closing ours closes nothing else; `None` where there is none
/// (`<&-`).
///
/// # Errors
/// EMFILE, when this process may have no more.
pub fn duplicate(standard: RawFd) -> io::Result<Option<File>> {
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor or fails; no memory is involved.
    let fd = unsafe { libc::fcntl(standard, libc::F_DUPFD_CLOEXEC, 3) };
    if fd >= 0 {
        // SAFETY: the descriptor is new and nobody else's.
        return Ok(Some(unsafe { File::from_raw_fd(fd) }));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EBADF) => Ok(None),
        error => Err(error),
    }
}

fn writable(file: &File, timeout_ms: libc::c_int) -> bool {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd, valid for the call.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) > 0 }
}

#[cfg(test)]
impl Output {
    /// Writes into a pipe, without waiting for the reader.
    pub(super) fn on_a_pipe() -> (std::io::PipeReader, Self) {
        let (reader, writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        (reader, Output::new(To::Here(file), Mode::Polled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_full_pipe_is_full_and_does_not_block() {
        let (_reader, mut out) = Output::on_a_pipe();
        let mut written = 0;
        while let Wrote::Bytes(count) = out.write(&[b'x'; 4096]) {
            written += count;
            assert!(written <= 1 << 20);
        }
        assert!(written > 0);
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        let (reader, mut out) = Output::on_a_pipe();
        drop(reader);
        assert_eq!(out.write(b"hello"), Wrote::Bytes(5));
        assert_eq!(out.mode, Mode::Closed);
        assert_eq!(out.write(b"hello"), Wrote::Bytes(5));
    }
}
