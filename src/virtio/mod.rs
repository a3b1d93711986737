//! Virtio 1.2 devices.
//!
//! ```text
//!   vCPU thread                                          event loop, or a thread of the queue's own
//!   ───────────                                          ──────────────────────────────────────────
//!   transport/   register words, interrupt line
//!   front.rs     status, features, queues ──DRIVER_OK──▶ worker.rs   a queue's turn, its bounds, spinning
//!   QueueNotify ────────────ioeventfd──────────────────▶   ring.rs     takes a chain
//!                                                          chain.rs    reads it once
//!                                                          Handler     does what the device is for
//!                                                          ring.rs     answers the chain
//!   interrupt   ◀─────irqfd───── signal.rs ◀────────────── ring.rs     tells the driver, if it wants that
//! ```
//!
//! What differs from one type of device to another is in three traits of [`device`]: a [`Model`] is what is
//! planned, a [`VirtioDevice`] is its kind, features and configuration space, a [`Handler`] is what it does
//! with the chains of one queue. Everything else is written once, here. Each device has a folder: [`block`],
//! [`console`], [`rng`], [`balloon`].
//!
//! What a guest puts into a ring is read once, checked, and copied into types of our own before
//! anything acts on it. A request that makes no sense is answered with an error; a ring that makes
//! no sense sets DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2), and the device waits to be reset.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod complaints;
pub mod console;
pub mod device;
pub mod front;
pub mod limit;
pub mod part;
pub mod queue;
pub mod ring;
pub mod rng;

pub mod setup;
pub mod signal;
pub mod spin;
pub mod transport;
pub mod worker;

pub use chain::Chain;
pub use complaints::Complaints;
pub use device::{Answer, Handler, Host, Made, MadeQueue, Model, Room, Taken, VirtioDevice};
pub use front::Front;
pub use limit::Limiter;
pub use part::OnMmio;
pub use ring::{Broken, Ring};
pub use signal::{Bell, Signal};
pub use worker::Worker;
