//! The kernel and initrd inside a live or installer ISO, by the layouts of those that make them.
//!
//! Files on an ISO lie in one piece, so a kernel is booted straight from the image: a [`Source`]
//! is a window on it, and nothing is unpacked. The file system (ISO 9660 with Rock Ridge) is read
//! by hadris-iso.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use hadris_fs::sync::{FileSystem, Volume};
use hadris_fs::{Extent, MountOptions, Name};
use hadris_iso::sync::IsoFs;
use hadris_storage::host::FileDevice;

use super::source::{Source, SourceError};
use crate::error::{Help, io_reason};

/// Where somebody keeps kernels on their ISOs.
struct Layout {
    folder: &'static str,
    /// What a kernel's name begins with; what follows is in the initrd's name as well.
    kernel: &'static str,
    /// What the initrd's name begins with, in the order of preference.
    initrd: &'static [&'static str],
    /// What follows the version in the initrd's name.
    ends: &'static [&'static str],
    /// What its own boot loader says to the kernel.
    append: &'static str,
}

/// Live systems before installers, as an ISO that has both is asked for its live system.
const LAYOUTS: [Layout; 6] = [
    // Debian live
    Layout {
        folder: "/live",
        kernel: "vmlinuz",
        initrd: &["initrd.img", "initrd"],
        ends: &["", ".img"],
        append: "boot=live components",
    },
    // Ubuntu
    Layout {
        folder: "/casper",
        kernel: "vmlinuz",
        initrd: &["initrd"],
        ends: &["", ".lz", ".gz"],
        append: "boot=casper",
    },
    // Alpine
    Layout {
        folder: "/boot",
        kernel: "vmlinuz-virt",
        initrd: &["initramfs-virt"],
        ends: &[""],
        append: "modules=loop,squashfs,virtio_mmio,virtio_blk",
    },
    Layout {
        folder: "/boot",
        kernel: "vmlinuz-lts",
        initrd: &["initramfs-lts"],
        ends: &[""],
        append: "modules=loop,squashfs,virtio_mmio,virtio_blk",
    },
    // Debian's installer
    Layout {
        folder: "/install.amd",
        kernel: "vmlinuz",
        initrd: &["initrd"],
        ends: &[".gz"],
        append: "",
    },
    Layout {
        folder: "/install",
        kernel: "vmlinuz",
        initrd: &["initrd"],
        ends: &[".gz"],
        append: "",
    },
];

/// What an ISO boots.
#[derive(Debug)]
pub struct Iso {
    /// The kernel.
    pub kernel: Source,
    /// Its initrd.
    pub initrd: Source,
    /// For the command line.
    pub append: &'static str,
}

/// Why an ISO cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum IsoError {
    /// Not readable.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// No ISO 9660 file system.
    #[error("{} is not an ISO image: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Nothing that is known.
    #[error("no kernel is found in {}", path.display())]
    NoKernel {
        /// The file.
        path: PathBuf,
    },
}

impl Help for IsoError {
    fn help(&self) -> String {
        match self {
            IsoError::Source(_) => "check the path given to --iso".into(),
            IsoError::Format { .. } => {
                "give the ISO of a live system or an installer; disks are attached with --disk"
                    .into()
            }
            IsoError::NoKernel { .. } => {
                let mut folders: Vec<_> = LAYOUTS.iter().map(|layout| layout.folder).collect();
                folders.dedup();
                format!(
                    "looked for vmlinuz and an initrd in {}; take them out of it, and attach it with \
                     --cdrom",
                    folders.join(", ")
                )
            }
        }
    }
}

