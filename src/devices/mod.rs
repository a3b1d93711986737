//! What sits on ports of the machine.
//!
//! - [`serial`]: COM1, with [`last_words`] for what the guest prints;
//! - [`i8042`]: the keyboard controller, as far as a guest without keyboard needs one;
//! - [`power`]: power off, reset, and the power button;
//! - [`pvpanic`]: a port by which a guest's kernel says that it has panicked; the shortest device;
//! - [`pci`]: PCI's configuration ports, with no bus behind them.
//!
//! A device sees only what a chip sees: reads and writes at an offset, and an interrupt line to
//! pull. It does not know KVM or files, so each of them runs in a plain unit test. vCPU threads call it at the
//! same time, so what it keeps is in atomics or behind a lock.
//!
//! Each file of a device has the chip and, at its end, the [`Part`](crate::board::Part) by which the board
//! knows it. docs/architecture.md lists the steps by which one is added.

pub mod i8042;
pub mod last_words;
pub mod pci;
pub mod power;
pub mod pvpanic;
pub mod serial;
