//! What KVM says of a machine: its static tracepoints, read through tracefs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

const TRACEFS: &str = "/sys/kernel/tracing";
const EVENTS: [&str; 3] = ["kvm_entry", "kvm_exit", "kvm_userspace_exit"];
const BUFFER_KIB: &str = "65536";

/// While it lives, KVM's entries and exits are recorded.
pub struct Trace(());

/// What was recorded up to a moment.
#[derive(Debug, Default)]
pub struct Recorded {
    /// The first entry into the guest, on CLOCK_MONOTONIC.
    pub first_entry: Option<Duration>,
    /// Exits from the guest, by reason.
    pub exits: BTreeMap<String, f64>,
    /// Those of them that reached the VMM, by reason.
    pub userspace: BTreeMap<String, f64>,
}

impl Trace {
    /// Starts to record.
    pub fn start() -> Result<Self> {
        if !Path::new(TRACEFS).join("events/kvm").is_dir() {
            bail!("{TRACEFS} has no KVM events: mount tracefs, as root");
        }
        let trace = Trace(());
        set("tracing_on", "0")?;
        set("buffer_size_kb", BUFFER_KIB)?;
        set("trace_clock", "mono")?;
        set("trace", "")?;
        for event in EVENTS {
            set(&format!("events/kvm/{event}/enable"), "1")?;
        }
        set("tracing_on", "1")?;
        Ok(trace)
    }

    /// Ends the record; what came after `until` is not counted.
    pub fn stop(self, until: Duration) -> Result<Recorded> {
        set("tracing_on", "0")?;
        let text = fs::read_to_string(Path::new(TRACEFS).join("trace")).context("the trace")?;
        let mut recorded = Recorded::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((time, event, rest)) = parse(line) else {
                continue;
            };
            if time > until {
                continue;
            }
            match event {
                "kvm_entry" => {
                    recorded.first_entry.get_or_insert(time);
                }
                "kvm_exit" => count(&mut recorded.exits, rest, "reason"),
                "kvm_userspace_exit" => count(&mut recorded.userspace, rest, "reason"),
                _ => {}
            }
        }
        Ok(recorded)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = set("tracing_on", "0");
        for event in EVENTS {
            let _ = set(&format!("events/kvm/{event}/enable"), "0");
        }
        let _ = set("trace", "");
    }
}

/// `  comm-123  [000] d..1.  1234.567890: kvm_exit: vcpu 0 reason io rip 0x...`
fn parse(line: &str) -> Option<(Duration, &str, &str)> {
    let (_, rest) = line.split_once("] ")?;
    let (_flags, rest) = rest.trim_start().split_once(' ')?;
    let (time, rest) = rest.trim_start().split_once(": ")?;
    let (event, rest) = rest.split_once(": ")?;
    Some((Duration::from_secs_f64(time.parse().ok()?), event, rest))
}

fn count(counts: &mut BTreeMap<String, f64>, rest: &str, before: &str) {
    let mut words = rest.split_whitespace();
    if words.by_ref().any(|word| word == before)
        && let Some(reason) = words.next()
    {
        *counts
            .entry(reason.trim_start_matches("KVM_EXIT_").to_lowercase())
            .or_default() += 1.0;
    }
}

fn set(file: &str, value: &str) -> Result<()> {
    let path = Path::new(TRACEFS).join(file);
    fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
}

/// CLOCK_MONOTONIC, which the trace uses as well.
pub fn now() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid timespec, for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
