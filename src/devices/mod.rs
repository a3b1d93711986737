//! What sits on a port of the machine: serial port, keyboard controller, power control.
//!
//! A device sees only what a chip sees: reads and writes at an offset, and an interrupt line to
//! pull. It does not know KVM, threads or files, so each of them runs in a plain unit test.
//!
//! Each file has the chip and, at its end, the [`Part`](crate::board::Part) by which the board knows it.

pub mod i8042;
pub mod last_words;
pub mod pci;
pub mod power;
pub mod pvpanic;
pub mod serial;
