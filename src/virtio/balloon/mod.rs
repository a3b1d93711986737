//! virtio-balloon (virtio 1.2, 5.5): memory that the guest has freed goes back to the host.
//!
//! ```text
//!   guest frees memory                                                         host
//!   ──────────────────                                                         ────
//!   free list ─▶ blocks of 2 MiB and more, after 2 s ─▶ reporting_vq ─▶ pages.rs ─▶ memory/reclaim.rs ─▶ madvise(2)
//!   its next use of such a block ─────────────────────▶ page fault ────────────────▶ new pages of zeros
//! ```
//!
//! What the name says, a balloon in the guest's memory that the host makes larger, is not used: the size that
//! the device asks for is always 0. It offers free page reporting, in which the driver itself tells of memory
//! that it does not use, and goes on using it whenever it likes. A driver that puts pages into the balloon all
//! the same (the inflateq) is taken at its word.
//!
//! ## Which queue is which
//!
//! The queues of features that are not offered (statistics, free page hints) do not exist, and the queues
//! behind them move up. So the reporting_vq is number 2. The table in virtio 1.2, 5.5.2 has it at number 4,
//! but Linux counts only queues that exist (`vm_find_vqs` in drivers/virtio/virtio_mmio.c), and so do the
//! other devices that it drives.
//!
//! ## What a guest may do
//!
//! It names pages, and can name any. `memory/reclaim.rs` cuts what is named to RAM, so the guest can lose
//! nothing but its own memory. What it can cost the host is bounded in a chain, in a turn of the event loop
//! and in a second (`pages.rs`).

mod pages;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::board::device::{from_value, to_value};
use crate::board::{Names, SiteError, StateError};
use crate::memory::Backing;
use crate::sync::lock;
use crate::virtio::device::copy_config;
use crate::virtio::device::{Host, Made, MadeQueue, Model, VirtioDevice};
use pages::{Deflate, Inflate, Pages, Report};

/// Device type 5 (virtio 1.2, section 5).
const BALLOON_DEVICE: u32 = 5;
/// As many as Linux has buffers in one report, and more.
const QUEUE_SIZE: u16 = 128;

/// The driver may take pages out of the balloon when the guest runs out of memory (5.5.3).
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// The driver says what it fills free pages with.
const F_PAGE_POISON: u64 = 1 << 4;
/// The driver reports free pages.
const F_REPORTING: u64 = 1 << 5;

/// Where `actual` is in the configuration space (5.5.4): the pages that are in the balloon.
const ACTUAL: u64 = 4;
/// Where `poison_val` is: what the driver fills free pages with.
const POISON: u64 = 12;

/// A balloon, as it is planned.
pub struct BalloonModel {
    /// What guest RAM is on the host.
    pub backing: Backing,
}

impl Model for BalloonModel {
    fn names(&self) -> Names {
        Names::Numbers("balloon")
    }

    fn describe(&self, name: &str) -> String {
        format!("virtio-balloon, {name}: memory that the guest has freed goes back to the host")
    }

    fn make(&self, host: &Host) -> Result<Made, SiteError> {
        let balloon = Arc::new(Balloon::default());
        let pages = Arc::new(Pages::new(self.backing, host));
        let report = Report {
            pages: pages.clone(),
            balloon: balloon.clone(),
        };
        Ok(Made {
            device: balloon,
            queues: vec![
                MadeQueue::simple(QUEUE_SIZE, Inflate { pages }).with_limit(),
                MadeQueue::simple(QUEUE_SIZE, Deflate),
                MadeQueue::simple(QUEUE_SIZE, report).with_limit(),
            ],
            chars: None,
        })
    }
}

/// The device: what its driver has written to the configuration space.
#[derive(Default)]
struct Balloon(Mutex<Written>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    /// Pages of 4 KiB that the driver says to have put into the balloon.
    actual: u32,
    /// What it fills free pages with.
    poison: u32,
}

impl Balloon {
    /// Whether free pages, as far as the driver knows, are all zeros or anything: then they may become zeros.
    fn may_be_zeroed(&self) -> bool {
        // A driver that has not agreed on F_PAGE_POISON does not write it.
        lock(&self.0).poison == 0
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> u32 {
        BALLOON_DEVICE
    }

    /// With F_PAGE_POISON, as Linux reports nothing without it where it fills free pages (`init_on_free=1`).
    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | F_PAGE_POISON | F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let written = *lock(&self.0);
        // num_pages, actual, free_page_hint_cmd_id, poison_val.
        let words = [0, written.actual, 0, written.poison];
        copy_config(words.map(u32::to_le_bytes).as_flattened(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut written = lock(&self.0);
        written.actual = overwritten(written.actual, ACTUAL, offset, data);
        written.poison = overwritten(written.poison, POISON, offset, data);
    }

    fn driver(&self, features: Option<u64>) {
        if features.is_none() {
            *lock(&self.0) = Written::default();
        }
    }

    fn state(&self) -> Value {
        to_value(&*lock(&self.0))
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        *lock(&self.0) = from_value(state)?;
        Ok(())
    }
}

/// The word `old`, which is at `place` of the configuration space, after a write of `data` at `offset`.
fn overwritten(old: u32, place: u64, offset: u64, data: &[u8]) -> u32 {
    let mut bytes = old.to_le_bytes();
    for (to, at) in bytes.iter_mut().zip(place..) {
        let from = at
            .checked_sub(offset)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(from) = from.and_then(|at| data.get(at)) {
            *to = *from;
        }
    }
    u32::from_le_bytes(bytes)
}
