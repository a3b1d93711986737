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
//! - [`rehearsal`]: whether it would start (`--dry-run`);
//! - [`run`]: its life, from the first thread to the last; [`session`]: its lives, where a
//!   reset starts it again, and [`lasting`]: what stays;
//! - [`vcpus`]: makes the vCPUs, beside the devices; [`vcpu`]: a vCPU thread, KVM_RUN and what each exit means;
//! - [`bus`]: an address and the device behind it;
//! - [`event_loop`]: who listens on what; [`console`] (with [`endpoints`], [`output`] and
//!   [`stall`]),
//!   [`control`] (with [`signals`]) and [`block_io`] are on it; [`io_thread`] has one of its own;
//! - [`exit`]: why a machine has ended; [`reset`]: what a reset means; [`crash`]: what can be said
//!   of a crash;
//! - [`host`]: what this host can do.

pub mod block_io;
pub mod builder;
pub mod bus;
pub mod console;
pub mod control;
pub mod crash;
pub mod endpoints;
pub mod error;
pub mod event_loop;
pub mod exit;
pub mod host;
pub mod identity;
pub mod io_thread;
pub mod lasting;
pub mod memory;
pub mod output;
pub mod plan;
pub mod rehearsal;
pub mod report;
pub mod reset;
pub mod run;
pub mod session;
pub mod signals;
pub mod stall;
pub mod vcpu;
pub mod vcpus;

pub use builder::Machine;
pub use error::StartError;
pub use exit::Exit;
pub use plan::{Plan, PlanError};
