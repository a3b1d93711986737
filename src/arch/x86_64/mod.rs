//! The x86_64 PC, as far as a Linux guest needs one.
//!
//! - [`layout`]: who is where in guest physical memory, and on which interrupt;
//! - [`e820`]: the memory map that the guest is told;
//! - [`topology`]: sockets, cores, threads, and the APIC ids they imply;
//! - [`cpuid`]: what the CPUs say of themselves;
//! - [`registers`]: the state in which each boot protocol wants the first CPU;
//! - [`interrupts`]: the local APIC's pins;
//! - [`reset_vector`]: what is where a PC's firmware begins;
//! - [`acpi`]: the tables by which a stock kernel finds CPUs and devices;
//! - [`smbios`]: the tables that say which machine this is.

pub mod acpi;
pub mod cpuid;
mod cpuid_hidden;
pub mod e820;
pub mod interrupts;
pub mod layout;
pub mod registers;
pub mod reset_vector;
pub mod smbios;
pub mod topology;
