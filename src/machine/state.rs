//! What can be seen of a machine from outside: what it is doing, its vCPUs and its devices, at one moment.
//!
//! Ctrl-a c shows it to people, without the devices; by serde all of it becomes JSON, for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::vcpu::VcpuState;
use super::vcpu::state::Activity;
use crate::board::site::Built;

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its vCPUs run, or are about to.
    Running,
    /// They have been told to park, and not all have, or something is still in flight in a device.
    Pausing,
    /// All vCPUs are parked, the devices take nothing new, and nothing is in flight.
    Paused,
    /// There is a reason to end, and nothing leads back.
    Ended,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Running => "running",
            Phase::Pausing => "pausing",
            Phase::Paused => "paused",
            Phase::Ended => "ended",
        })
    }
}

/// A machine at a moment, for people and, by serde, for programs.
#[derive(Debug, Clone, Serialize)]
pub struct MachineState {
    /// What it is doing.
    pub phase: Phase,
    /// Milliseconds since it was set up, pauses included.
    pub uptime_ms: u64,
    /// RAM.
    pub memory_bytes: u64,
    /// What is on of the sandbox.
    pub sandbox: String,
    /// In the order of their numbers.
    pub vcpus: Vec<VcpuState>,
    /// In the order of the board's list.
    pub devices: Vec<DeviceState>,
}

/// A device at a moment.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceState {
    /// What the board calls it.
    pub name: String,
    /// Something is in flight.
    pub busy: bool,
    /// [`Lifecycle::state`](crate::board::Lifecycle::state).
    pub state: Value,
}

impl DeviceState {
    /// What `built` tells of itself.
    pub(super) fn of(built: &Built) -> Self {
        DeviceState {
            name: built.name.clone(),
            busy: built.device.busy(),
            state: built.device.state(),
        }
    }
}

/// What Ctrl-a c shows.
impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, up for {:.1} s, {} vCPUs, {} MiB",
            self.phase,
            Duration::from_millis(self.uptime_ms).as_secs_f64(),
            self.vcpus.len(),
            self.memory_bytes >> 20
        )?;
        write!(f, "\nsandbox {}", self.sandbox)?;
        for vcpu in &self.vcpus {
            write!(
                f,
                "\nvcpu{}: exits to user space: {} port, {} MMIO; ",
                vcpu.index, vcpu.port_exits, vcpu.mmio_exits
            )?;
            let Some(registers) = &vcpu.registers else {
                write!(f, "does not tell its registers")?;
                continue;
            };
            match registers.activity {
                Activity::Uninitialized => write!(f, "not started by the guest")?,
                Activity::Halted => write!(f, "halted at {:#x}", registers.general.rip)?,
                _ => write!(f, "at {:#x}", registers.general.rip)?,
            }
        }
        Ok(())
    }
}
