//! What sits on a port or a page of the machine: serial port, keyboard controller, power control.
//!
//! A device sees only what a chip sees: reads and writes at an offset, and an interrupt line to
//! pull. It does not know KVM, threads or files, so each of them runs in a plain unit test.

pub mod i8042;
pub mod last_words;
pub mod pace;
pub mod pci;
pub mod power;
pub mod pvpanic;
pub mod serial;

pub use crate::board::{BusDevice, IrqLine};
