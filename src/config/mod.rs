//! What a machine is: [`VmConfig`], made from the command line and a TOML file, checked once.
//!
//! ```text
//!   argv ─────▶ Layer ─┐
//!                      ├─ Layer::over ─▶ VmConfig::resolve ─▶ VmConfig
//!   vm.toml ──▶ Layer ─┘
//! ```
//!
//! Both sources hold the same strings under the same names; [`values`] and [`disk`] give them meaning. After
//! [`VmConfig::resolve`] nothing about numbers and words can be wrong any more; whether files are
//! what they should be is the next step's question ([`Plan`](crate::machine::Plan)).

pub mod disk;
pub mod elsewhere;
pub mod error;
pub mod file;
mod keys;
pub mod values;

use std::path::PathBuf;
use std::time::Duration;

use crate::arch::x86_64::topology::Topology;
use crate::boot::{ProtocolChoice, Unpack};

pub use crate::memory::Backing as MemoryBacking;
pub use disk::Disk;
pub use error::ConfigError;
pub use values::Console;

/// Guest memory where nobody says how much.
const DEFAULT_MEMORY: u64 = 512 << 20;

/// One source of settings; what it does not say is `None` or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer {
    /// The kernel image.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Added to the command line.
    pub append: Vec<String>,
    /// Replaces the default command line.
    pub cmdline: Option<String>,
    /// An ISO to boot, instead of a kernel.
    pub iso: Option<PathBuf>,
    /// Disks, as [`disk::disk`] reads them.
    pub disks: Vec<String>,
    /// Whether what is written to disks is thrown away, for those that do not say.
    pub snapshot: Option<bool>,
    /// Disks that are only read, after the others.
    pub cdroms: Vec<PathBuf>,
    /// As [`values::topology`] reads it.
    pub cpus: Option<String>,
    /// As [`values::memory`] reads it.
    pub memory: Option<String>,
    /// What the memory is on the host.
    pub memory_backing: Option<MemoryBacking>,
    /// As [`values::console`] reads it.
    pub console: Option<String>,
    /// How the kernel is entered.
    pub protocol: Option<ProtocolChoice>,
    /// Who unpacks a bzImage.
    pub unpack: Option<Unpack>,
    /// Whether what the host unpacks is kept.
    pub cache: Option<bool>,
    /// Whether a reset starts the machine again.
    pub reboot: Option<bool>,
    /// As [`values::duration`] reads it.
    pub time_limit: Option<String>,
}

impl Layer {
    /// `self` where it says something, `below` elsewhere. `append` of both is kept, as the kernel
    /// takes the last of a parameter; a list of disks replaces the one below.
    pub fn over(self, below: Layer) -> Layer {
        Layer {
            kernel: self.kernel.or(below.kernel),
            initrd: self.initrd.or(below.initrd),
            append: below.append.into_iter().chain(self.append).collect(),
            cmdline: self.cmdline.or(below.cmdline),
            iso: self.iso.or(below.iso),
            disks: if self.disks.is_empty() {
                below.disks
            } else {
                self.disks
            },
            snapshot: self.snapshot.or(below.snapshot),
            cdroms: if self.cdroms.is_empty() {
                below.cdroms
            } else {
                self.cdroms
            },
            cpus: self.cpus.or(below.cpus),
            memory: self.memory.or(below.memory),
            memory_backing: self.memory_backing.or(below.memory_backing),
            console: self.console.or(below.console),
            protocol: self.protocol.or(below.protocol),
            unpack: self.unpack.or(below.unpack),
            cache: self.cache.or(below.cache),
            reboot: self.reboot.or(below.reboot),
            time_limit: self.time_limit.or(below.time_limit),
        }
    }
}

/// Where the kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootFrom {
    /// A kernel image.
    Kernel(PathBuf),
    /// The ISO of a live system or an installer, which is attached as well.
    Iso(PathBuf),
}

impl BootFrom {
    /// The file that the user named.
    pub fn path(&self) -> &PathBuf {
        match self {
            BootFrom::Kernel(path) | BootFrom::Iso(path) => path,
        }
    }
}

