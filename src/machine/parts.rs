//! The list of parts: everything on a machine's buses, in the order in which the board gives out places.
//!
//! Adding a device means a folder or file of its own, and one line here (docs/architecture.md, "To add a
//! device"). The board gives out register pages and interrupt lines in this order, so disks come first: the first
//! disk is at the same address whatever else a machine has.

use crate::board::Part;
use crate::config::VmConfig;
use crate::devices::i8042::I8042Part;
use crate::devices::pci::PciPart;
use crate::devices::power::PowerPart;
use crate::devices::pvpanic::PvPanicPart;
use crate::devices::serial::Com1Part;
use crate::virtio::OnMmio;
use crate::virtio::balloon::BalloonModel;
use crate::virtio::block::BlockModel;
use crate::virtio::console::ConsoleModel;
use crate::virtio::rng::RngModel;

/// All parts of the machine that `config` describes, with its disks, but for the virtio console.
pub fn list(config: &VmConfig, disks: Vec<BlockModel>) -> Vec<Box<dyn Part>> {
    let mut parts: Vec<Box<dyn Part>> = vec![
        Box::new(I8042Part),
        Box::new(Com1Part),
        Box::new(PvPanicPart),
        Box::new(PowerPart),
        Box::new(PciPart),
    ];
    parts.extend(disks.into_iter().map(|disk| Box::new(OnMmio(disk)) as _));
    if config.rng {
        parts.push(Box::new(OnMmio(RngModel)));
    }
    if config.reclaim {
        parts.push(Box::new(OnMmio(BalloonModel {
            backing: config.memory_backing,
        })));
    }
    parts
}

/// The virtio console. It comes after the serial port: of the character devices that are in use, the user
/// sees the last one.
pub fn console() -> Box<dyn Part> {
    Box::new(OnMmio(ConsoleModel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::topology::Topology;
    use crate::arch::x86_64::{acpi, layout};
    use crate::board::Board;
    use crate::config::Layer;
    use crate::config::layer::Said;
    use crate::storage::{Access, open};
    use std::time::Duration;

    fn disks(count: usize) -> Vec<BlockModel> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512).unwrap();
        let access = Access {
            read_only: true,
            ..Access::default()
        };
        let image = open::open(file.path(), access).unwrap().image;
        let disk = |_| BlockModel {
            flushes: Default::default(),
            image: image.clone(),
            path: "x".into(),
            lock: None,
            read_only: true,
            snapshot: false,
            discard: false,
            serial: String::new(),
            queues: 1,
            io: crate::storage::IoMode::Auto,
            limit_requests: None,
            limit_bytes: None,
            io_thread: false,
            poll: Duration::ZERO,
        };
        (0..count).map(disk).collect()
    }

    #[test]
    fn the_largest_machine_fits_below_smbios() {
        let max = layout::VIRTIO_GSIS.len();
        let mut layer = Layer::default();
        layer.set("kernel", Said::Texts(vec!["vmlinux".into()]));
        let config = VmConfig::resolve(&layer).unwrap();
        let board = Board::of(list(&config, disks(max))).unwrap();
        let devices = board.aml();
        assert_eq!(devices.windows(8).filter(|w| w == b"LNRO0005").count(), max);
        let image = acpi::image(&acpi::Platform {
            topology: Topology::flat(layout::MAX_CPUS),
            devices: &devices,
        });
        assert!(image.len() as u64 <= layout::SMBIOS - layout::ACPI_TABLES);
    }
}
