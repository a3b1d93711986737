//! Lines of our own on standard error, for which nobody waits while a machine runs.
//!
//! A terminal that was stopped by Ctrl-s, or a pipe whose reader sleeps, takes nothing. Before and after a
//! machine runs, writing to it waits, as with every other program. From [`never_wait`] to [`finish`] it does not:
//! what does not go out at once is kept, up to a bound, and goes out when the reader reads again. What has no
//! room is lost and counted, and the count is said in its place.
//!
//! ```text
//!   say, the log ─▶ kept: 64 KiB ─▶ Output ─▶ standard error
//!                        │ full: lost, counted
//!                        └ something is left: wake fd ─▶ event loop: flush when it can be written to
//! ```

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::output::{LAST_WORDS, Output, Wrote};
use crate::error::escaped_lines;
use crate::sync::lock;

/// Bytes that wait for a reader.
const KEPT: usize = 64 << 10;

/// `None`: writes go to standard error directly, and may wait.
static LINES: Mutex<Option<Lines>> = Mutex::new(None);

/// What is under way.
struct Lines {
    output: Output,
    kept: VecDeque<u8>,
    lost: u64,
    /// To the event loop: something is kept.
    wake: EventFd,
}

impl Lines {
    fn write(&mut self, line: &[u8]) {
        if self.lost > 0 || self.kept.len().saturating_add(line.len()) > KEPT {
            self.flush();
        }
        if self.lost > 0 || self.kept.len().saturating_add(line.len()) > KEPT {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        self.kept.extend(line);
        if !self.flush() {
            // Failure means that it is readable already.
            let _ = self.wake.write(1);
        }
    }

    /// Writes what is kept; true when nothing is left of it.
    fn flush(&mut self) -> bool {
        loop {
            while !self.kept.is_empty() {
                match self.output.write(self.kept.as_slices().0) {
                    Wrote::Bytes(count) => drop(self.kept.drain(..count)),
                    Wrote::Full => return false,
                }
            }
            if self.lost == 0 {
                return true;
            }
            let note = format!(
                "bantam: {} lines were lost while nobody read them\n",
                self.lost
            );
            self.lost = 0;
            self.kept.extend(note.as_bytes());
        }
    }
}

/// Prints a line, or several, to standard error. One that is closed or full is no reason to end a
/// machine.
pub fn say(line: &str) {
    write(format!("{}\n", escaped_lines(line)).as_bytes());
}

fn write(line: &[u8]) {
    match &mut *lock(&LINES) {
        Some(lines) => lines.write(line),
        None => drop(io::stderr().write_all(line)),
    }
}

/// What a logger writes its lines to.
#[derive(Debug)]
pub struct Log;

impl Write for Log {
    /// `line` is a whole one.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From now on nobody waits for standard error. Gives the descriptor that is readable when something is kept:
/// then [`flush`] is to be called when the descriptor that [`heard`] gives is writable.
///
/// # Errors
/// When the host has no descriptor, or no thread or pipe for one that is a file.
pub fn never_wait() -> io::Result<RawFd> {
    let output = Output::standard(libc::STDERR_FILENO)?.quiet();
    let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    let fd = wake.as_raw_fd();
    *lock(&LINES) = Some(Lines {
        output,
        kept: VecDeque::new(),
        lost: 0,
        wake,
    });
    Ok(fd)
}

/// The wake-up of [`never_wait`] was heard. The descriptor to wait on, if something is kept.
pub fn heard() -> Option<RawFd> {
    let mut lines = lock(&LINES);
    let lines = lines.as_mut()?;
    let _ = lines.wake.read();
    match lines.flush() {
        true => None,
        false => lines.output.fd(),
    }
}

/// Writes what is kept; true when nothing is left of it.
pub fn flush() -> bool {
    lock(&LINES).as_mut().is_none_or(Lines::flush)
}

/// The machine has ended: gives what is kept a while to reach its reader, and says what is lost.
pub fn finish() {
    let Some(mut lines) = lock(&LINES).take() else {
        return;
    };
    let deadline = Instant::now() + LAST_WORDS;
    while !lines.flush() && Instant::now() < deadline {
        lines.output.wait(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_nobody_reads_is_kept_up_to_a_bound_then_counted_and_said() {
        let (mut reader, output) = Output::on_a_pipe();
        let mut lines = Lines {
            output,
            kept: VecDeque::new(),
            lost: 0,
            wake: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        };
        for n in 0..20_000 {
            lines.write(format!("a line of text, number {n:05}\n").as_bytes());
        }
        assert!(lines.wake.read().is_ok(), "the event loop hears of it");
        let lost = lines.lost;
        assert!(lost > 0 && lines.kept.len() <= KEPT);
        assert!(!lines.flush());
        let reads = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        let written = |lines: &mut Lines| {
            while !lines.flush() {
                lines.output.wait(Instant::now() + LAST_WORDS);
            }
        };
        written(&mut lines);
        lines.write(b"and goes on\n");
        written(&mut lines);
        drop(lines);
        let text = reads.join().unwrap();
        let whole: Vec<&str> = text.lines().collect();
        let kept = 20_000 - lost as usize;
        assert_eq!(whole.len(), kept + 2);
        for (n, line) in whole.iter().take(kept).enumerate() {
            assert_eq!(*line, format!("a line of text, number {n:05}"));
        }
        assert_eq!(
            whole[kept],
            format!("bantam: {lost} lines were lost while nobody read them")
        );
        assert_eq!(whole[kept + 1], "and goes on");
    }
}
