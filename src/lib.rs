//! Bantam: a minimal KVM hypervisor.
//!
//! One process opens /dev/kvm, maps guest memory, loads a kernel and drives vCPU threads, while the
//! serial console and virtio-blk disks are served by an epoll event loop. To read it, take the rooms
//! in this order:
//!
//! 1. [`cli`]: what a user types; [`config`]: what a machine is, every value checked once;
//! 2. [`machine`]: from a configuration to a running machine and to its exit, the only place where
//!    the parts meet. Start with [`machine::plan`], [`machine::builder`], [`machine::vcpu`];
//! 3. [`arch`]: memory layout, registers, CPUID, ACPI, SMBIOS: what the guest takes for a PC;
//! 4. [`boot`]: what a kernel image is and how it is entered;
//! 5. [`devices`]: what sits on a port; [`virtio`]: the MMIO transport and the block device;
//! 6. [`storage`]: where sectors live; [`disk_image`]: disk images as files; [`terminal`]: raw mode that always ends.
//!
//! [`error`], [`limits`] and [`unnamed`] are used by all of them.
//!
//! Arrows point one way: `cli -> { machine, disk_image } -> { boot, devices, virtio, storage } -> arch`. Only
//! `machine` and `arch` know KVM; a device takes guest memory and an interrupt line, as types that
//! a unit test can give it.

// What a guest, a file or a user can choose must never bring the VMM down, nor must a reader that has
// gone away, at which `println` panics. This is denied here and not in Cargo.toml, whose lints are for
// tests and benches too: those end by a panic when something is wrong.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr
)]

pub mod arch;
pub mod board;
pub mod boot;
pub mod cli;
pub mod config;
pub mod console;
pub mod devices;
pub mod disk_image;
pub mod error;
pub mod limits;
pub mod machine;
pub mod memory;
pub mod storage;
pub mod sync;
pub mod unnamed;
pub mod virtio;
