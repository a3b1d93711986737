//! Bantam: a minimal KVM hypervisor.
//!
//! One process opens /dev/kvm, maps guest memory, loads a kernel and drives vCPU threads, while the
//! serial console and the queues of virtio devices are served by epoll event loops. The shortest program
//! of this kind is `examples/floor.rs`, 200 lines; read it first. Then take the rooms in this order:
//!
//! 1. [`cli`]: what a user types; [`config`]: what a machine is, every value checked once;
//! 2. [`machine`]: from a configuration to a running machine and to its exit, the only place where
//!    the parts meet. Start with [`machine::parts`], the list of all parts; then [`machine::plan`],
//!    [`machine::builder`], [`machine::vcpu`], [`machine::run`], [`machine::handle`];
//! 3. [`board`]: what a part, its place and its device are to the machine: ports, pages, interrupt
//!    lines, queues, and a life with pauses;
//! 4. [`devices`]: what sits on a port. The shortest is [`devices::pvpanic`];
//! 5. [`virtio`]: registers, rings and turns, which all virtio devices have in common; [`virtio::rng`], the
//!    shortest of them, then [`virtio::block`];
//! 6. [`memory`]: guest RAM; [`storage`]: where sectors live and how they move; [`disk_image`]: disk
//!    images as files;
//! 7. [`console`]: bytes between the serial port and a terminal, and raw mode that always ends;
//! 8. [`boot`]: what a kernel image is and how it is entered;
//! 9. [`arch`]: memory layout, registers, CPUID, ACPI, SMBIOS: what the guest takes for a PC.
//!
//! [`error`], [`limits`], [`outlet`], [`sync`], [`unnamed`] and [`sandbox`] may be used by all of them; the last is what
//! the program leaves behind before a guest runs.
//!
//! The house has floors, and a room uses only rooms on floors below its own, though not all of those:
//!
//! ```text
//!   cli
//!   machine
//!   console
//!   config
//!   virtio    boot    disk_image
//!   devices   storage
//!   board     memory
//!   arch
//! ```
//!
//! Only `machine` makes KVM calls
//! (`cli` asks for KVM's capabilities, `arch` knows its structures); a device takes guest memory, an interrupt
//! line and an image as values that a unit test can give it. docs/architecture.md has the whole picture,
//! the words of the field, and the steps by which a device is added.

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
pub mod outlet;
pub mod sandbox;
pub mod storage;
pub mod sync;
pub mod unnamed;
pub mod virtio;
