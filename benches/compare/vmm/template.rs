//! What a line of the table of VMMs says.

/// How one kind of VMM is told what to run.
#[derive(Debug)]
pub struct Template {
    /// The name in results and on the command line of the harness.
    pub name: &'static str,
    /// What it is looked for as on the PATH, without `--vmm NAME=PATH`; empty: always given.
    pub program: &'static str,
    /// Takes part only with `--vmm NAME` or `--vmm NAME=PATH`.
    pub asked_only: bool,
    /// Models of the processor, the one to be preferred first; empty: it has no such choice.
    pub cpus: &'static [&'static str],
    pub version: &'static [&'static str],
    pub base: &'static [&'static str],
    pub pvh: &'static [&'static str],
    pub initrd: &'static [&'static str],
    /// What is added for each disk, by kind; a VMM has the kinds that are named here.
    pub disk: &'static [(DiskKind, &'static [&'static str])],
    /// A configuration file: (its name in `{folder}`, text, per initrd, per disk).
    pub file: Option<File>,
    /// Added to the kernel command line, so that the machine's devices are found.
    pub cmdline: &'static str,
    /// Where the virtio-mmio register pages are: address, distance, number of places to look at.
    pub virtio_mmio: Option<(u64, u64, u32)>,
    /// A device register outside of the kernel's own devices, for the cost of an MMIO exit.
    pub mmio_probe: u64,
    /// No more disks than this.
    pub disks: usize,
    /// What of a full machine it lacks.
    pub lacks: &'static [Lacks],
}

/// A configuration file of a VMM, as a template.
#[derive(Debug)]
pub struct File {
    pub name: &'static str,
    pub text: &'static str,
    pub initrd: &'static str,
    pub disk: &'static str,
}

/// What a VMM cannot do.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Lacks {
    /// More than one vCPU.
    Smp,
    /// Kernels that are ELF files.
    Elf,
    /// Kernels that are not.
    BzImage,
}

/// What the disks of a machine are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// Raw images.
    Cached,
    /// Raw images, past the host's page cache.
    Direct,
    /// The same of a block device that is RAM: no disk behind it that could be the limit.
    Ram,
    /// qcow2 images.
    Qcow2,
}

impl DiskKind {
    pub fn name(self) -> &'static str {
        match self {
            DiskKind::Cached => "cached",
            DiskKind::Direct => "direct",
            DiskKind::Ram => "direct, RAM",
            DiskKind::Qcow2 => "qcow2",
        }
    }
}
