//! What differs from one type of device to another.
//!
//! ```text
//!   Model          as planned: how the guest's names for it go, a line of the dry-run
//!     └─ make ──▶ Made ┬ VirtioDevice   one, asked by vCPU threads: kind, features, configuration space
//!                      └ Handler        one for each queue, owned by its worker: what to do with a chain
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::complaints::Complaints;
use super::limit::Limiter;
use super::ring::Broken;
use super::signal::Signal;
use crate::board::{CharDevice, Names, Server, SiteError, StateError, Waiting, device};

/// A device as it is planned. It lives over all lives of a machine, each of which has its own [`Made`].
pub trait Model: Send + Sync {
    /// How the guest's names for such devices go on.
    fn names(&self) -> Names;

    /// What the dry-run says of it; `name` is what the board calls it.
    fn describe(&self, name: &str) -> String;

    /// Makes the device. Whatever it needs of the host (threads, rings, descriptors) is there afterwards: a
    /// guest that starts its driver causes no more of them.
    ///
    /// # Errors
    /// When the host has no descriptors, threads or memory for it.
    fn make(&self, host: &Host) -> Result<Made, SiteError>;
}

/// What a device is made with.
#[derive(Clone)]
pub struct Host {
    /// What the board calls it.
    pub name: String,
    /// Guest RAM.
    pub memory: Arc<GuestMemoryMmap>,
    /// How it tells its driver of a changed configuration.
    pub signal: Arc<Signal>,
    /// Where it complains.
    pub complaints: Arc<Complaints>,
    /// How a vCPU waits until a reset is done.
    pub waiting: Arc<Waiting>,
}

/// A device and its queues.
pub struct Made {
    /// What vCPU threads ask.
    pub device: Arc<dyn VirtioDevice>,
    /// The queues, by their numbers.
    pub queues: Vec<MadeQueue>,
    /// What a console can be tied to, if it is that.
    pub chars: Option<Arc<dyn CharDevice>>,
}

/// One queue of a device.
pub struct MadeQueue {
    /// The most entries that it has, a power of two.
    pub size: u16,
    /// What is done with its chains.
    pub handler: Box<dyn Handler>,
    /// Becomes readable when the handler has something to do without a kick.
    pub event: Option<Arc<EventFd>>,
    /// Whether the handler may ask for time ([`Room::Later`]).
    pub limited: bool,
    /// Who gives it its turns. A handler that may wait for the host is not for the main loop.
    pub server: Server,
    /// Whether the vCPU that kicks takes the turn itself, for a driver that does nothing but wait for the answer.
    /// Then a kick costs an exit to user space, and not two switches between threads.
    pub at_once: bool,
    /// Its worker spins when it expects to wait no longer than this.
    pub poll: Duration,
}

impl MadeQueue {
    /// A queue on the machine's event loop that has something to do only when the driver kicks.
    pub fn simple(size: u16, handler: impl Handler + 'static) -> Self {
        MadeQueue {
            size,
            handler: Box::new(handler),
            event: None,
            limited: false,
            server: Server::MainLoop,
            at_once: false,
            poll: Duration::ZERO,
        }
    }

    /// The same, whose handler may ask for time.
    #[must_use]
    pub fn with_limit(self) -> Self {
        MadeQueue {
            limited: true,
            ..self
        }
    }
}

/// A device as its driver sees it, but for its queues.
///
/// Called from vCPU threads. None of the calls may wait.
pub trait VirtioDevice: Send + Sync {
    /// Virtio 1.2, section 5: 2 is a block device.
    fn kind(&self) -> u32;

    /// Feature bits of this type of device. VIRTIO_F_VERSION_1 and those of the rings are added.
    fn features(&self) -> u64 {
        0
    }

    /// The driver reads the configuration space, which is little-endian. `data` holds zeros.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// The driver writes it.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready (`features` are agreed on), or has reset the device (`None`).
    fn driver(&self, _features: Option<u64>) {}

    /// The machine has ended, and nothing is in flight: what is kept in memory goes where it belongs.
    fn finish(&self) {}

    /// What it keeps beside the queues, as a plain value.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Takes such a value back.
    ///
    /// # Errors
    /// When it is none.
    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let () = device::from_value(state)?;
        Ok(())
    }
}

/// Answers a read of the configuration space `config`; beyond its end are zeros.
pub fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).ok();
    let from = from.and_then(|at| config.get(at..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(from) {
        *to = *from;
    }
}

/// Whether another chain can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Now.
    Yes,
    /// When something that is in flight has ended, or there is something to put into the chain: the event fd
    /// tells of it.
    No,
    /// After this time.
    Later(Duration),
}

impl Room {
    /// What `limiter` has room for now; all there is, without one.
    pub fn of(limiter: Option<&Limiter>) -> Room {
        match limiter.map(|limiter| limiter.ready(Instant::now())) {
            Some(Err(wait)) => Room::Later(wait),
            _ => Room::Yes,
        }
    }
}

/// A chain that a handler has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// What it counts for in a turn, whose bound is 256: 1, and more where it moves many bytes.
    pub cost: usize,
    /// The bytes written to its device-writable part, if it is done with; else [`Handler::ended`] tells.
    pub written: Option<u32>,
}

impl Taken {
    /// It is done with, and `written` bytes of guest memory are new.
    pub fn done(written: u32) -> Self {
        Taken {
            cost: 1,
            written: Some(written),
        }
    }
}

/// A chain that is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Its head.
    pub head: u16,
    /// The bytes written to its device-writable part.
    pub written: u32,
}

/// What a device does with the chains of one queue.
///
/// Called from the thread of the queue's worker, under its lock. A handler that answers each chain at once
/// needs [`Handler::take`] alone; the others are for one that has many in flight.
pub trait Handler: Send {
    /// The driver is ready, and `features` are agreed on.
    fn start(&mut self, _features: u64) {}

    /// Whether another chain can be taken now.
    fn room(&mut self) -> Room {
        Room::Yes
    }

    /// Takes the chain that begins at `head`.
    ///
    /// # Errors
    /// When it cannot be answered in any way: then the ring is broken.
    fn take(&mut self, head: u16, chain: &Chain, memory: &GuestMemoryMmap)
    -> Result<Taken, Broken>;

    /// Nothing more is taken for the moment: what was taken is handed on.
    fn commit(&mut self) {}

    /// A chain that has ended.
    ///
    /// # Errors
    /// As [`Handler::take`].
    fn ended(&mut self) -> Result<Option<Answer>, Broken> {
        Ok(None)
    }

    /// Whether there may be something that has ended: a look that costs next to nothing.
    fn ready(&mut self) -> bool {
        false
    }

    /// Lets the event fd tell of the next end. True when there is one already, of which it will not tell.
    fn rearm(&mut self) -> bool {
        false
    }

    /// Chains that were taken and have not ended.
    fn in_flight(&self) -> usize {
        0
    }

    /// Whether threads of this process do the work, which need a processor.
    fn has_threads(&self) -> bool {
        false
    }

    /// The driver has reset the device, or the machine has ended. Waits for what is in flight: on return no
    /// memory of the guest is read or written any more. Called by who gives the queue its turns, or by anybody
    /// when nothing is in flight.
    fn stop(&mut self) {}
}
