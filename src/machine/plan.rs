//! Files opened and checked, addresses decided: all that can be known without KVM.
//!
//! Mistakes end here, before anything has been started. `bantam run --dry-run` prints the result.

use super::disks::{self, DiskError};
use super::identity::{self, IdentityError};
use super::{hvc, parts};
use crate::board::{Board, BoardFull};
use crate::boot::cmdline::{self, CmdlineError};
use crate::boot::initrd::InitrdError;
use crate::boot::{
    Cache, Initrd, Iso, IsoError, Kernel, KernelError, Placement, ProtocolChoice, Unpack,
};
use crate::config::{BootFrom, VmConfig};
use crate::error::{ExitStatus, Help};

/// A machine that could be started.
#[derive(Debug)]
pub struct Plan {
    /// What was asked for.
    pub config: VmConfig,
    /// The kernel image.
    pub kernel: Kernel,
    /// Where it goes.
    pub placement: Placement,
    /// The initrd, if there is one.
    pub initrd: Option<Initrd>,
    /// The final command line.
    pub cmdline: String,
    /// Whether there is a virtio console.
    pub hvc: bool,
    /// All parts, each in its place.
    pub board: Board,
    /// The SMBIOS tables, with the machine's number and its credentials.
    pub smbios: Vec<u8>,
}

/// Why a machine cannot be started as configured.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The kernel image.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The ISO.
    #[error(transparent)]
    Iso(#[from] IsoError),
    /// The initrd.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// A credential, or the machine's number.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There are more parts than places.
    #[error(transparent)]
    Full(#[from] BoardFull),
}

impl PlanError {
    /// The exit code: 2 where the words are wrong, 3 where the files are.
    pub fn status(&self) -> ExitStatus {
        match self {
            PlanError::Cmdline(_)
            | PlanError::Disk(DiskError::Same { .. })
            | PlanError::Full(_)
            | PlanError::Identity(IdentityError::NoRoom { .. }) => ExitStatus::Usage,
            PlanError::Kernel(_)
            | PlanError::Iso(_)
            | PlanError::Initrd(_)
            | PlanError::Identity(_)
            | PlanError::Disk(_) => ExitStatus::Start,
        }
    }
}

impl Help for PlanError {
    fn help(&self) -> String {
        match self {
            PlanError::Kernel(error) => error.help(),
            PlanError::Iso(error) => error.help(),
            PlanError::Initrd(error) => error.help(),
            PlanError::Cmdline(error) => error.help(),
            PlanError::Identity(error) => error.help(),
            PlanError::Disk(error) => error.help(),
            PlanError::Full(error) => error.help(),
        }
    }
}

impl Plan {
    /// Opens and checks everything that `config` names.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(config: VmConfig) -> Result<Self, PlanError> {
        let (mut kernel, inside) = match &config.boot {
            BootFrom::Kernel(path) => (Kernel::open(path)?, None),
            BootFrom::Iso(path) => {
                let iso = Iso::open(path)?;
                (
                    Kernel::of_source(iso.kernel)?,
                    Some((iso.initrd, iso.append)),
                )
            }
        };
        // Before anything is unpacked: is the image good, and does it fit?
        let mut placement = kernel.place(config.protocol, config.memory)?;
        // While this process has one thread and little memory: qcow2 images are read by processes that it forks.
        let disks = disks::open_all(&config.disks)?;
        if config.unpack == Unpack::Host && config.protocol != ProtocolChoice::Pvh {
            let cache = config.cache.then(Cache::of_user).flatten();
            kernel = kernel.unpacked(cache.as_ref());
            // What the image's setup header allows holds for the kernel inside it.
            let outer = placement;
            placement = kernel.place(config.protocol, config.memory)?;
            placement.cmdline_max = placement.cmdline_max.min(outer.cmdline_max);
            placement.initrd_limit = placement.initrd_limit.min(outer.initrd_limit);
        }
        let mut append = config.append.clone();
        let mut initrd = None;
        if let Some((source, words)) = inside {
            append.insert(0, words);
            initrd = Some(Initrd::place(source, &placement, config.memory)?);
        }
        if let Some(path) = &config.initrd {
            initrd = Some(Initrd::open(path, &placement, config.memory)?);
        }
        let root = root_argument(&config);
        let mut parts = parts::list(&config, disks);
        let around = hvc::Around {
            kernel: &kernel,
            placement: &placement,
            full: !Board::has_room(&parts),
        };
        let (cmdline, hvc) = hvc::decide(&config, &append, root, &around);
        if hvc {
            parts.push(parts::console());
        }
        cmdline::check(&cmdline, placement.cmdline_max)?;
        let smbios = identity::smbios(config.uuid, &config.credentials)?;
        let board = Board::of(parts)?;
        Ok(Plan {
            config,
            kernel,
            placement,
            initrd,
            cmdline,
            hvc,
            board,
            smbios,
        })
    }

    /// Bytes of kernel and initrd.
    pub fn bytes_to_load(&self) -> u64 {
        let kernel = self.placement.segments.iter().map(|s| s.file_len);
        let initrd = self.initrd.iter().map(Initrd::len);
        kernel.chain(initrd).fold(0, u64::saturating_add)
    }
}

/// With a disk and no initrd that would look for it, the first disk is the root.
fn root_argument(config: &VmConfig) -> Option<&'static str> {
    if matches!(config.boot, BootFrom::Iso(_)) {
        return None;
    }
    match (config.disks.first(), &config.initrd) {
        (Some(disk), None) if disk.access.read_only => Some("root=/dev/vda ro"),
        (Some(_), None) => Some("root=/dev/vda rw"),
        _ => None,
    }
}
