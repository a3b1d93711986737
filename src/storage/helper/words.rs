//! What a VMM and its helper say to each other over their socket: JSON, a message at a time, with a descriptor where one
//! is to be passed on (SCM_RIGHTS, unix(7)).
//!
//! It is used while an image is opened and when a queue is added, which is before a guest runs. The VMM takes messages of
//! at most [`MAX_MESSAGE`] bytes and no descriptors.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 16 << 10;
/// The longest text that is shown, in characters.
const MAX_TEXT: usize = 1000;
/// Messages before an image is open. An honest helper sends fewer than 40.
pub const MAX_MESSAGES: usize = 100;

/// What the helper says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Told {
    /// For the log.
    Warning(String),
    /// The image rests on a file of this name and format, and it has to be opened.
    Backing {
        /// Its name.
        name: String,
        /// Its format, if the image says it.
        format: Option<String>,
    },
    /// The image is open.
    Opened {
        /// Length of the disk in bytes.
        len: u64,
        /// Bytes of a cluster.
        cluster: u64,
        /// How many slots have a thread.
        slots: usize,
    },
    /// The image is no good.
    Refused {
        /// Which one of the chain: 0 is the first.
        depth: usize,
        /// Why.
        reason: String,
        /// What to do.
        help: String,
        /// The host's error, if a read has failed.
        errno: Option<i32>,
    },
    /// A queue's event fd is there.
    Added,
}

/// What the VMM says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// The backing file; its descriptor comes with this.
    Backing {
        /// It is a qcow2 image, and not a raw one.
        qcow2: bool,
    },
    /// The backing file is refused.
    Refused,
    /// The event fd of a queue, which comes with this.
    Queue(u32),
}

/// One end of the socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl ScmSocket for Socket {
    fn socket_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Socket {
    /// Two ends.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> io::Result<(Socket, Socket)> {
        let mut ends = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: the call fills two numbers, which are descriptors without another owner.
        unsafe {
            if libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let [ours, theirs] = ends.map(|end| OwnedFd::from_raw_fd(end));
            Ok((Socket(ours), Socket(theirs)))
        }
    }

    /// Has [`receive`](Socket::receive) end with an error after `time`.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn wait_no_longer_than(&self, time: Duration) -> io::Result<()> {
        let time = libc::timeval {
            tv_sec: time.as_secs() as libc::time_t,
            tv_usec: 0,
        };
        // SAFETY: the call reads a struct of that length.
        let set = unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const time).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        match set {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends a message, with a descriptor if there is one.
    ///
    /// # Errors
    /// Those of sendmsg(2): EPIPE when the other side is gone.
    pub fn send(&self, message: &impl Serialize, with: Option<RawFd>) -> io::Result<()> {
        let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
        loop {
            let sent = match &with {
                Some(fd) => self.send_with_fds(&[bytes.as_slice()], &[*fd]),
                None => self.send_with_fds(&[bytes.as_slice()], &[]),
            };
            match sent {
                Ok(_) => return Ok(()),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// VMM: the next message; what comes with it is thrown away by the kernel.
    ///
    /// # Errors
    /// Those of recv(2); `UnexpectedEof` when the other side is gone; `InvalidData`.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<T> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let room = bytes.len();
        // SAFETY: fills at most so many bytes of a buffer of ours.
        let receive =
            || unsafe { libc::recv(self.as_raw_fd(), bytes.as_mut_ptr().cast(), room, 0) };
        let len = retry(receive)?;
        parse(bytes.get(..len).unwrap_or_default())
    }

    /// Helper: the next message and the descriptor that comes with it.
    ///
    /// # Errors
    /// The same.
    pub fn receive_file<T: DeserializeOwned>(&self) -> io::Result<(T, Option<File>)> {
        let mut bytes = vec![0; MAX_MESSAGE];
        loop {
            match self.recv_with_fd(&mut bytes) {
                Ok((len, file)) => return Ok((parse(bytes.get(..len).unwrap_or_default())?, file)),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(len) => return Ok(len),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    if bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A text of the helper's, as much of it as anybody reads. It is escaped where it is shown.
pub fn cut(text: String) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::io::Write;

    #[test]
    fn messages_and_descriptors_arrive_and_an_end_is_told() {
        let (ours, theirs) = Socket::pair().unwrap();
        let opened = Told::Opened {
            len: 1 << 40,
            cluster: 512,
            slots: 1,
        };
        theirs.send(&opened, None).unwrap();
        let told: Told = ours.receive().unwrap();
        assert!(matches!(
            told,
            Told::Opened {
                len: 0x100_0000_0000,
                cluster: 512,
                ..
            }
        ));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"x").unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        ours.send(&Said::Queue(7), Some(file.as_raw_fd())).unwrap();
        let (said, passed) = theirs.receive_file::<Said>().unwrap();
        assert!(matches!(said, Said::Queue(7)));
        let mut text = String::new();
        passed.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(theirs);
        let end = ours.receive::<Told>().unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        assert!(ours.send(&Said::Refused, None).is_err());
    }

    #[test]
    fn a_descriptor_that_nobody_wants_is_not_taken() {
        let (ours, theirs) = Socket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        theirs.send(&Told::Added, Some(file.as_raw_fd())).unwrap();
        assert!(matches!(ours.receive().unwrap(), Told::Added));
        let same = std::fs::read_dir("/proc/self/fd").unwrap().filter(|entry| {
            let path = entry.as_ref().unwrap().path();
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(path).is_ok_and(|m| m.ino() == file.metadata().unwrap().ino())
        });
        assert_eq!(same.count(), 1);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(0u8.., 0..300)) {
            let _ = parse::<Told>(&bytes);
        }

        #[test]
        fn texts_are_cut_between_characters(text in "\\PC{0,1200}") {
            let short = cut(text.clone());
            assert!(text.starts_with(&short) && short.chars().count() <= MAX_TEXT);
        }
    }
}
