//! ACPI tables: how a stock kernel finds its CPUs, its disks and its power switch.
//!
//! ```text
//!   RSDP ─▶ XSDT ─▶ FADT ─▶ DSDT     \_SB: COM1, GED0 + PWRB, PVPN, V000 V001 ...
//!                └▶ MADT
//! ```
//!
//! The platform is "hardware-reduced" (ACPI 6.5, 3.11.1): no PM timer, no fixed event registers,
//! no SCI, no PIC and PIT for the guest to set up. Power off and reset are one register each; the
//! power button is announced by a generic event device.

use acpi_tables::aml::{self, Name, Package, Path, Scope};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;
use super::topology::Topology;

const OEM: [u8; 6] = *b"BANTAM";
const OEM_TABLE: [u8; 8] = *b"BANTAMVM";
const OEM_REVISION: u32 = 1;
const DSDT_REVISION: u8 = 2;
const HEADER_BYTES: u32 = 36;

/// IA-PC boot architecture flags (ACPI 6.5, 5.2.9.3): what is not there. That no 8042 flag is set
/// tells the guest not to look for one.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const MSI_NOT_SUPPORTED: u16 = 1 << 3;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// What the tables describe.
#[derive(Debug)]
pub struct Platform<'a> {
    /// The CPUs.
    pub topology: Topology,
    /// The devices, as AML: what is in the DSDT under `\_SB`.
    pub devices: &'a [u8],
}

/// The tables do not fit, or there is no RAM for them.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// More devices than the area takes.
    #[error("the ACPI tables take {0} bytes, more than fit below 1 MiB")]
    TooLarge(usize),
    /// See [`GuestMemoryError`].
    #[error("cannot write the ACPI tables: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Writes all tables from [`layout::ACPI_TABLES`] on; the RSDP is at that address.
///
/// # Errors
/// See [`AcpiError`].
pub fn write(memory: &GuestMemoryMmap, platform: &Platform<'_>) -> Result<(), AcpiError> {
    let image = image(platform);
    if image.len() as u64 > layout::SMBIOS - layout::ACPI_TABLES {
        return Err(AcpiError::TooLarge(image.len()));
    }
    memory.write_slice(&image, GuestAddress(layout::ACPI_TABLES))?;
    Ok(())
}

/// All tables as they stand from [`layout::ACPI_TABLES`] on.
pub fn image(platform: &Platform<'_>) -> Vec<u8> {
    let mut tables = Tables::after(Rsdp::len());
    let dsdt = tables.add(&dsdt(platform));
    let fadt = tables.add(&bytes(&fadt(dsdt)));
    let madt = tables.add(&bytes(&madt(platform.topology)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.add(&bytes(&xsdt));
    let mut image = bytes(&Rsdp::new(OEM, xsdt));
    image.extend(tables.bytes.get(image.len()..).unwrap_or_default());
    image
}

/// Tables one after the other, each on a 16-byte boundary.
struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    fn after(len: usize) -> Self {
        Tables {
            bytes: vec![0; len],
        }
    }

    /// Appends a table; returns its guest physical address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let at = layout::ACPI_TABLES.saturating_add(self.bytes.len() as u64);
        self.bytes.extend_from_slice(table);
        at
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address.into(),
    )
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        // No fixed power button: hardware-reduced platforms have it as a device.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | MSI_NOT_SUPPORTED | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(topology: Topology) -> MADT {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for (uid, apic_id) in topology.apic_ids().enumerate() {
        // Ids of at most 254 are what the configuration allows.
        madt.add_structure(ProcessorLocalApic::new(
            uid as u8,
            apic_id as u8,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn dsdt(platform: &Platform<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    Scope::new(Path::new("_SB_"), vec![&Written(platform.devices)]).to_aml_bytes(&mut body);
    // \_S5: the sleep type for both (unused here) PM1 registers, then reserved.
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![
            &layout::S5_SLEEP_TYPE,
            &layout::S5_SLEEP_TYPE,
            &aml::ZERO,
            &aml::ZERO,
        ]),
    )
    .to_aml_bytes(&mut body);
    let mut sdt = Sdt::new(
        *b"DSDT",
        HEADER_BYTES,
        DSDT_REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    sdt.append_slice(&body);
    sdt.as_slice().to_vec()
}

/// AML that somebody else has written.
struct Written<'a>(&'a [u8]);

impl Aml for Written<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> usize {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
    }

    /// Follows an address in `image` to the table there; its checksum must be right.
    fn table(image: &[u8], address: usize) -> &[u8] {
        let table = &image[address - layout::ACPI_TABLES as usize..];
        let table = &table[..u32_at(table, 4) as usize];
        assert_eq!(table.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
        table
    }

    #[test]
    fn tables_are_found_from_the_rsdp() {
        let image = image(&Platform {
            topology: Topology::flat(4),
            devices: b"DEVICES",
        });
        assert_eq!(&image[..8], b"RSD PTR ");
        let xsdt = table(&image, u64_at(&image, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&image, u64_at(xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(u32_at(fadt, 112) >> 20 & 1, 1, "hardware-reduced");
        let dsdt = table(&image, u64_at(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert!(dsdt.windows(7).any(|w| w == b"DEVICES"));
        let madt = table(&image, u64_at(xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(madt.len(), 44 + 4 * 8 + 12);
    }
}
