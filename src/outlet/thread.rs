//! A thread that copies between a file and a pipe, because a file cannot be read or written without the chance to
//! block.
//!
//! O_NONBLOCK means nothing for a regular file or a block device (open(2)): a write to a file system that does
//! not answer waits for it, in the kernel, where not even SIGKILL ends it. So such a file is given to a thread,
//! and everybody else has one end of a pipe, which is bounded by the kernel, can be watched by epoll, and never
//! blocks. Threads are made before the guest runs.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::keeper::Keeper;
use crate::error::io_reason;
use crate::limits;
use crate::sandbox::{self, Role};

/// The name of the thread that writes standard error, where that is a file.
pub const STDERR: &str = "stderr";

/// Bytes moved at a time.
const CHUNK: usize = 16 << 10;
/// Input that is read ahead of who takes it; the least that the kernel allows (fcntl(2), F_SETPIPE_SZ).
const INPUT_AHEAD: libc::c_int = 4096;

/// A file that is written by a thread. Dropping it waits for a while until all is written.
#[derive(Debug)]
pub struct Writer {
    pipe: Option<File>,
    /// Nothing is sent; the sender is gone when all is written.
    done: Receiver<()>,
    /// How long a drop waits.
    patience: Duration,
    complains: bool,
}

impl Writer {
    /// Has a thread called `name` write `file`. It has `patience` for what is written last.
    ///
    /// # Errors
    /// When the host has no thread or no pipe.
    pub fn start(name: &str, file: Keeper, patience: Duration) -> io::Result<Self> {
        // Of standard error there is nobody to tell.
        let complains = name != STDERR;
        let (reader, writer) = io::pipe()?;
        let pipe = File::from(OwnedFd::from(writer));
        never_block(&pipe)?;
        let (at_work, done) = channel();
        limits::spawn(name.into(), move || {
            sandbox::enter(Role::ConsoleFile);
            write_all(reader, file, complains, at_work);
        })?;
        Ok(Writer {
            pipe: Some(pipe),
            done,
            patience,
            complains,
        })
    }

    /// The end of the pipe, for writes that do not block.
    pub fn pipe(&self) -> Option<&File> {
        self.pipe.as_ref()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.pipe = None;
        let ended = self.done.recv_timeout(self.patience);
        if ended == Err(RecvTimeoutError::Timeout) && self.complains {
            log::warn!("a file that output goes to does not answer: the last of it may be lost");
        }
    }
}

/// The body of the thread. Once a write has failed, what comes is read and dropped: nobody is to wait for it.
fn write_all(mut from: PipeReader, mut file: Keeper, complains: bool, at_work: Sender<()>) {
    let mut chunk = vec![0; CHUNK];
    let mut failed = false;
    loop {
        let bytes = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => chunk.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        if !failed && let Err(error) = file.write_all(bytes) {
            if complains {
                log::warn!("console output is gone: {}", io_reason(&error));
            }
            failed = true;
        }
    }
    // Closing a file may block as well.
    drop(file);
    drop(at_work);
}

/// Has a thread called `name` read `file`, and gives the end of a pipe that what it has read comes out of.
///
/// # Errors
/// When the host has no thread or no pipe.
pub fn reader(name: &str, file: File) -> io::Result<File> {
    let (reader, writer) = io::pipe()?;
    let pipe = File::from(OwnedFd::from(reader));
    never_block(&pipe)?;
    // SAFETY: takes a descriptor and a number alone. Should it fail, more is read ahead.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, INPUT_AHEAD) };
    limits::spawn(name.into(), move || {
        sandbox::enter(Role::ConsoleFile);
        read_all(file, writer);
    })?;
    Ok(pipe)
}

fn read_all(mut file: File, mut to: PipeWriter) {
    let mut chunk = [0; INPUT_AHEAD as usize];
    loop {
        let bytes = match file.read(&mut chunk) {
            Ok(count @ 1..) => chunk.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A failure is the end of input, as it is for everybody who reads a file.
            _ => return,
        };
        if to.write_all(bytes).is_err() {
            // Nobody takes it any more.
            return;
        }
    }
}

/// Has reads and writes of a pipe of our own end with EAGAIN where they would block.
fn never_block(pipe: &File) -> io::Result<()> {
    // SAFETY: takes a descriptor and a number alone.
    match unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    #[test]
    fn all_that_was_written_is_in_the_file_when_the_writer_is_dropped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let keeper = Keeper::endless(file.reopen().unwrap());
        let writer = Writer::start("test", keeper, Duration::from_secs(60)).unwrap();
        let mut pipe = writer.pipe().unwrap().try_clone().unwrap();
        let text: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let mut left = text.as_slice();
        while !left.is_empty() {
            match pipe.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    std::thread::yield_now();
                }
            }
        }
        drop(pipe);
        drop(writer);
        assert_eq!(std::fs::read(file.path()).unwrap(), text);
    }

    #[test]
    fn a_file_that_does_not_answer_is_given_up_and_one_that_fails_is_read_away() {
        // A pipe that nobody reads is as good as a file system that does not answer.
        let (_nobody_reads, stuck) = io::pipe().unwrap();
        let keeper = Keeper::endless(File::from(OwnedFd::from(stuck)));
        let writer = Writer::start("test", keeper, Duration::from_millis(50)).unwrap();
        let mut pipe = writer.pipe().unwrap();
        let mut taken = 0;
        while let Ok(count) = pipe.write(&[0; 4096]) {
            taken += count;
            assert!(taken < 4 << 20, "it is bounded");
            if taken < 128 << 10 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        drop(writer);

        let full = File::options().write(true).open("/dev/full").unwrap();
        let writer = Writer::start("test", Keeper::endless(full), Duration::from_secs(60)).unwrap();
        let mut pipe = writer.pipe().unwrap();
        let (mut sent, end) = (0, std::time::Instant::now() + Duration::from_secs(60));
        while sent < 1 << 20 {
            assert!(std::time::Instant::now() < end, "nobody reads it away");
            match pipe.write(&[0; 4096]) {
                Ok(count) => sent += count,
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn a_file_is_read_to_its_end_and_not_far_ahead() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 100_000]).unwrap();
        let source = file.reopen().unwrap();
        let mut pipe = reader("test", source.try_clone().unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        // Both descriptors share it.
        let ahead = (&source).stream_position().unwrap();
        assert!(ahead <= 16 << 10, "{ahead}");
        let (mut all, mut chunk) = (0, [0; 4096]);
        loop {
            match pipe.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => all += count,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    std::thread::yield_now();
                }
            }
        }
        assert_eq!(all, 100_000);
    }
}
