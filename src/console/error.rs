//! Why a console cannot be opened.

use std::io;
use std::path::PathBuf;

use crate::error::{Help, io_reason};

/// See [`endpoints::open`](super::endpoints::open).
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The file, FIFO or device that output goes to.
    #[error("cannot write the console to {}: {}", path.display(), io_reason(source))]
    File {
        /// As given.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// A FIFO or a device with `max=`.
    #[error("{} is no file that could be begun again at its maximum", path.display())]
    NoBound {
        /// As given.
        path: PathBuf,
    },
    /// A thread or a pipe for a file, which nobody else may wait for.
    #[error("cannot start a thread for the console's files: {}", io_reason(.0))]
    Thread(#[source] io::Error),
    /// No pseudo-terminal.
    #[error("cannot make a pseudo-terminal: {}", io_reason(.0))]
    Pty(#[source] io::Error),
    /// The terminal's settings.
    #[error("cannot put the terminal into raw mode: {}", io_reason(.0))]
    Terminal(#[source] io::Error),
    /// No second descriptor for one of the standard ones.
    #[error("cannot use standard input and output as the console: {}", io_reason(.0))]
    Standard(#[source] io::Error),
    /// A timer of the console's.
    #[error("cannot make a timer: {}", io_reason(.0))]
    Timer(#[source] io::Error),
}

impl Help for ConsoleError {
    fn help(&self) -> String {
        match self {
            ConsoleError::File { source, .. } => match source.raw_os_error() {
                Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                    "give yourself the right to it, or choose another place".into()
                }
                Some(libc::ENOENT | libc::ENOTDIR) => "make its folder first: mkdir -p".into(),
                Some(libc::EISDIR) => "name a file in that folder".into(),
                Some(libc::ENXIO) => "start its reader first".into(),
                Some(libc::ENOSPC | libc::EDQUOT) => "make room there".into(),
                _ => "choose another file with --console file=PATH".into(),
            },
            ConsoleError::NoBound { .. } => "leave ',max=' away, or name a file".into(),
            ConsoleError::Pty(_) => {
                "mount devpts on /dev/pts, or choose another console: --console stdio".into()
            }
            ConsoleError::Terminal(_) => {
                "redirect standard input, or choose another console: --console pty".into()
            }
            ConsoleError::Standard(_) | ConsoleError::Timer(_) | ConsoleError::Thread(_) => {
                "check the limits of this user (ulimit -a) and of its cgroup".into()
            }
        }
    }
}
