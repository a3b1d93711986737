//! What a kernel image is, what it needs, and what will make it hang.

use std::fmt::Write;

use super::bzimage::{BzImage, Compression};
use super::elf::ElfImage;
use super::kconfig::{Kconfig, find};
use super::kernel::{Kernel, KernelFormat};
use super::payload::{self, UnpackError};
use super::placement::ProtocolChoice;
use super::setup;
use crate::arch::x86_64::layout;
use crate::error::escaped;

const BANNER: &[u8] = b"Linux version ";

/// What was found out.
#[derive(Debug)]
pub struct Report {
    /// Name and value, in the order to be shown.
    pub facts: Vec<(&'static str, String)>,
    /// What will not work, and why.
    pub warnings: Vec<String>,
}

/// Looks at `kernel` as closely as its compression allows.
pub fn inspect(kernel: &Kernel) -> Report {
    let mut report = Report {
        facts: Vec::new(),
        warnings: Vec::new(),
    };
    let vmlinux = match &kernel.format {
        KernelFormat::Elf(elf) => {
            describe_elf(&mut report, elf);
            if kernel.source.len() > payload::MAX_UNPACKED {
                let limit = payload::MAX_UNPACKED >> 20;
                let warning = format!("only the first {limit} MiB of the file were looked at");
                report.warnings.push(warning);
            }
            let limit = payload::MAX_UNPACKED as usize;
            Some(kernel.source.read_up_to(0, limit))
        }
        KernelFormat::BzImage(image) => {
            describe_bzimage(&mut report, image);
            match payload::unpack(&kernel.source, image) {
                Ok(vmlinux) => Some(vmlinux),
                // Nothing is wrong with memtest86+, which is no kernel, nor with an old kernel.
                Err(UnpackError::Absent) => None,
                Err(error) => {
                    report.warnings.push(error.to_string());
                    None
                }
            }
        }
    };
    if let KernelFormat::Elf(_) = &kernel.format {
        let version = vmlinux.as_deref().and_then(banner);
        report.fact(
            "version",
            version.unwrap_or_else(|| "not a Linux kernel".into()),
        );
    }
    describe_needs(&mut report, kernel);
    let is_linux = match &kernel.format {
        KernelFormat::Elf(elf) => elf.is_linux || vmlinux.as_deref().and_then(banner).is_some(),
        KernelFormat::BzImage(image) => image.compression != Compression::Absent,
    };
    if is_linux {
        let embedded = vmlinux.as_deref().and_then(Kconfig::embedded);
        let found = embedded
            .map(|config| ("inside the image".to_owned(), config))
            .or_else(|| {
                let (path, config) = Kconfig::beside(kernel.source.path())?;
                (!config.is_empty()).then(|| (path.display().to_string(), config))
            });
        match found {
            Some((place, config)) => {
                report.fact("config", format!("{} options, {place}", config.len()));
                report.warnings.extend(judge(&config));
            }
            None => report.fact(
                "config",
                "unknown: none inside the image (CONFIG_IKCONFIG) or beside it".into(),
            ),
        }
    }
    report
}

impl Report {
    fn fact(&mut self, name: &'static str, value: String) {
        self.facts.push((name, value));
    }

    /// The report as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.facts {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{name:<13}{}", escaped(value));
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {}", escaped(warning));
        }
        text
    }
}

fn describe_elf(report: &mut Report, elf: &ElfImage) {
    report.fact("format", "ELF, uncompressed".into());
    report.fact("entry", format!("{:#x} (64-bit)", elf.entry));
    report.fact(
        "pvh",
        match elf.pvh_entry {
            Some(entry) => format!("entry {entry:#x} (32-bit)"),
            None => "no note: cannot be entered by PVH".into(),
        },
    );
    for segment in &elf.segments {
        report.fact(
            "segment",
            format!(
                "{:#x}, {} KiB in memory, {} KiB in the file",
                segment.address,
                segment.memory_len >> 10,
                segment.file_len >> 10
            ),
        );
    }
}

