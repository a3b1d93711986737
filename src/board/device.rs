//! A device as its machine sees it: something that answers on a bus, pulls a line, can be quiesced and go
//! on, and tells its state.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

/// Something that answers on a range of ports or of guest physical addresses.
///
/// Called from vCPU threads, several at a time. `offset` counts from the start of the device's own
/// range; `data` has the width of the access (1, 2, 4 or 8 bytes). Implementations answer every
/// combination: a guest may choose them all.
pub trait BusDevice: Send + Sync {
    /// The guest reads: fill `data`, little-endian.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data`, little-endian.
    fn write(&self, offset: u64, data: &[u8]);
}

/// An edge-triggered interrupt input of the machine's interrupt controller.
///
/// The machine ties the event fd to a GSI with KVM_IRQFD, so that a pull costs one `write(2)` and
/// no exit; a unit test reads the event fd instead.
#[derive(Debug)]
pub struct IrqLine(EventFd);

impl IrqLine {
    /// Wraps the event fd that KVM (or a test) listens on.
    pub fn new(fd: EventFd) -> Self {
        IrqLine(fd)
    }

    /// Pulls the line once.
    pub fn pull(&self) {
        // The only failure of an eventfd write is a counter at its maximum (EAGAIN): then an edge
        // is pending already, and that is all a second one would have said.
        let _ = self.0.write(1);
    }
}

/// What a machine asks of a device over its life.
///
/// A machine that pauses first parks its vCPUs and then quiesces its devices; one that goes on does both
/// in the other order. A vCPU may still be at work while `state` is called, so a state that is to be
/// written back later is read from a machine that is paused, after `busy` has said no.
pub trait Lifecycle: Send + Sync {
    /// Takes nothing new from the guest or the outside from now on. What is in flight ends in its own time, so
    /// this returns at once.
    fn quiesce(&self) {}

    /// Whether something is still in flight.
    fn busy(&self) -> bool {
        false
    }

    /// Goes on where [`Lifecycle::quiesce`] has stopped it.
    fn resume(&self) {}

    /// The machine has ended: on return nothing is in flight, and what is kept in memory is where it belongs.
    fn finish(&self) {}

    /// All that a guest could see or that decides what happens next, as a plain value; null for a device
    /// that keeps nothing.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Takes a value that [`Lifecycle::state`] of the same kind of device has given.
    ///
    /// # Errors
    /// When it is no such value. The device is as it was then.
    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let () = from_value(state)?;
        Ok(())
    }
}

/// A value is no state of the device to which it is given.
#[derive(Debug, thiserror::Error)]
#[error("not a state of this device: {why}")]
pub struct StateError {
    /// What is wrong with it.
    pub why: String,
}

impl StateError {
    /// Wrong for this reason.
    pub fn new(why: impl Into<String>) -> Self {
        StateError { why: why.into() }
    }
}

/// A state as a plain value.
pub fn to_value(state: &impl Serialize) -> Value {
    // Fails only for maps whose keys are no strings, which no state has.
    serde_json::to_value(state).unwrap_or_default()
}

/// A state out of a plain value.
///
/// # Errors
/// When it is none.
pub fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, StateError> {
    T::deserialize(value).map_err(|error| StateError::new(error.to_string()))
}
