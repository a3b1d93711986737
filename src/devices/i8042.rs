//! The keyboard controller, as far as a guest without keyboard needs one.
//!
//! Linux pulses the CPU's reset line through it (`reboot=k`: command 0xfe to port 0x64), and its
//! i8042 driver probes it at boot. A controller that is not there (reads of 0xff) is noticed at
//! once; one that answers wrongly costs the guest half a second of polling. This one answers just
//! enough: the status says "nothing in the buffers", the self-test passes, the ports are absent.
//!
//! Ports: 0x60 data, 0x64 status (read) and command (write). Source: IBM PS/2 Hardware Interface
//! Technical Reference, "Keyboard and Auxiliary Device Controller".

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::arch::x86_64::layout;
use crate::board::device::{from_value, to_value};
use crate::board::{
    BusDevice, Lifecycle, Need, Part, Place, PowerRequest, PowerSink, Site, SiteError, StateError,
};
use crate::sync::lock;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;

const CMD_READ_CONFIG: u8 = 0x20;
const CMD_WRITE_CONFIG: u8 = 0x60;
const CMD_DISABLE_AUX: u8 = 0xa7;
const CMD_ENABLE_AUX: u8 = 0xa8;
const CMD_TEST_AUX: u8 = 0xa9;
const CMD_SELF_TEST: u8 = 0xaa;
const CMD_TEST_KBD: u8 = 0xab;
const CMD_PULSE_RESET: u8 = 0xfe;

const SELF_TEST_PASSED: u8 = 0x55;
/// Interface test result: clock line stuck low, that is, nothing is plugged in.
const NO_DEVICE: u8 = 0x01;

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct State {
    output: Option<u8>,
    config: u8,
    expects_config: bool,
}

/// The controller; offset 0 is port 0x60, offset 4 is port 0x64.
pub struct I8042 {
    state: Mutex<State>,
    power: PowerSink,
}

impl I8042 {
    /// `power` is told of the reset pulse.
    pub fn new(power: PowerSink) -> Self {
        I8042 {
            state: Mutex::default(),
            power,
        }
    }

    fn command(&self, command: u8) {
        let mut state = lock(&self.state);
        state.expects_config = command == CMD_WRITE_CONFIG;
        state.output = match command {
            CMD_READ_CONFIG => Some(state.config),
            CMD_SELF_TEST => Some(SELF_TEST_PASSED),
            CMD_TEST_AUX | CMD_TEST_KBD => Some(NO_DEVICE),
            CMD_DISABLE_AUX | CMD_ENABLE_AUX => state.output,
            CMD_PULSE_RESET => {
                drop(state);
                (self.power)(PowerRequest::Reset("keyboard controller"));
                return;
            }
            _ => None,
        };
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = lock(&self.state);
        let value = match offset {
            0 => state.output.take().unwrap_or(0),
            4 => STATUS_SYSTEM | state.output.map_or(0, |_| STATUS_OUTPUT_FULL),
            _ => 0,
        };
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        match offset {
            4 => self.command(value),
            0 => {
                let mut state = lock(&self.state);
                if state.expects_config {
                    state.config = value;
                    state.expects_config = false;
                }
            }
            _ => {}
        }
    }
}

impl Lifecycle for I8042 {
    fn state(&self) -> Value {
        to_value(&*lock(&self.state))
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        *lock(&self.state) = from_value(state)?;
        Ok(())
    }
}

/// The controller, for the board.
pub struct I8042Part;

impl Part for I8042Part {
    fn need(&self) -> Need {
        Need::Ports {
            first: layout::I8042_PORT,
            count: layout::I8042_PORTS,
            gsi: None,
        }
    }

    fn describe(&self, _name: &str) -> String {
        "keyboard controller (reset)".into()
    }

    fn build(&self, place: &Place, site: &mut Site<'_>) -> Result<(), SiteError> {
        let device = Arc::new(I8042::new(site.power.clone()));
        site.put(place, "i8042", &device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> (I8042, Arc<Mutex<Vec<PowerRequest>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        (
            I8042::new(Arc::new(move |r| sink.lock().unwrap().push(r))),
            seen,
        )
    }

    fn read(dev: &I8042, offset: u64) -> u8 {
        let mut byte = [0xee];
        dev.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn the_reset_pulse_is_reported_once() {
        let (dev, seen) = controller();
        dev.write(4, &[CMD_PULSE_RESET]);
        assert_eq!(
            *seen.lock().unwrap(),
            [PowerRequest::Reset("keyboard controller")]
        );
    }

    #[test]
    fn the_self_test_answers_and_the_buffer_empties() {
        let (dev, _) = controller();
        assert_eq!(read(&dev, 4) & STATUS_OUTPUT_FULL, 0);
        dev.write(4, &[CMD_SELF_TEST]);
        assert_eq!(read(&dev, 4) & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
        assert_eq!(read(&dev, 0), SELF_TEST_PASSED);
        assert_eq!(read(&dev, 4) & STATUS_OUTPUT_FULL, 0);
    }

    #[test]
    fn the_configuration_byte_reads_back() {
        let (dev, _) = controller();
        dev.write(4, &[CMD_WRITE_CONFIG]);
        dev.write(0, &[0x43]);
        dev.write(4, &[CMD_READ_CONFIG]);
        assert_eq!(read(&dev, 0), 0x43);
    }

    #[test]
    fn wide_and_empty_accesses_are_answered() {
        let (dev, _) = controller();
        let mut wide = [0xaa; 8];
        dev.read(0, &mut wide);
        assert_eq!(wide, [0; 8]);
        dev.read(4, &mut []);
        dev.write(0, &[]);
    }
}
