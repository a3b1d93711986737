//! Transports: how a driver finds a device's registers, and how the device reaches its driver.

pub mod interrupt;
pub mod mmio;
