//! virtio-blk (virtio 1.2, 5.2): a disk.
//!
//! - [`request`]: what a chain asks for, parsed by one total function;
//! - [`handler`]: one for each queue; has an engine move the data, and writes the status;
//! - [`disk`]: what the queues share; features and configuration space;
//! - here: the disk as it is planned, and as its driver sees it.
//!
//! A vCPU thread that resets the device waits for what is in flight: when the register write returns, the
//! guest's memory is left alone.

pub mod disk;
pub mod handler;
pub mod request;

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::board::site::event_fd;
use crate::board::{Names, Server, SiteError};
use crate::error::escaped;
use crate::memory::IoBuffers;
use crate::storage::{Flushes, Image, IoMode, SECTOR_BYTES, Work};
use crate::virtio::device::copy_config;
use crate::virtio::device::{Host, Made, MadeQueue, Model, VirtioDevice};
pub use disk::Disk;
pub use handler::Requests;

/// Device type 2 (virtio 1.2, section 5).
const BLOCK_DEVICE: u32 = 2;
/// Entries of a request queue.
pub const QUEUE_SIZE: u16 = 256;
/// Length of the serial number that GET_ID returns (5.2.6).
pub const SERIAL_BYTES: usize = 20;

/// How a disk is to be.
pub struct BlockModel {
    /// Its content.
    pub image: Arc<dyn Image>,
    /// The file, for messages.
    pub path: PathBuf,
    /// What holds the lock on the file, as long as the disk is planned.
    pub lock: Option<File>,
    /// Whether its flushes can be believed.
    pub flushes: Arc<Flushes>,
    /// Writes are refused.
    pub read_only: bool,
    /// Writes are thrown away.
    pub snapshot: bool,
    /// DISCARD and WRITE_ZEROES are offered.
    pub discard: bool,
    /// What the guest finds in `/sys/block/vda/serial`, cut to 20 bytes.
    pub serial: String,
    /// Request queues, at least one.
    pub queues: u16,
    /// How requests are done.
    pub io: IoMode,
    /// How many of them a second.
    pub limit_requests: Option<u64>,
    /// How many bytes a second.
    pub limit_bytes: Option<u64>,
    /// Each queue has a thread of its own, instead of one thread for all of them.
    pub io_thread: bool,
    /// A worker spins when it expects to wait no longer than this.
    pub poll: Duration,
}

impl Model for BlockModel {
    fn names(&self) -> Names {
        Names::Letters("vd")
    }

    fn describe(&self, name: &str) -> String {
        format!(
            "virtio-blk, {name}: {} ({} sectors, {}, serial {})",
            escaped(self.path.display()),
            self.image.len() / SECTOR_BYTES,
            match (self.read_only, self.snapshot) {
                (true, _) => "ro",
                (false, true) => "rw, snapshot: writes are thrown away",
                (false, false) => "rw",
            },
            self.serial
        )
    }

    fn make(&self, host: &Host) -> Result<Made, SiteError> {
        let count = self.queues.max(1);
        let disk = Arc::new(Disk::new(self, host));
        // On a host's only processor nobody could do what is waited for.
        let poll = match has_processors() {
            true => self.poll,
            false => Duration::ZERO,
        };
        let queues = (0..count).map(|_| {
            let event = Arc::new(event_fd()?);
            Ok(MadeQueue {
                size: QUEUE_SIZE,
                handler: Box::new(Requests::new(disk.clone(), &event)?),
                event: Some(event),
                limited: disk.limiter.is_some(),
                // The host's storage may keep any request waiting, for as long as it likes.
                server: match self.io_thread {
                    true => Server::OwnThread,
                    false => Server::DeviceThread,
                },
                at_once: false,
                poll,
            })
        });
        let queues = queues.collect::<Result<_, SiteError>>()?;
        let device = Arc::new(Block {
            config: disk.config_space(count),
            features: disk.features(count),
            disk,
        });
        Ok(Made {
            device,
            queues,
            chars: None,
        })
    }
}

/// Whether the host has more than one processor for us. It is asked once: that reads files of a cgroup's, and when a
/// machine is made again after a reset (`--reboot`), the sandbox lets nobody open files any more.
fn has_processors() -> bool {
    static MANY: OnceLock<bool> = OnceLock::new();
    *MANY.get_or_init(|| std::thread::available_parallelism().is_ok_and(|count| count.get() > 1))
}

/// One disk, as its driver sees it.
struct Block {
    config: Vec<u8>,
    features: u64,
    disk: Arc<Disk>,
}

impl VirtioDevice for Block {
    fn kind(&self) -> u32 {
        BLOCK_DEVICE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    /// What an image keeps in memory goes into its file.
    fn finish(&self) {
        let mut none = IoBuffers::new(self.disk.memory.clone());
        if !self.disk.geometry.read_only
            && self.disk.image.raw_file().is_none()
            && let Err(error) = self.disk.image.run(Work::Flush, &mut none)
        {
            self.disk
                .complaints
                .add(&format!("the last flush: {error}"));
        }
    }
}
