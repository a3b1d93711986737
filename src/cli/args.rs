//! `bantam run`: its options.

use std::path::PathBuf;

use clap::Args;

use crate::boot::{ProtocolChoice, Unpack};
use crate::config::{Layer, MemoryBacking};

const RUN_EXAMPLES: &str = "\
Examples:
  A Debian kernel with its initrd and a disk whose first partition is the root:
    bantam run /boot/vmlinuz --initrd /boot/initrd.img --disk debian.raw --append root=/dev/vda1
  A kernel with a root file system on a disk and no initrd:
    bantam run vmlinux --disk root.ext4
  Four CPUs, 2 GiB, ended after ten minutes at the latest:
    bantam run vmlinux --initrd initramfs.gz --cpus 4 --memory 2G --time-limit 10m
  The same from a file, one value changed:
    bantam run --config vm.toml --memory 4G

While it runs: Ctrl-a x ends the machine, Ctrl-a p pauses it and has it go on, Ctrl-a h shows the other keys.
SIGTERM and SIGINT press the power button; a second one, or 10 seconds, ends the machine.
SIGUSR1 pauses it, SIGUSR2 has it go on.";

/// Options of `bantam run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES, args_override_self = true)]
pub struct RunArgs {
    /// Kernel image: an ELF vmlinux, a PVH program, or a bzImage (vmlinuz)
    #[arg(value_name = "KERNEL", conflicts_with = "kernel_flag")]
    kernel: Option<PathBuf>,

    /// Kernel image, the same as the argument
    #[arg(short, long = "kernel", value_name = "PATH", id = "kernel_flag")]
    kernel_flag: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(short, long, value_name = "PATH")]
    initrd: Option<PathBuf>,

    /// Add to the kernel command line (may be repeated)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Vec<String>,

    /// Replace the default kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,

    /// Attach a disk image or block device; in order vda, vdb ... (may be repeated)
    ///
    /// After the path, separated by commas: ro, format=raw|qcow2 (raw unless the name ends in
    /// .qcow2), snapshot (throw writes away), serial=TEXT, queues=N, io=auto|uring|threads, cache=writeback|direct,
    /// discard=on|off, iothread, poll=MICROSECONDS, backing=on|off, limit-iops=N, limit-bw=N
    #[arg(short, long, value_name = "PATH[,KEY=VALUE]...")]
    disk: Vec<String>,

    /// Throw away at the end what is written to disks, but for those with snapshot=off
    #[arg(long)]
    snapshot: bool,

    /// Attach an image of a CD or DVD, to be read only, after the disks (may be repeated)
    #[arg(long, value_name = "ISO")]
    cdrom: Vec<PathBuf>,

    /// Boot the kernel inside the ISO of a live system or installer, and attach the ISO
    #[arg(long, value_name = "ISO")]
    iso: Option<PathBuf>,

    /// vCPUs: 4, or 8,sockets=2,cores=2,threads=2 [default: 1]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    cpus: Option<String>,

    /// Guest memory: 512M, 2G; a bare number counts MiB [default: 512M]
    #[arg(short, long, value_name = "SIZE", allow_negative_numbers = true)]
    memory: Option<String>,

    /// What guest memory is on the host
    #[arg(long, value_enum)]
    memory_backing: Option<MemoryBacking>,

    /// Serial console: stdio, none, pty, file=PATH [default: stdio]
    #[arg(long, value_name = "WHERE")]
    console: Option<String>,

    /// How the kernel is entered
    #[arg(long, value_enum)]
    protocol: Option<ProtocolChoice>,

    /// Who unpacks a bzImage
    #[arg(long, value_enum)]
    unpack: Option<Unpack>,

    /// Keep nothing of what is unpacked, and use nothing kept before
    #[arg(long)]
    no_cache: bool,

    /// Read options from a TOML file; options given here win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print the resolved machine, find what a start would find (rights, limits, locks), and start nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Start the machine again when its guest reboots, instead of ending
    #[arg(long, overrides_with = "no_reboot")]
    reboot: bool,

    /// End the machine when its guest reboots, also where the configuration file has 'reboot = true'
    #[arg(long, overrides_with = "reboot")]
    no_reboot: bool,

    /// End the machine after this time: 30s, 5m
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    time_limit: Option<String>,

    /// Say more on standard error (-vv: even more)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl RunArgs {
    /// What the options say, for [`Layer::over`].
    pub fn layer(&self) -> Layer {
        Layer {
            kernel: self.kernel.clone().or_else(|| self.kernel_flag.clone()),
            initrd: self.initrd.clone(),
            append: self.append.clone(),
            cmdline: self.cmdline.clone(),
            disks: self.disk.clone(),
            snapshot: self.snapshot.then_some(true),
            cdroms: self.cdrom.clone(),
            iso: self.iso.clone(),
            cpus: self.cpus.clone(),
            memory: self.memory.clone(),
            memory_backing: self.memory_backing,
            console: self.console.clone(),
            protocol: self.protocol,
            unpack: self.unpack,
            cache: self.no_cache.then_some(false),
            reboot: match (self.reboot, self.no_reboot) {
                (_, true) => Some(false),
                (reboot, false) => reboot.then_some(true),
            },
            time_limit: self.time_limit.clone(),
        }
    }
}
