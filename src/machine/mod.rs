//! The machine: the only place where the parts meet.
//!
//! ```text
//!   VmConfig ─▶ Plan ─────▶ Machine ──────▶ Exit
//!               files       KVM calls       threads have ended
//!               checked     in order        (run)
//! ```
//!
//! - [`plan`]: opens and checks every file, decides every address; asks nothing of KVM;
//! - [`builder`]: the KVM calls, in order, each with the reason for its place;
//! - [`hvc`]: whether it has a virtio console;
//! - [`rehearsal`]: whether it would start (`--dry-run`);
//! - [`handle`]: the machine as others hold it: pause, go on, end, tell its [`state`];
//! - [`run`]: its life, from the first thread to the last; [`session`]: its lives, where a
//!   reset starts it again, and [`lasting`]: what stays;
//! - [`vcpu`]: makes the vCPUs, beside the devices, and runs each on a thread: KVM_RUN, what each exit
//!   means, and a mailbox by which the thread is told to park or to tell its state;
//! - [`event`]: who listens on what; [`control`] (with [`signals`]) is on it, the console, and the queues of
//!   devices;
//! - [`ending`]: why a machine has ended, what a reset means, what can be said of a crash;
//! - [`host`]: what this host can do.

pub mod builder;
pub mod control;
pub mod disks;
pub mod ending;
pub mod error;
pub mod event;
pub mod footprint;
pub mod handle;
pub mod host;
pub mod hvc;
pub mod identity;
pub mod lasting;
pub mod parts;
pub mod plan;
pub mod rehearsal;
pub mod report;
pub mod run;
pub mod session;
pub mod signals;
pub mod state;
pub mod vcpu;

pub use ending::Exit;
pub use error::StartError;
pub use handle::Machine;
pub use plan::{Plan, PlanError};
