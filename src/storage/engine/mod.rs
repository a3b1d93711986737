//! Engines: many requests at once, the vCPUs and the event loop undisturbed.
//!
//! | engine | for | how |
//! |---|---|---|
//! | [`uring`] | raw images | io_uring(7): a batch is one system call; a write into the page cache is a call by itself, and is made at once |
//! | [`threads`] | all images, and hosts that forbid io_uring | a few threads that do blocking calls |
//! | [`layered`] | overlays | both of them: io_uring where one file has all the bytes |
//! | [`helped`] | qcow2 images | one of them for what lies plainly in the image's file; the rest is asked of the image's [helper](super::helper) |

pub mod helped;
pub mod inline;
pub mod layered;
pub mod threads;
pub mod uring;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::image::{Image, Job};
pub use helped::Helped;
pub use inline::Inline;
pub use layered::Layered;
pub use threads::Threads;
pub use uring::Uring;

/// Which engine the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoMode {
    /// io_uring where the image and the host allow it.
    #[default]
    Auto,
    /// io_uring.
    Uring,
    /// Threads.
    Threads,
    /// The caller's own thread; no user can ask for it.
    Inline,
}

/// Keeps requests going. One worker owns it; it is never used by two threads at once.
///
/// The order of calls is: any number of `submit`, `commit`, `complete` until it has no more,
/// `rearm`. Between `commit` and `rearm` the event fd may be silent.
pub trait Engine: Send {
    /// Takes a job. It may begin at once or at `commit`.
    fn submit(&mut self, job: Job);

    /// Hands everything that was submitted to the host.
    fn commit(&mut self);

    /// A job that has ended, and how.
    fn complete(&mut self) -> Option<(Job, io::Result<()>)>;

    /// Whether there may be something to `complete`: a look that costs next to nothing, for a
    /// caller that has nothing else to do.
    fn ready(&mut self) -> bool;

    /// Lets the event fd tell of the next end. True when there is one already, of which it will
    /// not tell.
    fn rearm(&mut self) -> bool;

    /// Whether threads of this process do the work.
    fn has_threads(&self) -> bool {
        false
    }

    /// Waits until the host does not touch any buffer any more.
    fn drain(&mut self);
}

/// The engine that `mode` means for `image`, with room for `slots` jobs, whose tokens are numbers below
/// `slots`. It has at most so many `threads`, if it has any. When a job has ended it makes `event`
/// readable.
pub fn start(
    image: &Arc<dyn Image>,
    mode: IoMode,
    slots: u16,
    threads: usize,
    event: &Arc<EventFd>,
) -> Box<dyn Engine> {
    if mode != IoMode::Inline
        && let Some(helped) = image.clone().helped()
    {
        let direct = helped.files();
        let direct = direct
            .iter()
            .map(|file| start(file, mode, slots, threads, event));
        let direct = direct.collect();
        match Helped::new(helped, direct, slots, event) {
            Ok(engine) => return Box::new(engine),
            // All that it is asked will be an error, and says so.
            Err(error) => log::error!(
                "no queue for the process that reads an image: {}",
                crate::error::io_reason(&error)
            ),
        }
        return Box::new(Inline::new(image.clone()));
    }
    let layers = image.clone().layers();
    let uring = match mode {
        IoMode::Inline => return Box::new(Inline::new(image.clone())),
        IoMode::Threads => false,
        IoMode::Auto => image.raw_file().is_some() || layers.is_some(),
        IoMode::Uring => true,
    };
    if uring {
        let made: io::Result<Box<dyn Engine>> = match layers {
            Some(layers) => Layered::new(layers, slots, threads, event).map(|e| Box::new(e) as _),
            None => Uring::new(image.clone(), slots, event).map(|e| Box::new(e) as _),
        };
        match made {
            Ok(engine) => {
                say_once("disk I/O is done by io_uring".into());
                return engine;
            }
            Err(error) => say_once(format!("no io_uring: {}", crate::error::io_reason(&error))),
        }
    }
    say_once("disk I/O is done by threads".into());
    Box::new(Threads::new(image.clone(), threads, event.clone()))
}

/// Logs `what` the first time: a guest can start its disks again without end.
fn say_once(what: String) {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.len() < 8 && !said.contains(&what) {
        log::info!("{what}");
        said.push(what);
    }
}

/// Whether this process may use io_uring.
///
/// # Errors
/// The host's reason why not.
pub fn check_uring() -> io::Result<()> {
    io_uring::IoUring::new(1).map(drop)
}