impl Iso {
    /// Looks for a kernel in the ISO at `path`.
    ///
    /// # Errors
    /// See [`IsoError`].
    pub fn open(path: &Path) -> Result<Self, IsoError> {
        // Says what is no file, before anything reads it.
        Source::open(path)?;
        let format = |reason: String| IsoError::Format {
            path: path.into(),
            reason,
        };
        let mount = || {
            let device = FileDevice::open(path).map_err(|error| format(io_reason(&error)))?;
            IsoFs::mount(device, MountOptions::new()).map_err(|error| format(error.to_string()))
        };
        let volume = Volume::new(mount()?);
        let mut files = mount()?;
        for layout in &LAYOUTS {
            let names = names_in(&volume, layout.folder);
            let Some((kernel, initrd)) = choose(layout, &names) else {
                continue;
            };
            let mut window = |name: &str| {
                let found = extent(&mut files, layout.folder, name);
                let inside = format!("{}:{}/{name}", path.display(), layout.folder);
                let failed = |source| SourceError::Io {
                    path: inside.clone().into(),
                    source,
                };
                let (offset, len) = found
                    .ok_or_else(|| failed(io::Error::other("it is not one piece of the image")))?;
                let file = File::open(path).map_err(failed)?;
                Source::window(file, inside.clone().into(), offset, len)
            };
            return Ok(Iso {
                kernel: window(kernel)?,
                initrd: window(initrd)?,
                append: layout.append,
            });
        }
        Err(IsoError::NoKernel { path: path.into() })
    }
}

/// The kernel and initrd among `names` that belong together.
fn choose<'a>(layout: &Layout, names: &'a [String]) -> Option<(&'a str, &'a str)> {
    let kernels = names.iter().filter(|name| name.starts_with(layout.kernel));
    kernels
        .filter_map(|kernel| {
            let version = kernel.strip_prefix(layout.kernel)?;
            let initrd = layout.initrd.iter().find_map(|start| {
                layout.ends.iter().find_map(|end| {
                    let wanted = format!("{start}{version}{end}");
                    names.iter().find(|name| **name == wanted)
                })
            })?;
            Some((kernel.as_str(), initrd.as_str()))
        })
        .next()
}

/// The names in a folder, in their order; none where there is no such folder.
fn names_in(volume: &Volume<IsoFs<FileDevice>>, folder: &str) -> Vec<String> {
    /// A folder of kernels has a handful of files.
    const MAX: usize = 1000;
    let Ok(entries) = volume.read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .take(MAX)
        .map_while(Result::ok)
        .map(|entry| String::from_utf8_lossy(entry.name().as_bytes()).into_owned())
        .collect();
    names.sort_unstable();
    names
}

/// Where a file lies in the image: offset and length, if it is one piece.
fn extent(iso: &mut IsoFs<FileDevice>, folder: &str, name: &str) -> Option<(u64, u64)> {
    let mut node = iso.root();
    for part in folder.split('/').chain([name]).filter(|p| !p.is_empty()) {
        node = iso.lookup(node, Name::new(part)).ok()?;
    }
    let mut extents = [Extent::new(0, 0); 2];
    match iso.extents(node, 0, &mut extents) {
        Ok(1) => extents
            .first()
            .map(|extent| (extent.offset(), extent.len())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(folder: &str, names: &[&str]) -> Option<(String, String)> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let layout = LAYOUTS.iter().find(|l| l.folder == folder).unwrap();
        choose(layout, &names).map(|(kernel, initrd)| (kernel.into(), initrd.into()))
    }

    #[test]
    fn kernel_and_initrd_belong_together() {
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(
            chosen("/live", &["initrd.img", "vmlinuz"]),
            pair("vmlinuz", "initrd.img")
        );
        assert_eq!(
            chosen("/live", &["initrd.img-6.1", "vmlinuz-6.0", "vmlinuz-6.1"]),
            pair("vmlinuz-6.1", "initrd.img-6.1")
        );
        assert_eq!(
            chosen("/casper", &["initrd.lz", "vmlinuz"]),
            pair("vmlinuz", "initrd.lz")
        );
        assert_eq!(
            chosen("/install.amd", &["initrd.gz", "vmlinuz"]),
            pair("vmlinuz", "initrd.gz")
        );
        assert_eq!(chosen("/boot", &["vmlinuz-virt"]), None, "no initrd");
    }
}
