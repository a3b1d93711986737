//! What is on the machine's buses.

pub mod bus;
pub mod device;

pub use device::{BusDevice, IrqLine, Lifecycle, StateError};