/// A machine, every value in range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// The kernel image, or the ISO that has one.
    pub boot: BootFrom,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Added to the command line.
    pub append: Vec<String>,
    /// Replaces the default command line.
    pub cmdline: Option<String>,
    /// vda, vdb, ...
    pub disks: Vec<Disk>,
    /// vCPUs.
    pub topology: Topology,
    /// RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// What the memory is on the host.
    pub memory_backing: MemoryBacking,
    /// Where the serial port goes.
    pub console: Console,
    /// How the kernel is entered.
    pub protocol: ProtocolChoice,
    /// Who unpacks a bzImage.
    pub unpack: Unpack,
    /// Whether what the host unpacks is kept.
    pub cache: bool,
    /// Whether a reset starts the machine again.
    pub reboot: bool,
    /// When the machine is ended.
    pub time_limit: Option<Duration>,
}

impl VmConfig {
    /// Reads all values of `layer`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn resolve(layer: Layer) -> Result<Self, ConfigError> {
        let mut cdroms = layer.cdroms;
        let named = [
            ("kernel", &layer.kernel),
            ("--initrd", &layer.initrd),
            ("--iso", &layer.iso),
        ];
        for (option, path) in named {
            path.iter()
                .try_for_each(|path| elsewhere::check(option, path))?;
        }
        cdroms
            .iter()
            .try_for_each(|path| elsewhere::check("--cdrom", path))?;
        let boot = match (layer.kernel, layer.iso) {
            (Some(_), Some(iso)) => return Err(ConfigError::KernelAndIso { iso }),
            (Some(kernel), None) => BootFrom::Kernel(kernel),
            (None, Some(iso)) => {
                if !cdroms.contains(&iso) {
                    cdroms.push(iso.clone());
                }
                BootFrom::Iso(iso)
            }
            (None, None) => {
                return Err(ConfigError::NoKernel {
                    cdrom: cdroms.into_iter().next(),
                });
            }
        };
        let memory = match &layer.memory {
            Some(text) => values::memory(text)?,
            None => DEFAULT_MEMORY,
        };
        let memory_backing = layer.memory_backing.unwrap_or_default();
        values::check_backing(memory, memory_backing)?;
        let topology = match &layer.cpus {
            Some(text) => values::topology(text)?,
            None => Topology::flat(1),
        };
        let snapshot = layer.snapshot.unwrap_or(false);
        let disks = disk::disks(&layer.disks, &cdroms, topology.cpus(), snapshot)?;
        for disk in &disks {
            elsewhere::check("--disk", &disk.path)?;
        }
        Ok(VmConfig {
            boot,
            initrd: layer.initrd,
            append: layer.append,
            cmdline: layer.cmdline,
            disks,
            topology,
            memory,
            memory_backing,
            console: match &layer.console {
                Some(text) => values::console(text)?,
                None => Console::Stdio,
            },
            protocol: layer.protocol.unwrap_or_default(),
            unpack: layer.unpack.unwrap_or_default(),
            cache: layer.cache.unwrap_or(true),
            reboot: layer.reboot.unwrap_or(false),
            time_limit: layer
                .time_limit
                .as_deref()
                .map(values::duration)
                .transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file() {
        let file = Layer {
            kernel: Some("a".into()),
            memory: Some("1G".into()),
            append: vec!["quiet".into()],
            disks: vec!["x".into()],
            ..Layer::default()
        };
        let flags = Layer {
            memory: Some("2G".into()),
            append: vec!["panic=5".into()],
            ..Layer::default()
        };
        let config = VmConfig::resolve(flags.over(file)).unwrap();
        assert_eq!(config.memory, 2 << 30);
        assert_eq!(config.append, ["quiet", "panic=5"]);
        assert_eq!(config.disks.len(), 1);
    }

    #[test]
    fn a_kernel_is_needed() {
        assert!(matches!(
            VmConfig::resolve(Layer::default()),
            Err(ConfigError::NoKernel { .. })
        ));
    }
}
