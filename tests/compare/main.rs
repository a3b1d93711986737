//! The comparison's own promises (benches/compare): the published page is what its figures say, and
//! each VMM is asked for a machine in words that the program takes.

// The harness is a program of its own; a test uses parts of it.
#![allow(dead_code)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../benches/compare/engine.rs"]
mod engine;
#[path = "../../benches/compare/host.rs"]
mod host;
#[path = "../../benches/compare/process.rs"]
mod process;
#[path = "../../benches/compare/report/mod.rs"]
mod report;
#[path = "../../benches/compare/result.rs"]
mod result;
#[path = "../../benches/compare/rows/mod.rs"]
mod rows;
#[path = "../../benches/compare/stats.rs"]
mod stats;
#[path = "../../benches/compare/trace.rs"]
mod trace;
#[path = "../../benches/compare/vmm/mod.rs"]
mod vmm;

mod adapters;
mod page;
mod qemu;
mod stand_ins;

fn main() {
    // Under the name of a VMM this program stands in for it.
    stand_ins::run();
    let trials = page::trials()
        .into_iter()
        .chain(adapters::trials())
        .chain(qemu::trials());
    common::trials::exit_after(trials.collect());
}
