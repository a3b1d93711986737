//! Fifty machines side by side.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::context::Context;
use super::start;
use crate::engine::{Effort, Question, Sample, interleave};
use crate::process::Process;
use crate::result::{Clock, Figure};
use crate::vmm::{Machine, Vmm};

const MACHINES: usize = 50;
const LIMIT: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(10);

/// What one fleet shows.
struct Fleet {
    last_ready: Duration,
    overhead_mib: f64,
    touched_mib: f64,
    idle_cpu: Option<Duration>,
}

/// Runs the row.
pub fn bare(context: &Context) -> Result<Vec<Figure>> {
    let machine = start::machine(&start::payload(&context.folder)?);
    let question = |case: &str, unit: &'static str, clock, note| Question {
        row: "density",
        case: case.into(),
        unit,
        lower_is_better: true,
        clock,
        note,
    };
    let rounds = |n| Effort {
        min_rounds: n,
        max_rounds: n,
        budget: context.share(0.5),
        ..Effort::virtual_time()
    };
    let ready = interleave(
        question(
            "50 machines: to the last one ready",
            "ms",
            Clock::Wall,
            "started one after the other, without waiting",
        ),
        &context.vmms,
        rounds(7),
        |vmm| Ok((fleet(vmm, &machine, false)?.last_ready.as_secs_f64() * 1e3).into()),
    );
    // One idle fleet each gives the other two figures.
    let mut idle = std::collections::BTreeMap::new();
    let memory = interleave(
        question(
            "50 machines: memory of each, less guest RAM",
            "MiB",
            Clock::None,
            "PSS",
        ),
        &context.vmms,
        rounds(1),
        |vmm| {
            let fleet = fleet(vmm, &machine, true)?;
            idle.insert(vmm.name(), fleet.idle_cpu);
            Ok(Sample {
                value: fleet.overhead_mib,
                parts: vec![("guest RAM touched".into(), fleet.touched_mib)],
                cdf: Vec::new(),
            })
        },
    );
    let cpu = interleave(
        question(
            "50 machines: CPU time of all in 10 s, idle",
            "ms",
            Clock::Wall,
            "halted guests",
        ),
        &context.vmms,
        rounds(1),
        |vmm| {
            let spent = idle
                .get(vmm.name())
                .copied()
                .flatten()
                .context("not measured")?;
            Ok((spent.as_secs_f64() * 1e3).into())
        },
    );
    Ok(vec![ready, memory, cpu])
}

fn fleet(vmm: &Vmm, machine: &Machine, watch_idle: bool) -> Result<Fleet> {
    let begin = Instant::now();
    let mut processes = Vec::new();
    for _ in 0..MACHINES {
        processes.push(Process::start(|folder| vmm.command(machine, folder))?);
    }
    let mut last_ready = Duration::ZERO;
    for process in &mut processes {
        let (at, _) = process.wait_for(b"!", LIMIT)?;
        last_ready = last_ready.max(at - begin);
    }
    let mut fleet = Fleet {
        last_ready,
        overhead_mib: 0.0,
        touched_mib: 0.0,
        idle_cpu: None,
    };
    if !watch_idle {
        return Ok(fleet);
    }
    std::thread::sleep(SETTLE);
    for process in &processes {
        let pss = process.pss(u64::from(machine.memory_mib) << 20)?;
        let each = |bytes: u64| bytes as f64 / 1048576.0 / MACHINES as f64;
        fleet.overhead_mib += each(pss.all.saturating_sub(pss.guest_ram));
        fleet.touched_mib += each(pss.guest_ram);
    }
    let spent = || {
        processes
            .iter()
            .flat_map(|p| p.cpu_time().into_values())
            .map(|(_, time)| time)
            .sum::<Duration>()
    };
    let before = spent();
    std::thread::sleep(IDLE);
    fleet.idle_cpu = Some(spent().saturating_sub(before));
    Ok(fleet)
}
