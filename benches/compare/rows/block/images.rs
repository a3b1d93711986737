//! What the disks of the bare driver are: a raw image, the same as qcow2, and the same as a block
//! device that is RAM.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::common::admin;
use crate::vmm::DiskKind;

/// The size of each.
pub const DISK_BYTES: u64 = 256 << 20;

/// The images; gone when this is dropped.
#[derive(Debug)]
pub struct Images {
    raw: PathBuf,
    qcow2: PathBuf,
    /// Or why there is none.
    ram: Result<RamDisk, String>,
}

impl Images {
    /// Makes them, in `folder` what is a file.
    pub fn make(folder: &Path) -> Result<Self> {
        let raw = folder.join("bench-disk.raw");
        let images = Images {
            qcow2: raw.with_extension("qcow2"),
            ram: RamDisk::make().map_err(|error| format!("{error:#}")),
            raw,
        };
        let mut file = File::create(&images.raw)
            .with_context(|| format!("cannot make {}", images.raw.display()))?;
        fill(&mut file).with_context(|| format!("cannot fill {}", images.raw.display()))?;
        make_qcow2(&images.raw, &images.qcow2)?;
        Ok(images)
    }

    /// The one of `kind`.
    pub fn of(&self, kind: DiskKind) -> Result<&Path> {
        match kind {
            DiskKind::Cached | DiskKind::Direct => Ok(&self.raw),
            DiskKind::Qcow2 => Ok(&self.qcow2),
            DiskKind::Ram => match &self.ram {
                Ok(disk) => Ok(&disk.path),
                Err(why) => Err(anyhow!("no loop device: {why}")),
            },
        }
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let _ = (
            std::fs::remove_file(&self.raw),
            std::fs::remove_file(&self.qcow2),
        );
    }
}

/// A loop device on a file in memory that has no name. Nothing is left of it when this process
/// ends, in whatever way.
#[derive(Debug)]
struct RamDisk {
    path: PathBuf,
    /// The device goes with the last one who has it open.
    _device: File,
}

impl RamDisk {
    fn make() -> Result<Self> {
        let mut memory = tempfile::tempfile_in("/dev/shm").context("/dev/shm")?;
        fill(&mut memory).context("cannot fill a file in /dev/shm")?;
        let file = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let path = PathBuf::from(losetup(&["--find", "--show", &file])?);
        let device = File::open(&path);
        // While somebody has it open this only says that it is not to stay.
        losetup(&["--detach", &path.display().to_string()])?;
        Ok(RamDisk {
            _device: device.with_context(|| path.display().to_string())?,
            path,
        })
    }
}

fn losetup(words: &[&str]) -> Result<String> {
    admin("losetup", words).map_err(|why| anyhow!(why))
}

/// Random bytes: nothing that a file system would leave out.
fn fill(file: &mut File) -> std::io::Result<()> {
    let mut bytes = vec![0u8; 1 << 20];
    let mut random = 1u64;
    for _ in 0..DISK_BYTES >> 20 {
        for chunk in bytes.chunks_exact_mut(8) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            chunk.copy_from_slice(&random.to_le_bytes());
        }
        file.write_all(&bytes)?;
    }
    file.sync_all()
}

/// The same disk as a qcow2 image, made by qemu-img.
fn make_qcow2(raw: &Path, qcow2: &Path) -> Result<()> {
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([raw, qcow2])
        .output()
        .context("qemu-img")?;
    if !made.status.success() {
        bail!("qemu-img: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(())
}
