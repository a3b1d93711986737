//! vCPUs: made by the thread that will run the first of them, run, and told what to do.
//!
//! - [`make`]: the KVM calls that make them, and their threads;
//! - [`step`]: KVM_RUN, and what each exit means;
//! - [`mailbox`]: what a vCPU's thread is told from outside, and where it parks;
//! - [`kick`]: how it is made to look there;
//! - [`state`]: what it tells of itself.

pub mod kick;
pub mod mailbox;
pub mod make;
pub mod state;
pub mod step;

pub use mailbox::Mailboxes;
pub use make::{Start, VcpuMaker, Vcpus};
pub use state::VcpuState;
pub use step::Shared;
