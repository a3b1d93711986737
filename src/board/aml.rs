//! Words of ACPI's machine language that several parts use.

use acpi_tables::aml::Interrupt;

/// An interrupt as all of this machine's are: edge-triggered, active high, exclusive (ACPI 6.5, 6.4.3.6).
pub fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
