//! pvpanic: one port by which a guest's kernel says that it has panicked.
//!
//! Reads tell which events the device understands, a write of bit 0 says "panicked". Announced in
//! the DSDT as QEMU0001, so that Linux's pvpanic driver finds it. Source: QEMU,
//! docs/specs/pvpanic.rst.

use std::sync::Arc;

use acpi_tables::aml::{Device, IO, Name, Path, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

use crate::arch::x86_64::layout;
use crate::board::{
    BusDevice, Lifecycle, Need, Part, Place, PowerRequest, PowerSink, Site, SiteError,
};

const PANICKED: u8 = 1 << 0;

/// The device.
pub struct PvPanic {
    sink: PowerSink,
}

impl PvPanic {
    /// A device that reports to `sink`.
    pub fn new(sink: PowerSink) -> Self {
        PvPanic { sink }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|value| value & PANICKED != 0) {
            (self.sink)(PowerRequest::Panicked);
        }
    }
}

impl Lifecycle for PvPanic {}

/// The device, for the board.
pub struct PvPanicPart;

impl Part for PvPanicPart {
    fn need(&self) -> Need {
        Need::Ports {
            first: layout::PVPANIC_PORT,
            count: 1,
            gsi: None,
        }
    }

    fn describe(&self, _name: &str) -> String {
        "pvpanic".into()
    }

    fn aml(&self, _place: &Place, sink: &mut dyn AmlSink) {
        let port = IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1);
        Device::new(
            Path::new("PVPN"),
            vec![
                &Name::new(Path::new("_HID"), &"QEMU0001"),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port])),
            ],
        )
        .to_aml_bytes(sink);
    }

    fn build(&self, place: &Place, site: &mut Site<'_>) -> Result<(), SiteError> {
        let device = Arc::new(PvPanic::new(site.power.clone()));
        site.put(place, "pvpanic", &device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_panic_is_reported_and_other_events_are_not() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let dev = PvPanic::new(Arc::new(move |r| sink.lock().unwrap().push(r)));
        dev.write(0, &[2]);
        dev.write(0, &[]);
        assert!(seen.lock().unwrap().is_empty());
        dev.write(0, &[1]);
        assert_eq!(*seen.lock().unwrap(), [PowerRequest::Panicked]);
        let mut byte = [0];
        dev.read(0, &mut byte);
        assert_eq!(byte, [PANICKED]);
    }
}
