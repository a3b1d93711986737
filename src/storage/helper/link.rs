//! The VMM's side: the helper as a process, with which it talks until the image is open, and which may end at any time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::process::Child;
use super::shared::{SLOTS, Shared};
use super::words::{MAX_MESSAGES, Said, Socket, Told, cut};
use crate::storage::error::OpenError;
use crate::storage::format::Format;
use crate::storage::qcow2::backing::BackingFiles;
use crate::storage::qcow2::{Damaged, Refusal};
use crate::sync::lock;

/// How long the helper may take to end when the VMM lets go of the image, and to answer once that is open.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the thread that waits for the helper's end has to know.
pub(super) struct Helper {
    pub(super) shared: Arc<Shared>,
    pub(super) child: Child,
    pub(super) socket: Mutex<Option<Socket>>,
    pub(super) path: PathBuf,
    /// It is to end, so its end is nothing to tell of.
    pub(super) ending: AtomicBool,
    pub(super) dead: AtomicBool,
    /// The event of each queue.
    pub(super) events: Mutex<Vec<Option<Arc<EventFd>>>>,
}

impl Helper {
    /// The lengths of the disk and of its clusters, and how many slots there are, once the helper has opened the image. Its
    /// questions are answered meanwhile.
    pub(super) fn opened(
        &self,
        files: &mut BackingFiles,
        mut passed: impl FnMut(File) -> Result<(), OpenError>,
    ) -> Result<(u64, u64, usize), OpenError> {
        let socket = lock(&self.socket);
        let gone = |error: io::Error| OpenError::Helper {
            path: self.path.clone(),
            source: match error.kind() {
                // It has let go of the socket, which it does at its end alone.
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset => {
                    self.child.end_within(PATIENCE);
                    let how = self.child.look();
                    io::Error::other(format!("it {}", how.as_deref().unwrap_or("is gone")))
                }
                _ => error,
            },
        };
        let socket = socket.as_ref().ok_or(io::ErrorKind::BrokenPipe);
        let socket = socket.map_err(|kind| gone(kind.into()))?;
        for _ in 0..MAX_MESSAGES {
            match socket.receive().map_err(gone)? {
                Told::Warning(text) => {
                    log::warn!("disk {}: {}", self.path.display(), cut(text));
                }
                Told::Backing { name, format } => {
                    let (file, format) = files.open(&name, format.as_deref())?;
                    let said = Said::Backing {
                        qcow2: format == Format::Qcow2,
                    };
                    socket.send(&said, Some(file.as_raw_fd())).map_err(gone)?;
                    passed(file)?;
                }
                Told::Opened {
                    len,
                    cluster,
                    slots,
                } => return Ok((len, cluster, slots)),
                Told::Refused {
                    depth,
                    reason,
                    help,
                    errno,
                } => {
                    return Err(files.told(Refusal::Damaged(Damaged {
                        depth,
                        reason: cut(reason),
                        help: cut(help),
                        errno,
                    })));
                }
                Told::Added => break,
            }
        }
        Err(gone(nonsense()))
    }

    /// From now on it is to answer at once over the socket: it has nothing to do there but to take queues.
    pub(super) fn is_quick(&self) -> io::Result<()> {
        match lock(&self.socket).as_ref() {
            Some(socket) => socket.wait_no_longer_than(PATIENCE),
            None => Ok(()),
        }
    }

    /// Lets go of the image: the helper sees the end of the socket, ends what it is at work on, and exits.
    pub(super) fn let_go(&self) {
        self.ending.store(true, Ordering::Release);
        lock(&self.socket).take();
        self.child.end_within(PATIENCE);
    }

    /// Whether it has ended.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// The helper has ended.
    pub(super) fn is_gone(&self, how: &str) {
        let known = self.dead.swap(true, Ordering::AcqRel);
        if !known && !self.ending.load(Ordering::Acquire) {
            log::error!(
                "disk {}: the process that reads the image {how}; its guest gets I/O errors from now on",
                self.path.display()
            );
        }
        for number in 0..SLOTS {
            if let Some(slot) = self.shared.slot(number) {
                slot.wake();
            }
        }
        self.ring(u64::MAX);
    }

    /// Writes the event fds of these queues, each a bit.
    pub(super) fn ring(&self, queues: u64) {
        if queues == 0 {
            return;
        }
        for (number, event) in lock(&self.events).iter().enumerate() {
            if queues & 1 << number != 0
                && let Some(event) = event
            {
                // This fails only when it is readable already, which is as good.
                let _ = event.write(1);
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// The error of a helper that says what no helper says.
pub(super) fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it says nonsense")
}
