//! SMBIOS tables: which machine this is, in the form in which a PC's firmware says it.
//!
//! ```text
//!   0xf_0000  ┌───────────────────┐
//!             │ entry point _SM3_ │ 24 bytes: where the structures are, and how many bytes they take
//!   0xf_0020  ├───────────────────┤
//!             │ type 0   BIOS     │ a structure: ┌────┬─────┬────────┬─────────┬───────────────────┐
//!             │ type 1   system   │              │type│ len │ handle │ fields  │ strings, each with │
//!             │ type 11  strings  │              │ u8 │ u8  │ u16    │         │ a NUL; one more NUL │
//!             │ type 127 end      │              └────┴─────┴────────┴─────────┴───────────────────┘
//!             └───────────────────┘                  len bytes, strings not counted
//! ```
//!
//! A field that is a text holds the number of a string behind the fields, counted from 1; 0 is none.
//! A kernel without EFI looks for the entry point from 0xf0000 to 0xfffff, on 16-byte boundaries
//! (Linux, drivers/firmware/dmi_scan.c), and shows what it has found in /sys/class/dmi/id and
//! /sys/firmware/dmi/tables. The strings of type 11 are free to use: systemd takes credentials from
//! them.
//!
//! The source is DMTF DSP0134, "System Management BIOS Reference Specification", version 3.6.

use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

/// Bytes that entry point and structures may take together.
pub const ROOM: usize = (layout::RESET_VECTOR - layout::SMBIOS) as usize;

/// The version of the specification.
const VERSION: (u8, u8) = (3, 6);
/// Length of the 64-bit entry point (DSP0134, 5.2.2).
const ENTRY_BYTES: u8 = 24;
/// Where the structures begin behind the entry point, on the next 16-byte boundary.
const STRUCTURES: usize = 32;
/// The header of a structure (DSP0134, 6.1.2).
const HEADER_BYTES: u8 = 4;
/// A structure counts its strings in one byte (DSP0134, 7.12).
const STRINGS_MAX: usize = 255;

/// Bit 3 of the BIOS characteristics: they are not supported, so nothing is said (DSP0134, 7.1.1).
const CHARACTERISTICS_NOT_SUPPORTED: u64 = 1 << 3;
/// Bit 4 of the second extension byte: the table describes a virtual machine (DSP0134, 7.1.2.2).
const VIRTUAL_MACHINE: u8 = 1 << 4;
/// No embedded controller, and no release of one (DSP0134, 7.1).
const NO_RELEASE: u8 = 0xff;
/// What woke the system: the power switch (DSP0134, 7.2.2).
const WAKE_UP_POWER_SWITCH: u8 = 6;

/// Who made the machine.
const MANUFACTURER: &str = "Bantam";
/// What it is called.
const PRODUCT: &str = "Bantam";
/// A release date is demanded; Linux takes old hardware's quirks from its year.
const RELEASE_DATE: &str = "01/01/2026";

/// What the tables say of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The machine's number.
    pub uuid: Uuid,
    /// Texts of type 11, in any number. None of them is empty or holds a NUL.
    pub oem_strings: &'a [String],
}

/// Writes an [`image`] that was made for [`layout::SMBIOS`] there.
///
/// # Errors
/// When there is no RAM.
pub fn write(memory: &GuestMemoryMmap, image: &[u8]) -> Result<(), GuestMemoryError> {
    memory.write_slice(image, GuestAddress(layout::SMBIOS))
}

/// Entry point and structures, as they stand from the address `base` on. It may be longer than
/// [`ROOM`]: how much there is to say is the caller's question.
pub fn image(identity: Identity<'_>, base: u64) -> Vec<u8> {
    let mut structures = Structures::default();
    structures.add(
        0,
        &bios_fields(),
        &[MANUFACTURER, env!("CARGO_PKG_VERSION"), RELEASE_DATE],
    );
    structures.add(1, &system_fields(identity.uuid), &[MANUFACTURER, PRODUCT]);
    for strings in identity.oem_strings.chunks(STRINGS_MAX) {
        let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
        structures.add(11, &[strings.len() as u8], &strings);
    }
    structures.add(127, &[], &[]);
    let structures = structures.bytes;
    let mut image = entry_point(base.saturating_add(STRUCTURES as u64), structures.len());
    image.resize(STRUCTURES, 0);
    image.extend(structures);
    image
}

/// The 64-bit entry point (DSP0134, 5.2.2).
fn entry_point(address: u64, len: usize) -> Vec<u8> {
    let mut entry = b"_SM3_".to_vec();
    entry.push(0); // the checksum, set below
    entry.push(ENTRY_BYTES);
    entry.extend([VERSION.0, VERSION.1, 0]);
    entry.push(1); // revision of the entry point
    entry.push(0); // reserved
    entry.extend((len as u32).to_le_bytes());
    entry.extend(address.to_le_bytes());
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = entry.get_mut(5) {
        *checksum = sum.wrapping_neg();
    }
    entry
}

