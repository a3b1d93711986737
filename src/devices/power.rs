//! Power off and reset: the sleep control and reset registers that the FADT names.
//!
//! In hardware-reduced ACPI the operating system enters S5 (soft off) by writing the sleep type
//! and SLP_EN to one register, and resets by writing a value to another (ACPI 6.5, 4.8.3.7 "Sleep
//! Control and Status Registers", 4.8.3.6 "Reset Register"). A second value of the reset register is
//! what the code at the reset vector writes ([`crate::arch::x86_64::reset_vector`]).

use std::sync::Arc;

use acpi_tables::aml::{self, Device, EISAName, Method, Name, Notify, Path, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

use crate::arch::x86_64::layout::{self, RESET_VALUE, RESET_VECTOR_VALUE, S5_SLEEP_TYPE};
use crate::board::aml::edge;
use crate::board::{
    BusDevice, Lifecycle, Need, Part, Place, PowerRequest, PowerSink, Site, SiteError,
};

/// Notification 0x80 of a power button: "pressed" (ACPI 6.5, 4.8.3.2.2).
const POWER_BUTTON_PRESSED: u8 = 0x80;

const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111;

/// The sleep control, sleep status and reset registers, in this order.
pub struct AcpiPower {
    sink: PowerSink,
}

impl AcpiPower {
    /// A device that reports to `sink`.
    pub fn new(sink: PowerSink) -> Self {
        AcpiPower { sink }
    }
}

impl BusDevice for AcpiPower {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        match offset {
            0 if value & SLP_EN != 0
                && (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK == S5_SLEEP_TYPE =>
            {
                (self.sink)(PowerRequest::PowerOff);
            }
            2 if value == RESET_VALUE => (self.sink)(PowerRequest::Reset("ACPI reset register")),
            2 if value == RESET_VECTOR_VALUE => (self.sink)(PowerRequest::Reset("reset vector")),
            _ => {}
        }
    }
}

impl Lifecycle for AcpiPower {}

/// The registers, for the board, with the power button.
pub struct PowerPart;

impl Part for PowerPart {
    fn need(&self) -> Need {
        Need::Ports {
            first: layout::POWER_PORT,
            count: layout::POWER_PORTS,
            gsi: Some(layout::POWER_BUTTON_GSI),
        }
    }

    fn describe(&self, _name: &str) -> String {
        "power off, reset, power button".into()
    }

    /// The button, and the generic event device whose interrupt says that it was pressed
    /// (ACPI 6.5, 5.6.9). The registers are in the FADT.
    fn aml(&self, _place: &Place, sink: &mut dyn AmlSink) {
        Device::new(
            Path::new("PWRB"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")),
                &Name::new(Path::new("_UID"), &aml::ZERO),
            ],
        )
        .to_aml_bytes(sink);
        let button = Path::new("PWRB");
        let pressed = Notify::new(&button, &POWER_BUTTON_PRESSED);
        Device::new(
            Path::new("GED0"),
            vec![
                &Name::new(Path::new("_HID"), &"ACPI0013"),
                &Name::new(Path::new("_UID"), &aml::ZERO),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&edge(layout::POWER_BUTTON_GSI)]),
                ),
                &Method::new(Path::new("_EVT"), 1, true, vec![&pressed]),
            ],
        )
        .to_aml_bytes(sink);
    }

    fn build(&self, place: &Place, site: &mut Site<'_>) -> Result<(), SiteError> {
        site.power_button = Some(site.irq_line(place)?);
        let device = Arc::new(AcpiPower::new(site.power.clone()));
        site.put(place, "power", &device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn recorder() -> (PowerSink, Arc<Mutex<Vec<PowerRequest>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        (Arc::new(move |r| sink.lock().unwrap().push(r)), seen)
    }

    #[test]
    fn only_s5_with_slp_en_powers_off() {
        let (sink, seen) = recorder();
        let dev = AcpiPower::new(sink);
        dev.write(0, &[S5_SLEEP_TYPE << SLP_TYP_SHIFT]);
        dev.write(0, &[SLP_EN | 3 << SLP_TYP_SHIFT]);
        assert!(seen.lock().unwrap().is_empty());
        dev.write(0, &[SLP_EN | S5_SLEEP_TYPE << SLP_TYP_SHIFT]);
        assert_eq!(*seen.lock().unwrap(), [PowerRequest::PowerOff]);
    }

    #[test]
    fn both_values_of_the_reset_register_reset() {
        let (sink, seen) = recorder();
        let dev = AcpiPower::new(sink);
        dev.write(2, &[0]);
        assert!(seen.lock().unwrap().is_empty());
        dev.write(2, &[RESET_VALUE]);
        dev.write(2, &[RESET_VECTOR_VALUE]);
        assert_eq!(
            *seen.lock().unwrap(),
            [
                PowerRequest::Reset("ACPI reset register"),
                PowerRequest::Reset("reset vector")
            ]
        );
    }
}
