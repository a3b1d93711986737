//! What a machine is: [`VmConfig`], made from the command line and a TOML file, checked once.
//!
//! ```text
//!   argv ─────▶ Layer ─┐
//!                      ├─ Layer::over ─▶ VmConfig::resolve ─▶ VmConfig
//!   vm.toml ──▶ Layer ─┘
//! ```
//!
//! Both sources hold the same strings under the same names, which are in one table ([`options`]);
//! [`values`] and [`disk`] give them meaning. After [`VmConfig::resolve`] nothing about numbers and words can be wrong any more; whether files are
//! what they should be is the next step's question ([`Plan`](crate::machine::Plan)).

pub mod console;
pub mod credential;
pub mod disk;
pub mod elsewhere;
pub mod error;
pub mod file;
mod keys;
pub mod layer;
pub mod options;
pub mod values;

use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use crate::arch::x86_64::topology::Topology;
use crate::boot::{ProtocolChoice, Unpack};

use crate::memory::Backing;
use crate::sandbox;
pub use console::{Console, Port};
pub use credential::Credential;
pub use disk::Disk;
pub use error::ConfigError;
pub use layer::Layer;

/// Guest memory where nobody says how much.
const DEFAULT_MEMORY: u64 = 512 << 20;

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
    /// Whether the guest may be a hypervisor itself.
    pub nested: bool,
    /// RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// What the memory is on the host.
    pub memory_backing: Backing,
    /// Where the guest's console goes.
    pub console: Console,
    /// How the kernel is entered.
    pub protocol: ProtocolChoice,
    /// Who unpacks a bzImage.
    pub unpack: Unpack,
    /// Whether what the host unpacks is kept.
    pub cache: bool,
    /// Whether a reset starts the machine again.
    pub reboot: bool,
    /// Whether there is a source of random bytes.
    pub rng: bool,
    /// Whether memory that the guest has freed goes back to the host.
    pub reclaim: bool,
    /// Whether core dumps of this program have the guest's memory in them.
    pub core: bool,
    /// When the machine is ended.
    pub time_limit: Option<Duration>,
    /// The machine's number; without one, each start has another.
    pub uuid: Option<Uuid>,
    /// What the process gives up once the machine is set up.
    pub sandbox: sandbox::Settings,
    /// What systemd in the guest is given.
    pub credentials: Vec<Credential>,
}

impl VmConfig {
    /// Reads all values of `layer`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn resolve(layer: &Layer) -> Result<Self, ConfigError> {
        let kernel = layer.path("kernel");
        let initrd = layer.path("initrd");
        let iso = layer.path("iso");
        let mut cdroms = layer.paths("cdrom");
        let named = [("kernel", &kernel), ("--initrd", &initrd), ("--iso", &iso)];
        for (option, path) in named {
            path.iter()
                .try_for_each(|path| elsewhere::check(option, path))?;
        }
        cdroms
            .iter()
            .try_for_each(|path| elsewhere::check("--cdrom", path))?;
        let boot = match (kernel, iso) {
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
        let memory = match layer.text("memory") {
            Some(text) => values::memory(&text)?,
            None => DEFAULT_MEMORY,
        };
        let memory_backing = layer.choice("memory-backing").unwrap_or_default();
        values::check_backing(memory, memory_backing)?;
        let reclaim = layer.switch("reclaim").unwrap_or(false);
        values::check_reclaim(reclaim, memory_backing)?;
        let topology = match layer.text("cpus") {
            Some(text) => values::topology(&text)?,
            None => Topology::flat(1),
        };
        let snapshot = layer.switch("snapshot").unwrap_or(false);
        let disks = disk::disks(&layer.texts("disk"), &cdroms, topology.cpus(), snapshot)?;
        for disk in &disks {
            elsewhere::check("--disk", &disk.path)?;
        }
        Ok(VmConfig {
            boot,
            initrd,
            append: layer.texts("append"),
            cmdline: layer.text("cmdline"),
            disks,
            topology,
            nested: layer.switch("nested").unwrap_or(false),
            memory,
            memory_backing,
            console: match layer.text("console") {
                Some(text) => console::console(&text)?,
                None => Console::Stdio(Port::Auto),
            },
            protocol: layer.choice("protocol").unwrap_or_default(),
            unpack: layer.choice("unpack").unwrap_or_default(),
            cache: layer.switch("cache").unwrap_or(true),
            reboot: layer.switch("reboot").unwrap_or(false),
            rng: layer.switch("rng").unwrap_or(false),
            reclaim,
            core: layer.switch("core").unwrap_or(false),
            time_limit: match layer.text("time-limit") {
                Some(text) => Some(values::duration(&text)?),
                None => None,
            },
            uuid: match layer.text("uuid") {
                Some(text) => Some(values::uuid(&text)?),
                None => None,
            },
            sandbox: sandbox::Settings {
                mode: layer.choice("sandbox").unwrap_or_default(),
                user: layer.text("user"),
                chroot: layer.path("chroot"),
            },
            credentials: credential::credentials(
                &layer.texts("credential"),
                &layer.texts("credential-file"),
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::layer::Said;
    use super::options::{Kind, OPTIONS};
    use super::*;

    #[test]
    fn a_kernel_is_needed() {
        assert!(matches!(
            VmConfig::resolve(&Layer::default()),
            Err(ConfigError::NoKernel { .. })
        ));
    }

    /// An option that [`VmConfig::resolve`] forgets to read would be accepted and do nothing.
    #[test]
    fn every_option_changes_the_machine_or_is_refused() {
        let mut plain = Layer::default();
        plain.set("kernel", Said::Texts(vec!["vmlinux".into()]));
        plain.set("disk", Said::Texts(vec!["disk.img".into()]));
        let machine = VmConfig::resolve(&plain).unwrap();
        for option in OPTIONS {
            let values: Vec<Said> = match option.kind {
                Kind::Switch { .. } => vec![Said::Switch(false), Said::Switch(true)],
                Kind::Choice(choices) => choices()
                    .iter()
                    .map(|choice| Said::Texts(vec![choice.get_name().into()]))
                    .collect(),
                _ => vec![Said::Texts(vec!["3".into()])],
            };
            let has_effect = values.into_iter().any(|value| {
                let mut layer = plain.clone();
                layer.set(option.name, value);
                VmConfig::resolve(&layer).ok().as_ref() != Some(&machine)
            });
            assert!(has_effect, "{}", option.name);
        }
    }
}
