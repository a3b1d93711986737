//! The driver's side of a device: status, features and queues, whatever registers they are reached by.
//!
//! Set-up is a state machine (virtio 1.2, 3.1.1): ACKNOWLEDGE, DRIVER, features, FEATURES_OK, queues,
//! DRIVER_OK. What comes out of turn is ignored; what cannot work sets DEVICE_NEEDS_RESET. Only at DRIVER_OK
//! are rings made, all values checked at once, and handed to the workers.
//!
//! A reset waits for what is in flight, which may take as long as the host's storage likes. No lock is held
//! meanwhile, and the end of the machine interrupts it ([`Waiting`](crate::board::Waiting)). What other vCPUs
//! write to the device in that time is ignored.
//!
//! A transport keeps what belongs to its registers alone, such as which queue is selected.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::Queue;

use super::device::{Host, Made, VirtioDevice};
use super::queue::VirtQueue;
use super::ring::Ring;
use super::setup::{DriverSetup, QueueSetup};
use super::signal::{STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET};
use crate::board::device::{from_value, to_value};
use crate::board::{Pump, SiteError, StateError};
use crate::sync::lock;

/// What all devices offer, as it is the transport's and the rings' affair.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// See the [module](self).
pub struct Front {
    device: Arc<dyn VirtioDevice>,
    queues: Vec<Arc<VirtQueue>>,
    host: Host,
    setup: Mutex<Setup>,
}

/// What the driver has written so far, and whether it may write more.
#[derive(Default)]
struct Setup {
    driver: DriverSetup,
    /// A reset waits for what is in flight.
    resetting: bool,
}

/// All that is to be kept of a device, but for its transport.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    status: u32,
    setup: DriverSetup,
    /// Next avail and next used index of each ring.
    progress: Vec<Option<(u16, u16)>>,
    device: Value,
}

impl Front {
    /// Puts a front before the device that was `made` with `host`.
    ///
    /// # Errors
    /// When no event fd can be made for a queue.
    pub fn new(made: Made, host: Host) -> Result<Self, SiteError> {
        let queues = (0..).zip(made.queues);
        let queues =
            queues.map(|(number, queue)| Ok(Arc::new(VirtQueue::new(queue, number, &host)?)));
        let front = Front {
            device: made.device,
            queues: queues.collect::<Result<_, SiteError>>()?,
            host,
            setup: Mutex::default(),
        };
        lock(&front.setup).driver = front.power_on();
        Ok(front)
    }

    fn power_on(&self) -> DriverSetup {
        let queues = self.queues.iter().map(|queue| QueueSetup {
            size: queue.size(),
            ..QueueSetup::default()
        });
        DriverSetup {
            features: 0,
            queues: queues.collect(),
        }
    }

    /// The queues, for the loops that run them.
    pub fn queues(&self) -> &[Arc<VirtQueue>] {
        &self.queues
    }

    /// Type of the device (virtio 1.2, section 5).
    pub fn kind(&self) -> u32 {
        self.device.kind()
    }

    /// The features that are offered.
    pub fn offered(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        self.host.signal.status()
    }

    /// How often the configuration space has changed.
    pub fn config_generation(&self) -> u32 {
        self.host.signal.generation()
    }

    /// The largest size of `queue`; 0 where there is none.
    pub fn queue_max(&self, queue: u32) -> u16 {
        let queue = self.queues.get(queue as usize);
        queue.map_or(0, |queue| queue.size())
    }

    /// Whether the driver uses `queue`.
    pub fn is_ready(&self, queue: u32) -> bool {
        let setup = lock(&self.setup);
        let queue = setup.driver.queues.get(queue as usize);
        queue.is_some_and(|queue| queue.ready)
    }

    /// The driver changes what features it wants; ignored once they are agreed on.
    pub fn want_features(&self, change: impl FnOnce(&mut u64)) {
        let mut setup = lock(&self.setup);
        if self.status() & STATUS_FEATURES_OK == 0 && !setup.resetting {
            change(&mut setup.driver.features);
        }
    }

    /// The driver says whether it uses `queue`; ignored while the device is at work.
    pub fn set_ready(&self, queue: u32, ready: bool) {
        let mut setup = lock(&self.setup);
        if self.status() & STATUS_DRIVER_OK == 0
            && !setup.resetting
            && let Some(queue) = setup.driver.queues.get_mut(queue as usize)
        {
            queue.ready = ready;
        }
    }

    /// The driver changes size or addresses of `queue`; ignored once it is ready, and while the device is at
    /// work.
    pub fn set_up(&self, queue: u32, change: impl FnOnce(&mut QueueSetup)) {
        let mut setup = lock(&self.setup);
        if self.status() & STATUS_DRIVER_OK == 0
            && !setup.resetting
            && let Some(queue) = setup.driver.queues.get_mut(queue as usize)
            && !queue.ready
        {
            change(queue);
        }
    }

