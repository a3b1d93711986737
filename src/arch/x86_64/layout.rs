//! Who is where in guest physical memory, on which port, on which interrupt.
//!
//! ```text
//!   0x0000_0000  ┌────────────────────────────┐
//!                │ 0x500 GDT  0x530 IDT       │
//!                │ 0x6000 PVH start info      │
//!                │ 0x7000 zero page           │  RAM the guest may reuse
//!                │ 0x9000 boot page tables    │  once it has read them
//!                │ 0x20000 command line       │
//!   0x0009_fc00  ├────────────────────────────┤
//!                │ reserved                   │
//!   0x000e_0000  │ ACPI tables (RSDP first)   │
//!   0x000f_0000  │ SMBIOS entry point, tables │
//!   0x000f_fff0  │ reset vector               │
//!   0x0010_0000  ├────────────────────────────┤
//!                │ RAM: kernel ...            │
//!                │             ... initrd     │
//!   0xc000_0000  ├────────────────────────────┤  at the latest
//!                │ hole: no RAM               │
//!   0xd000_0000  │ virtio-mmio, 4 KiB each    │
//!   0xfec0_0000  │ I/O APIC                   │
//!   0xfee0_0000  │ local APIC                 │
//!   0xfffb_c000  │ KVM: identity map, TSS     │
//! 0x1_0000_0000  ├────────────────────────────┤
//!                │ the rest of RAM            │
//!                └────────────────────────────┘
//! ```

/// GDT for the boot protocols.
pub const GDT: u64 = 0x500;
/// An empty IDT.
pub const IDT: u64 = 0x530;
/// BIOS data area: the word where an operating system says why it resets the machine.
pub const RESET_FLAG: u64 = 0x472;
/// PVH `hvm_start_info` and what it points to.
pub const PVH_START_INFO: u64 = 0x6000;
/// `boot_params`, the zero page of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables that map the first 4 GiB one to one: PML4, PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// First address past the page tables.
pub const PAGE_TABLES_END: u64 = PAGE_TABLES + 6 * 0x1000;
/// The kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line, with its final NUL: COMMAND_LINE_SIZE of Linux on x86.
pub const COMMAND_LINE_MAX: usize = 2048;
/// Where conventional RAM ends; a PC has its extended BIOS data area above.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The RSDP, where a guest that scans for it looks, and the tables behind it.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// The SMBIOS entry point, where a guest that scans for it looks first, and the tables behind it.
/// The ACPI tables end here at the latest.
pub const SMBIOS: u64 = 0xf_0000;
/// The code at the reset vector and what may follow it: where a PC's firmware begins, F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Where RAM goes on after the ROM area.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Where RAM below 4 GiB must end.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// Where RAM goes on after the hole.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;
/// Register page of the first virtio-mmio device.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// I/O APIC, where KVM puts it.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APICs, where KVM puts them.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page for KVM_SET_IDENTITY_MAP_ADDR (VMX without unrestricted guest).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for KVM_SET_TSS_ADDR (VMX).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// COM1: first of the 8 ports of a 16550A.
pub const COM1_PORT: u16 = 0x3f8;
/// Ports of a 16550A.
pub const COM1_PORTS: u16 = 8;
/// Keyboard controller: data at 0x60, status and command at 0x64.
pub const I8042_PORT: u16 = 0x60;
/// Ports from the data port to the command port.
pub const I8042_PORTS: u16 = 5;
/// pvpanic.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI sleep control register; the sleep status and the reset register follow.
pub const POWER_PORT: u16 = 0x600;
/// The three ACPI registers.
pub const POWER_PORTS: u16 = 3;
/// ACPI sleep control register (8 bits).
pub const SLEEP_CONTROL_PORT: u16 = POWER_PORT;
/// ACPI sleep status register (8 bits).
pub const SLEEP_STATUS_PORT: u16 = POWER_PORT + 1;
/// ACPI reset register (8 bits).
pub const RESET_PORT: u16 = POWER_PORT + 2;
/// What the FADT tells the guest to write to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// What the code at [`RESET_VECTOR`] writes there.
pub const RESET_VECTOR_VALUE: u8 = 2;
/// The sleep type that `\_S5` names in the DSDT.
pub const S5_SLEEP_TYPE: u8 = 5;
/// PCI's configuration ports; the reset control register is the second.
pub const PCI_PORT: u16 = 0xcf8;
/// Ports of PCI's configuration mechanism #1.
pub const PCI_PORTS: u16 = 8;

/// COM1's line.
pub const COM1_GSI: u32 = 4;
/// The line of the ACPI event device: the power button.
pub const POWER_BUTTON_GSI: u32 = 5;
/// Lines for virtio devices. The in-kernel I/O APIC has 24 pins; below 16 those that a PC gives
/// to the timer, COM1, the clock and the like are left alone.
pub const VIRTIO_GSIS: [u32; 16] = [16, 17, 18, 19, 20, 21, 22, 23, 6, 7, 9, 10, 11, 12, 14, 15];

/// The most vCPUs: APIC ids up to 254 fit the xAPIC tables; 255 is the broadcast.
pub const MAX_CPUS: u32 = 254;
