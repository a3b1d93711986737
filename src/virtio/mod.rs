//! Virtio 1.2 devices.
//!
//! ```text
//!   vCPU thread                                        event loop, or a thread of the queue's own
//!   ───────────                                        ──────────────────────────────────────────
//!   transport/   register words, interrupt line
//!   front.rs     status, features, queues ──DRIVER_OK──▶ worker.rs   a queue's turn, its bounds, spinning
//!   QueueNotify ─────────────ioeventfd──────────────────▶ ring.rs     takes chains, answers them
//!                                                         chain.rs    a chain, read once
//!   interrupt   ◀──────────────irqfd──── signal.rs ◀────── Handler     what the device does with a chain
//! ```
//!
//! What differs from one type of device to another is in three traits of [`device`]: a [`Model`] is what is
//! planned, a [`VirtioDevice`] is its kind, features and configuration space, a [`Handler`] is what it does
//! with the chains of one queue. Everything else is written once, here. Each device has a folder: [`block`],
//! [`console`], [`rng`].
//!
//! What a guest puts into a ring is read once, checked, and copied into types of our own before
//! anything acts on it. A request that makes no sense is answered with an error; a ring that makes
//! no sense sets DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2), and the device waits to be reset.

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