/// Type 0, BIOS information (DSP0134, 7.1).
fn bios_fields() -> Vec<u8> {
    let mut fields = vec![1, 2]; // vendor, version
    fields.extend([0, 0]); // starting segment: there is no BIOS in memory
    fields.push(3); // release date
    fields.push(0); // size of the ROM: 64 KiB, the smallest that can be said
    fields.extend(CHARACTERISTICS_NOT_SUPPORTED.to_le_bytes());
    fields.extend([0, VIRTUAL_MACHINE]);
    fields.extend([NO_RELEASE; 4]); // BIOS and embedded controller, major and minor
    fields.extend([0, 0]); // extended size of the ROM: unused
    fields
}

/// Type 1, system information (DSP0134, 7.2).
fn system_fields(uuid: Uuid) -> Vec<u8> {
    let mut fields = vec![1, 2]; // manufacturer, product name
    fields.extend([0, 0]); // version, serial number
    // The first three fields of a UUID are little-endian here (DSP0134, 7.2.1).
    fields.extend(uuid.to_bytes_le());
    fields.push(WAKE_UP_POWER_SWITCH);
    fields.extend([0, 0]); // SKU number, family
    fields
}

/// Structures one behind the other, each with a handle of its own.
#[derive(Default)]
struct Structures {
    bytes: Vec<u8>,
    handle: u16,
}

impl Structures {
    /// Appends a structure with its fields and strings.
    fn add(&mut self, kind: u8, fields: &[u8], strings: &[&str]) {
        let len = HEADER_BYTES.saturating_add(fields.len() as u8);
        self.bytes.extend([kind, len]);
        self.bytes.extend(self.handle.to_le_bytes());
        self.bytes.extend(fields);
        for string in strings {
            self.bytes.extend(string.bytes().filter(|byte| *byte != 0));
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.handle = self.handle.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type, fields and strings of each structure, read as the specification says.
    fn walk(image: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        assert_eq!(&image[..5], b"_SM3_");
        assert_eq!(image[6], 24, "length");
        let sum = image[..24]
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum");
        let len = u32::from_le_bytes(image[12..16].try_into().unwrap()) as usize;
        let address = u64::from_le_bytes(image[16..24].try_into().unwrap());
        assert_eq!(address % 16, 0);
        let at = (address - layout::SMBIOS) as usize;
        assert_eq!(image.len(), at + len, "the structures end with the image");
        let mut rest = &image[at..];
        let mut found = Vec::new();
        let mut handles = Vec::new();
        while !rest.is_empty() {
            let (kind, len) = (rest[0], rest[1] as usize);
            handles.push(u16::from_le_bytes([rest[2], rest[3]]));
            let fields = rest[4..len].to_vec();
            rest = &rest[len..];
            let end = rest.windows(2).position(|two| two == [0, 0]).unwrap();
            let strings = match end {
                0 => Vec::new(),
                _ => rest[..end]
                    .split(|byte| *byte == 0)
                    .map(|string| String::from_utf8(string.to_vec()).unwrap())
                    .collect(),
            };
            rest = &rest[end + 2..];
            found.push((kind, fields, strings));
        }
        handles.dedup();
        assert_eq!(handles.len(), found.len(), "each handle is used once");
        found
    }

    fn identity(oem_strings: &[String]) -> Identity<'_> {
        Identity {
            uuid: Uuid::from_u128(0x00112233_4455_6677_8899_aabbccddeeff),
            oem_strings,
        }
    }

    #[test]
    fn the_system_has_a_name_and_a_number() {
        let found = walk(&image(identity(&[]), layout::SMBIOS));
        let kinds: Vec<u8> = found.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [0, 1, 127], "no strings, no type 11");
        let (_, fields, strings) = &found[0];
        assert_eq!(fields.len() + 4, 0x1a, "type 0 of version 3.1 and later");
        assert_eq!(strings[0], "Bantam");
        assert_eq!(strings[1], env!("CARGO_PKG_VERSION"));
        let (_, fields, strings) = &found[1];
        assert_eq!(fields.len() + 4, 0x1b, "type 1 of version 2.4 and later");
        assert_eq!(strings[..], ["Bantam", "Bantam"]);
        let uuid = [
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff,
        ];
        assert_eq!(fields[4..20], uuid, "offset 8 of the structure");
    }

    #[test]
    fn a_scan_of_the_rom_area_finds_the_entry_point() {
        assert_eq!(layout::SMBIOS % 16, 0);
        assert!((0xf_0000..0x10_0000).contains(&layout::SMBIOS));
        assert!(layout::SMBIOS + ROOM as u64 <= layout::RESET_VECTOR);
    }

    proptest::proptest! {
        #[test]
        fn all_strings_come_back_in_order(strings in proptest::collection::vec("\\PC{1,40}", 0..600)) {
            let found = walk(&image(identity(&strings), layout::SMBIOS));
            let oem = found.iter().filter(|(kind, ..)| *kind == 11);
            let mut back = Vec::new();
            for (_, fields, strings) in oem {
                proptest::prop_assert_eq!(usize::from(fields[0]), strings.len());
                back.extend(strings.clone());
            }
            proptest::prop_assert_eq!(back, strings);
        }
    }
}
