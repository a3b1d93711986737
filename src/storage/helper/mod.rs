//! A qcow2 image is read by a process of its own.
//!
//! The tables of such an image can come from anywhere, and a guest writes to the image all the time. A library that
//! knows the format is much code; a hole in it would be a hole in the VMM, with /dev/kvm, guest memory and the other
//! disks behind it. So the VMM never looks at these bytes. It forks for each such image, before any byte of that image
//! is looked at, and the new process, the *helper*, has nothing but the image:
//!
//! ```text
//!   VMM                                                     helper ("bantam: vda")
//!   ─────────────────────────────────────────               ──────────────────────────────
//!   engine ──▶ Desk: is the place known? ── yes ──▶ the image's file, by the VMM itself
//!                         │ no
//!                         ▼
//!               a slot: what, where, bytes   ── futex ──▶   a thread for each slot
//!                         ▲                                   │ the library, the file
//!                         └── the end, and where the bytes are ◀┘ event fd
//! ```
//!
//! - **What the helper has:** the image's file, its backing files (for reading), a copy of the descriptor that holds
//!   the lock, memory that both processes share, one end of a socket. No guest memory, no terminal, no other file. It
//!   goes through the door of the [sandbox](crate::sandbox) before it looks at the first byte.
//! - **Backing files are opened by the VMM**, when the helper says by which name. To open a file by its name is a larger
//!   right than to be given one, and a name out of an image must not be enough: the VMM looks whether backing files are
//!   allowed, whether this one is in the image's folder, locks it, and passes it on.
//! - **What the helper says is not believed** ([`desk`], [`words`]): each number is read once and checked. What it may
//!   name is an error, and places in the image's own file, where it could write by itself. Text is cut, and escaped like
//!   all that comes from outside.
//! - **Speed.** The helper tells with each answer where the bytes are that it was asked for, and some that follow. Where a
//!   cluster of the disk is a cluster of the file, plain and its own, the VMM reads and writes it there without asking,
//!   as it would a raw image. The helper is asked for the rest: new clusters, zeros, compressed ones, backing files,
//!   flushes. What may change where a cluster is waits for the transfers that are on their way to it
//!   ([`desk`]), or a late write could hit a table that has taken the cluster's place.
//! - **The end.** When the VMM lets go of the image, the helper ends what it is at work on, writes its tables and exits;
//!   the VMM waits for that. When the VMM is killed, so is the helper (PR_SET_PDEATHSIG), or it sees the end of the
//!   socket (a change of the user takes that signal away): what was flushed is in the file by then. It keeps the lock until it is gone, so that nobody opens the image too early. When the helper dies,
//!   the guest gets I/O errors from that disk.
//!
//! It is a fork and no new program: what the helper needs (a path, open files) is there, and no file of the program's
//! has to be found. The price is that the helper has a copy of what the VMM had in memory by then, which is the
//! configuration, and its addresses are those of the VMM.
//!
//! `bantam image` needs no second process: it has no guest, no /dev/kvm and no other image; the process that reads the
//! image is all there is.
//!
//! | file | what |
//! |---|---|
//! | [`shared`] | the memory that both see: slots, their data, the bells |
//! | [`words`] | what is said over the socket: at the beginning, and when a queue is added |
//! | [`process`] | fork, what the child gives up, how it ends |
//! | [`serve`] | the helper's side |
//! | [`desk`], [`places`] | the VMM's side: who may touch what at the same time, and where the bytes are |
//! | `link` | the VMM's side: the process, as it opens the image and until it ends |
//! | [`client`] | the VMM's side: an [`Image`](super::Image) |

pub mod client;
pub mod desk;
mod link;
pub mod places;
pub mod process;
pub mod serve;
pub mod shared;
pub mod words;

pub use client::Client;
