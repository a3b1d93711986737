//! The reset vector: what a PC's firmware has at F000:FFF0.
//!
//! There is no firmware, but its entry is one of the ways by which an operating system resets a PC:
//! it goes back to real mode and jumps there. Linux does so with `reboot=b`, and without being asked
//! wherever it has been built for EFI and finds a hardware-reduced ACPI platform: it then takes
//! EFI's runtime service for the proper way, and where there is none falls back on the BIOS
//! (arch/x86/kernel/reboot.c: `efi_reboot_required`, `BOOT_BIOS`). Most distributions' kernels are
//! built so. With nothing at that address the guest would run through zeros for ever.
//!
//! The code is written for a CPU in real mode (Intel SDM 3A, 11.1.4 "First Instruction Executed"
//! is the same address seen from the end of the 4 GiB).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

/// Writes [`layout::RESET_VECTOR_VALUE`] to [`layout::RESET_PORT`], and waits for what comes of it.
const CODE: [u8; 9] = {
    let port = layout::RESET_PORT.to_le_bytes();
    [
        0xba, // mov dx, RESET_PORT
        port[0],
        port[1],
        0xb0, // mov al, RESET_VECTOR_VALUE
        layout::RESET_VECTOR_VALUE,
        0xee, // out dx, al
        0xf4, // hlt
        0xeb, // jmp to the hlt
        0xfd,
    ]
};

/// Writes the code to [`layout::RESET_VECTOR`].
///
/// # Errors
/// When there is no RAM.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_slice(&CODE, GuestAddress(layout::RESET_VECTOR))
}
