//! What is wrong with a device, in the log. A guest can cause complaints without end, so they are bounded.

use std::sync::atomic::{AtomicU32, Ordering};

/// Complaints about one device that reach the log.
const MAX: u32 = 10;

/// The complaints about one device.
#[derive(Debug)]
pub struct Complaints {
    name: String,
    count: AtomicU32,
}

impl Complaints {
    /// None as yet about the device that is called `name`.
    pub fn about(name: &str) -> Self {
        Complaints {
            name: name.into(),
            count: AtomicU32::new(0),
        }
    }

    /// One more.
    pub fn add(&self, what: &str) {
        let name = &self.name;
        match self.count.fetch_add(1, Ordering::Relaxed) {
            ..MAX => log::warn!("{name}: {what}"),
            MAX => log::warn!("{name}: {what}; more of this is not shown"),
            _ => {
                // Does not come round to 0.
                self.count.store(MAX.saturating_add(1), Ordering::Relaxed);
            }
        }
    }
}
