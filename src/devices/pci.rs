//! PCI's configuration ports, with no bus behind them, and the reset control register among them.
//!
//! ```text
//!   0xcf8  CONFIG_ADDRESS, 32 bits: which register of which device
//!   0xcf9  reset control, an access of 8 bits in the middle of it
//!   0xcfc  CONFIG_DATA, 32 bits: that register
//! ```
//!
//! Linux complains ("PCI: Fatal: No config space access function found") on a machine where it can
//! address no configuration space at all. On this one it can: the address reads back, which is how
//! it tells that configuration mechanism #1 is there, and every device answers with all ones, which
//! is how an empty slot answers. Sources: PCI Local Bus Specification 3.0, 3.2.2.3.2; for the reset
//! control register, Intel's chipset datasheets ("RST_CNT", I/O port 0xcf9).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::arch::x86_64::layout;
use crate::board::device::{from_value, to_value};
use crate::board::{
    BusDevice, Lifecycle, Need, Part, Place, PowerRequest, PowerSink, Site, SiteError, StateError,
};

/// Offset of the reset control register.
const RESET_CONTROL: u64 = 1;
/// Bit 2 of the reset control register: reset the CPU.
const RST_CPU: u8 = 1 << 2;

/// The eight ports from 0xcf8 on.
pub struct PciPorts {
    address: AtomicU32,
    power: PowerSink,
}

impl PciPorts {
    /// `power` is told of a reset.
    pub fn new(power: PowerSink) -> Self {
        PciPorts {
            address: AtomicU32::new(0),
            power,
        }
    }
}

impl BusDevice for PciPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes()),
            (0..4, _) => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => {
                let address = u32::from_le_bytes([a, b, c, d]);
                self.address.store(address, Ordering::Relaxed);
            }
            (RESET_CONTROL, &[value]) if value & RST_CPU != 0 => {
                (self.power)(PowerRequest::Reset("port 0xcf9"));
            }
            _ => {}
        }
    }
}

impl Lifecycle for PciPorts {
    fn state(&self) -> Value {
        to_value(&self.address.load(Ordering::Relaxed))
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        self.address.store(from_value(state)?, Ordering::Relaxed);
        Ok(())
    }
}

/// The ports, for the board.
pub struct PciPart;

impl Part for PciPart {
    fn need(&self) -> Need {
        Need::Ports {
            first: layout::PCI_PORT,
            count: layout::PCI_PORTS,
            gsi: None,
        }
    }

    fn describe(&self, _name: &str) -> String {
        "PCI configuration (no bus behind it), reset control".into()
    }

    fn build(&self, place: &Place, site: &mut Site<'_>) -> Result<(), SiteError> {
        let device = Arc::new(PciPorts::new(site.power.clone()));
        site.put(place, "pci", &device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn ports() -> (PciPorts, Arc<Mutex<Vec<PowerRequest>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let ports = PciPorts::new(Arc::new(move |r| sink.lock().unwrap().push(r)));
        (ports, seen)
    }

    #[test]
    fn mechanism_1_is_there_and_every_slot_is_empty() {
        let (ports, seen) = ports();
        let address = 0x8000_0000u32.to_le_bytes();
        ports.write(3, &[1]);
        ports.write(0, &address);
        let mut read = [0; 4];
        ports.read(0, &mut read);
        assert_eq!(read, address);
        ports.read(4, &mut read);
        assert_eq!(read, [0xff; 4]);
        ports.write(4, &[0; 4]);
        // Any other width is an access to something else that is not there.
        ports.read(0, &mut [0; 2]);
        ports.read(7, &mut [0; 8]);
        ports.write(0, &[]);
        assert!(seen.lock().unwrap().is_empty());
    }

    #[test]
    fn the_reset_control_register_resets_by_its_third_bit() {
        let (ports, seen) = ports();
        ports.write(1, &[0x02]);
        assert!(seen.lock().unwrap().is_empty());
        ports.write(1, &[0x06]);
        assert_eq!(*seen.lock().unwrap(), [PowerRequest::Reset("port 0xcf9")]);
    }
}