    /// The driver writes the device status, and not 0, which is a [`Front::reset`].
    pub fn write_status(&self, value: u32) {
        let setup = lock(&self.setup);
        if setup.resetting {
            return;
        }
        let status = self.status();
        // A driver only ever adds bits (2.1.1); DEVICE_NEEDS_RESET is not the driver's to set.
        let mut added = value & !status & 0xff & !STATUS_NEEDS_RESET;
        if added & STATUS_FEATURES_OK != 0 {
            let wanted = setup.driver.features;
            let accepted = wanted & !self.offered() == 0 && wanted & 1 << VIRTIO_F_VERSION_1 != 0;
            if !accepted {
                added &= !STATUS_FEATURES_OK;
            }
        }
        let starts = added & STATUS_DRIVER_OK != 0;
        if starts && (status | added) & STATUS_FEATURES_OK == 0 {
            added &= !STATUS_DRIVER_OK;
        }
        self.host.signal.add_status(added);
        if added & STATUS_DRIVER_OK != 0 && status & STATUS_NEEDS_RESET == 0 {
            let progress = vec![Some((0, 0)); self.queues.len()];
            match self.make_queues(&setup.driver, &progress) {
                Some(queues) => self.start(setup.driver.features, queues),
                None => self.host.signal.broken(),
            }
        }
    }

    /// The driver resets the device. On return no memory of the guest is read or written any more, unless the
    /// machine has ended meanwhile: then no guest will run that could use its memory for something else.
    pub fn reset(&self) {
        let mut setup = lock(&self.setup);
        if setup.resetting {
            // Another vCPU does it.
            drop(setup);
            self.host.waiting.until(|| !lock(&self.setup).resetting);
            return;
        }
        setup.resetting = true;
        self.queues.iter().for_each(|queue| queue.ask_to_stop());
        drop(setup);
        let stopped = || self.queues.iter().all(|queue| queue.has_stopped());
        if !self.host.waiting.until(stopped) {
            return;
        }
        self.device.driver(None);
        let mut setup = lock(&self.setup);
        self.host.signal.reset();
        *setup = Setup {
            driver: self.power_on(),
            resetting: false,
        };
        drop(setup);
        self.host.waiting.look();
    }

    /// The rings as the driver has set them up; `None` when one of them cannot work.
    fn make_queues(
        &self,
        setup: &DriverSetup,
        progress: &[Option<(u16, u16)>],
    ) -> Option<Vec<Option<Queue>>> {
        let (memory, features) = (&self.host.memory, setup.features);
        let queues = self.queues.iter().zip(&setup.queues).zip(progress);
        queues
            .map(|((queue, setup), progress)| match progress {
                Some(progress) if setup.ready => setup
                    .queue(queue.size(), features, *progress, memory)
                    .map(Some),
                _ => Some(None),
            })
            .collect()
    }

    fn start(&self, features: u64, queues: Vec<Option<Queue>>) {
        self.device.driver(Some(features));
        let host = &self.host;
        for ((ours, queue), number) in self.queues.iter().zip(queues).zip(0..) {
            let ring = |queue| Ring::new(queue, number, host.memory.clone(), host.signal.clone());
            ours.start(queue.map(ring), features);
        }
    }

    /// The driver notifies `queue`, and no ioeventfd took it.
    pub fn notify(&self, queue: u32) {
        if let Some(queue) = self.queues.get(queue as usize) {
            queue.kicked();
        }
    }

    /// The driver reads the configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.device.read_config(offset, data);
    }

    /// The driver writes the configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// Takes nothing new out of the rings.
    pub fn quiesce(&self) {
        self.queues.iter().for_each(|queue| queue.quiesce());
    }

    /// Whether something is in flight.
    pub fn is_busy(&self) -> bool {
        self.queues.iter().any(|queue| queue.is_busy())
    }

    /// Goes on.
    pub fn resume(&self) {
        self.queues.iter().for_each(|queue| queue.resume());
    }

    /// The machine has ended. For who has given the queues their turns, as this waits for what is in flight.
    pub fn finish(&self) {
        self.queues.iter().for_each(|queue| queue.stop());
        self.device.finish();
    }

    /// All that is to be kept of the device, but for its transport.
    pub fn state(&self) -> Value {
        let progress = self.queues.iter().map(|queue| queue.progress());
        to_value(&Saved {
            status: self.status(),
            setup: lock(&self.setup).driver.clone(),
            progress: progress.collect(),
            device: self.device.state(),
        })
    }

    /// Takes such a value back. The device, which was just made, is quiesced.
    ///
    /// # Errors
    /// When it is none, or one of a device with other queues, or a queue of it cannot work in this memory.
    pub fn restore(&self, state: &Value) -> Result<(), StateError> {
        let saved: Saved = from_value(state)?;
        let same = |len: usize| len == self.queues.len();
        if !same(saved.setup.queues.len()) || !same(saved.progress.len()) {
            return Err(StateError::new("it has another number of queues"));
        }
        if saved.setup.features & !self.offered() != 0 {
            return Err(StateError::new(
                "its driver uses features that are not offered",
            ));
        }
        let works = STATUS_DRIVER_OK;
        let at_work = saved.status & (works | STATUS_NEEDS_RESET) == works;
        let queues = match at_work {
            true => self.make_queues(&saved.setup, &saved.progress),
            false => None,
        };
        if at_work && queues.is_none() {
            return Err(StateError::new("a queue of it is not in RAM"));
        }
        self.device.restore(&saved.device)?;
        self.quiesce();
        self.host.signal.set_status(saved.status);
        let features = saved.setup.features;
        lock(&self.setup).driver = saved.setup;
        if let Some(queues) = queues {
            self.start(features, queues);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "front_tests.rs"]
pub(crate) mod tests;
