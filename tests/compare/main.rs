//! The comparison's own promises (benches/compare): the published page is what its figures say, and
//! each VMM is asked for a machine in words that the program takes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr
)]
// The harness is a program of its own; a test uses parts of it.
#![allow(dead_code)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../benches/compare/host.rs"]
mod host;
#[path = "../../benches/compare/process.rs"]
mod process;
#[path = "../../benches/compare/report/mod.rs"]
mod report;
#[path = "../../benches/compare/result.rs"]
mod result;
#[path = "../../benches/compare/stats.rs"]
mod stats;

mod page;

use libtest_mimic::Arguments;

fn main() {
    let args = Arguments::from_args();
    libtest_mimic::run(&args, page::trials()).exit();
}
