//! vCPUs: made by the thread that will run the first of them, and run.
//!
//! - [`make`]: the KVM calls that make them, and their threads;
//! - [`step`]: KVM_RUN, and what each exit means.

pub mod make;
pub mod step;

pub use make::{Start, VcpuMaker, Vcpus};
pub use step::{Counters, Shared, Vcpu, install_kick_handler, kick_signal};