fn describe_bzimage(report: &mut Report, image: &BzImage) {
    let setup = &image.setup;
    let protocol = setup::version_name(setup.header.version);
    report.fact("format", format!("bzImage, boot protocol {protocol}"));
    if image.compression != Compression::Absent {
        report.fact("compression", image.compression.name().into());
    }
    report.fact(
        "version",
        image.version.clone().unwrap_or_else(|| "unknown".into()),
    );
    let width = if image.has_64_bit_entry() { 64 } else { 32 };
    report.fact("entry", format!("{width}-bit"));
    report.fact(
        "loads at",
        match setup.pref_address {
            // A field of a packed struct is copied before it is formatted.
            Some(address) => {
                format!("{address:#x}, {} KiB", { setup.header.init_size } >> 10)
            }
            None => format!("{:#x}", layout::HIGH_RAM_START),
        },
    );
    report.fact("initrd below", format!("{:#x}", setup.initrd_max));
    report.fact(
        "command line",
        format!("at most {} bytes", setup.cmdline_max),
    );
}

fn describe_needs(report: &mut Report, kernel: &Kernel) {
    match kernel.place(ProtocolChoice::Auto, layout::MMIO_HOLE_START) {
        Ok(placement) => {
            report.fact("boots by", placement.protocol.name().into());
            report.fact(
                "needs",
                format!("at least {} MiB of memory", placement.end.div_ceil(1 << 20)),
            );
        }
        Err(error) => report.warnings.push(error.to_string()),
    }
}

/// "Linux version 6.1.0 ..." up to the end of the line.
pub(super) fn banner(vmlinux: &[u8]) -> Option<String> {
    let rest = vmlinux.get(find(vmlinux, BANNER)?.checked_add(BANNER.len())?..)?;
    let end = rest.iter().take(512).position(|b| b"\n\0".contains(b))?;
    let text = std::str::from_utf8(rest.get(..end)?).ok()?;
    // The format string of the banner is in the image as well.
    (!text.contains('%') && !text.contains(char::is_control)).then(|| text.to_owned())
}

/// What of `config` will not work in a Bantam machine.
fn judge(config: &Kconfig) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |text: &str| warnings.push(text.to_owned());
    let has = |name: &str| config.built_in(name);
    if !has("64BIT") && !has("X86_64") {
        warn("CONFIG_64BIT is not set: a 32-bit kernel");
    }
    if !has("SERIAL_8250_CONSOLE") {
        warn("CONFIG_SERIAL_8250_CONSOLE is not built in: nothing will be seen on the console");
    }
    for (name, what) in [
        ("VIRTIO_MMIO", "disks are found"),
        ("VIRTIO_BLK", "disks can be used"),
    ] {
        match config.get(name) {
            Some("y") => {}
            Some("m") => warn(&format!(
                "CONFIG_{name} is a module: {what} only with an initrd that loads it"
            )),
            _ => warn(&format!("CONFIG_{name} is not set: no {what}")),
        }
    }
    if !has("ACPI") {
        warn(
            "CONFIG_ACPI is not set: one CPU only, disks only by virtio_mmio.device= (see --dry-run), no power off",
        );
    } else if !has("PCI") {
        warn("CONFIG_PCI is not set: ACPI fails on hardware-reduced tables, so no disks are found");
    }
    if !has("BLK_DEV_INITRD") {
        warn("CONFIG_BLK_DEV_INITRD is not set: an initrd is ignored");
    }
    if !has("KVM_GUEST") {
        warn(
            "CONFIG_KVM_GUEST is not set: clocks are calibrated by loops at boot, which takes time",
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_serial_console_is_warned_about() {
        let config = Kconfig::parse(
            "CONFIG_64BIT=y\nCONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=y\nCONFIG_ACPI=y\nCONFIG_PCI=y\nCONFIG_BLK_DEV_INITRD=y\nCONFIG_KVM_GUEST=y\nCONFIG_PVPANIC=y\n",
        );
        let warnings = judge(&config);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("SERIAL_8250_CONSOLE"));
        assert!(warnings[1].contains("VIRTIO_MMIO is a module"));
    }

    #[test]
    fn the_banner_and_not_its_format_is_the_version() {
        assert_eq!(
            banner(b"xxLinux version 6.1 #1\nyy").as_deref(),
            Some("6.1 #1")
        );
        assert_eq!(banner(b"Linux version %s (%s)\n"), None);
    }
}
