//! Which model of the processor a VMM can be given on this host.
//!
//! QEMU's `-cpu host` is what is asked for, but not every version can have it on every host: QEMU 7.2
//! on a processor of AMD under a KVM that reports IA32_ARCH_CAPABILITIES (MSR 0x10a) all the same, as
//! PVM does, ends with "failed to set MSR 0x10a". So each model of the template is tried with a guest
//! of four instructions, and the first that runs is taken, and named in the results.

use std::path::PathBuf;
use std::time::Duration;

use super::{Machine, Vmm};
use crate::process::Process;

/// For one try; it is a start, of which the slowest VMM makes two seconds.
const LIMIT: Duration = Duration::from_secs(10);
/// What the guest prints.
const RUNS: &[u8] = b"!";

/// What came of it for one program.
#[derive(Debug)]
pub struct Found {
    program: PathBuf,
    models: &'static [&'static str],
    /// The VMMs that run this program.
    pub names: Vec<&'static str>,
    /// The model that runs, if one does.
    pub model: Option<&'static str>,
    /// Those that were tried before, each with what it came to.
    pub refused: Vec<(&'static str, String)>,
}

impl Found {
    /// What is said of it while measuring; nothing where the first choice was fine.
    pub fn line(&self) -> Option<String> {
        let (first, why) = self.refused.first()?;
        // The program's own words: nothing of them may reach a terminal as a command to it.
        let why = bantam::error::escaped(why);
        let names = self.names.join(", ");
        Some(match self.model {
            Some(model) => format!("{names}: with -cpu {model}, as -cpu {first} {why}"),
            None => format!(
                "{names}: does not start with any of -cpu {}: {why}",
                self.models.join(", ")
            ),
        })
    }
}

/// Finds a model for each of `vmms` that has a choice, by starting `machine`. VMMs that are one
/// program have one answer.
pub fn choose(vmms: &mut [Vmm], machine: &Machine) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    for vmm in vmms.iter_mut().filter(|vmm| !vmm.template.cpus.is_empty()) {
        let same = |found: &&mut Found| found.program == vmm.program;
        if let Some(known) = all.iter_mut().find(same) {
            known.names.push(vmm.name());
            vmm.cpu = known.model.unwrap_or(vmm.cpu);
            continue;
        }
        let mut found = Found {
            program: vmm.program.clone(),
            models: vmm.template.cpus,
            names: vec![vmm.name()],
            model: None,
            refused: Vec::new(),
        };
        for model in vmm.template.cpus {
            let with = Vmm {
                cpu: model,
                ..vmm.clone()
            };
            let tried = Process::start(|folder| with.command(machine, folder))
                .and_then(|mut process| process.wait_for(RUNS, LIMIT));
            match tried {
                Ok(_) => {
                    found.model = Some(model);
                    vmm.cpu = model;
                    break;
                }
                Err(error) => found.refused.push((model, format!("{error:#}"))),
            }
        }
        all.push(found);
    }
    all
}
