//! Where console output goes, without ever blocking on it.
//!
//! A pipe or terminal may be slow, and its O_NONBLOCK flag belongs to everybody who shares the open
//! file, the shell among them. So it is not set on the file that we were given: the same file is
//! opened anew through /proc, with the flag. Where that is not possible (a socket, another user's
//! terminal), poll(2) is asked first and little is written at a time.

use crate::error::io_reason;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

/// What fits into a pipe or socket that poll(2) calls writable, POSIX's PIPE_BUF.
const SMALL_WRITE: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Never blocks for long: a file, /dev/null.
    Direct,
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
    file: Option<File>,
    mode: Mode,
    /// What `Polled` writes at a time.
    small: usize,
}

impl Output {
    /// Discards everything.
    pub fn none() -> Self {
        Output {
            file: None,
            mode: Mode::Closed,
            small: SMALL_WRITE,
        }
    }

    /// A file that was opened for this purpose.
    pub fn file(file: File) -> Self {
        Output {
            file: Some(file),
            mode: Mode::Direct,
            small: SMALL_WRITE,
        }
    }

    /// A pseudo-terminal's master, already non-blocking: what nobody reads is lost.
    pub fn lossy(file: File) -> Self {
        Output {
            file: Some(file),
            mode: Mode::Lossy,
            small: SMALL_WRITE,
        }
    }

    /// Standard output, whatever it is. Closed from the start where there is none.
    ///
    /// # Errors
    /// When the host gives no second descriptor for it.
    pub fn stdout() -> io::Result<Self> {
        Ok(match duplicate(libc::STDOUT_FILENO)? {
            Some(file) => Output::standard(file),
            None => Output::none(),
        })
    }

    fn standard(file: File) -> Self {
        let fd = file.as_raw_fd();
        let kind = file.metadata().map(|meta| meta.file_type());
        if kind.as_ref().is_ok_and(|kind| kind.is_file()) {
            return Output::file(file);
        }
        let anew = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{fd}"));
        match anew {
            Ok(file) => Output {
                file: Some(file),
                mode: Mode::NonBlocking,
                small: SMALL_WRITE,
            },
            Err(_) if kind.is_ok_and(|kind| kind.is_block_device()) => Output::file(file),
            Err(_) => Output {
                // A terminal is writable as soon as one byte fits.
                small: if file.is_terminal() { 1 } else { SMALL_WRITE },
                file: Some(file),
                mode: Mode::Polled,
            },
        }
    }

    /// The descriptor to wait on after [`Wrote::Full`].
    pub fn fd(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Writes some of `bytes`. Bytes for a reader that is gone count as done.
    pub fn write(&mut self, bytes: &[u8]) -> Wrote {
        let Some(file) = self.file.as_mut().filter(|_| self.mode != Mode::Closed) else {
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
                log::warn!("console output is gone: {}", io_reason(&error));
                self.mode = Mode::Closed;
                Wrote::Bytes(bytes.len())
            }
        }
    }

    /// Waits until more can be written, or the deadline has passed.
    pub fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = left.min(Duration::from_secs(60)).as_millis() as libc::c_int;
        self.file
            .as_ref()
            .is_some_and(|file| writable(file, millis))
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
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn pipe(mode: Mode) -> (std::io::PipeReader, Output) {
        let (reader, writer) = std::io::pipe().unwrap();
        let file = File::from(OwnedFd::from(writer));
        (
            reader,
            Output {
                file: Some(file),
                mode,
                small: SMALL_WRITE,
            },
        )
    }

    #[test]
    fn a_full_pipe_is_full_and_does_not_block() {
        let (_reader, mut out) = pipe(Mode::Polled);
        let mut written = 0;
        while let Wrote::Bytes(count) = out.write(&[b'x'; 4096]) {
            written += count;
            assert!(written <= 1 << 20);
        }
        assert!(written > 0);
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        let (reader, mut out) = pipe(Mode::Polled);
        drop(reader);
        assert_eq!(out.write(b"hello"), Wrote::Bytes(5));
        assert_eq!(out.mode, Mode::Closed);
        assert_eq!(out.write(b"hello"), Wrote::Bytes(5));
    }
}
