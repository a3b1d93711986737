//! The kernel and initrd inside a live or installer ISO: by the layouts of those that make them, else
//! by what the ISO's own boot loader is told ([`bootconfig`]).
//!
//! Files on an ISO lie in one piece, so a kernel is booted straight from the image: a [`Source`]
//! is a window on it, and nothing is unpacked. The file system (ISO 9660 with Rock Ridge) is read
//! by hadris-iso.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use hadris_fs::sync::{FileSystem, Volume};
use hadris_fs::{Extent, MountOptions, Name};
use hadris_iso::sync::IsoFs;
use hadris_storage::host::FileDevice;

use super::bootconfig;
use super::recognize::{Kind, Use};
use super::source::{Source, SourceError};
use crate::error::Help;

/// Where somebody keeps kernels on their ISOs.
struct Layout {
    folder: &'static str,
    /// What a kernel's name begins with; what follows is in the initrd's name as well.
    kernel: &'static str,
    /// What the initrd's name begins with, in the order of preference.
    initrd: &'static [&'static str],
    /// What follows the version in the initrd's name.
    ends: &'static [&'static str],
    /// What its own boot loader says to the kernel; `%V` is the volume's name.
    append: &'static str,
}

/// Live systems before installers, as an ISO that has both is asked for its live system.
const LAYOUTS: &[Layout] = &[
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

/// Those whose boot loader is asked first, as it knows more: the name of the system's folder, or of
/// the first program. They stand here for ISOs whose boot configuration is not to be read.
const MORE_LAYOUTS: &[Layout] = &[
    // Fedora, and what is made of it
    Layout {
        folder: "/images/pxeboot",
        kernel: "vmlinuz",
        initrd: &["initrd"],
        ends: &[".img"],
        append: "root=live:CDLABEL=%V rd.live.image inst.stage2=hd:LABEL=%V",
    },
    // Fedora live since 42, openSUSE live
    Layout {
        folder: "/boot/x86_64/loader",
        kernel: "linux",
        initrd: &["initrd"],
        ends: &[""],
        append: "root=live:CDLABEL=%V rd.live.image",
    },
    // Arch
    Layout {
        folder: "/arch/boot/x86_64",
        kernel: "vmlinuz-linux",
        initrd: &["initramfs-linux"],
        ends: &[".img"],
        append: "archisobasedir=arch archisolabel=%V",
    },
];
/// Stands for the volume's name.
const VOLUME: &str = "%V";

/// What an ISO boots.
#[derive(Debug)]
pub struct Iso {
    /// The kernel.
    pub kernel: Source,
    /// Its initrd.
    pub initrd: Source,
    /// For the command line.
    pub append: String,
}

/// Why an ISO cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum IsoError {
    /// Not readable.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// A file of another kind.
    #[error("{} is {what}, not an ISO image", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// Where it belongs.
        help: String,
    },
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
            IsoError::Kind { help, .. } => help.clone(),
            IsoError::Format { .. } => {
                "give the ISO of a live system or an installer; disks are attached with --disk"
                    .into()
            }
            IsoError::NoKernel { .. } => {
                let layouts = LAYOUTS.iter().chain(MORE_LAYOUTS);
                let mut folders: Vec<_> = layouts.map(|layout| layout.folder).collect();
                folders.dedup();
                format!(
                    "looked for a kernel and its initrd in {}, and in the configurations of isolinux, \
                     GRUB and systemd-boot; take them out of it, and attach it with --cdrom",
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
        // Says what is no file, or one of another kind, before anything reads it.
        let whole = Source::open(path)?;
        match Kind::of(&whole) {
            Some(kind) if kind.belongs == Use::Kernel => {
                return Err(IsoError::Kind {
                    path: path.into(),
                    what: kind.what,
                    help: format!("a kernel stands alone: 'bantam run {}'", path.display()),
                });
            }
            Some(kind) if !matches!(kind.belongs, Use::Iso | Use::Other(_)) => {
                return Err(IsoError::Kind {
                    path: path.into(),
                    what: kind.what,
                    help: kind.help_for_kernel(path),
                });
            }
            _ => {}
        }
        let label = label(&whole);
        let mut files = Files::mount(path)?;
        let found = by_layout(&mut files, LAYOUTS, &label)
            .or_else(|| by_boot_loader(&mut files))
            .or_else(|| by_layout(&mut files, MORE_LAYOUTS, &label));
        let Some(found) = found else {
            return Err(IsoError::NoKernel { path: path.into() });
        };
        Ok(Iso {
            kernel: files.window(&found.kernel)?,
            initrd: files.window(&found.initrd)?,
            append: found.append,
        })
    }
}

/// Absolute paths inside of an ISO, and what the kernel is told.
struct Found {
    kernel: String,
    initrd: String,
    append: String,
}

/// The files of an ISO.
struct Files {
    path: PathBuf,
    volume: Volume<IsoFs<FileDevice>>,
    extents: IsoFs<FileDevice>,
}

impl Files {
    fn mount(path: &Path) -> Result<Self, IsoError> {
        let format = |reason: String| IsoError::Format {
            path: path.into(),
            reason,
        };
        let mount = || {
            let device = FileDevice::open(path).map_err(|source| SourceError::Io {
                path: path.into(),
                source,
            })?;
            IsoFs::mount(device, MountOptions::new()).map_err(|error| format(error.to_string()))
        };
        Ok(Files {
            path: path.into(),
            volume: Volume::new(mount()?),
            extents: mount()?,
        })
    }

    /// The names in a folder, in their order; none where there is no such folder.
    fn names(&self, folder: &str) -> Vec<String> {
        /// A folder of kernels has a handful of files.
        const MAX: usize = 1000;
        let Ok(entries) = self.volume.read_dir(folder) else {
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

    /// The file at `inside`, in place.
    fn window(&mut self, inside: &str) -> Result<Source, SourceError> {
        let shown: PathBuf = format!("{}:{inside}", self.path.display()).into();
        let failed = |source| SourceError::Io {
            path: shown.clone(),
            source,
        };
        let (offset, len) = extent(&mut self.extents, inside)
            .ok_or_else(|| failed(io::Error::other("it is not one piece of the image")))?;
        let file = File::open(&self.path).map_err(failed)?;
        Source::window(file, shown.clone(), offset, len)
    }

    /// The text in a boot loader's configuration.
    fn text(&mut self, inside: &str) -> Option<String> {
        /// A configuration is a page of text.
        const MAX: usize = 1 << 16;
        let bytes = self.window(inside).ok()?.read_up_to(0, MAX);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn by_layout(files: &mut Files, layouts: &[Layout], label: &str) -> Option<Found> {
    layouts.iter().find_map(|layout| {
        let names = files.names(layout.folder);
        let (kernel, initrd) = choose(layout, &names)?;
        Some(Found {
            kernel: format!("{}/{kernel}", layout.folder),
            initrd: format!("{}/{initrd}", layout.folder),
            append: layout.append.replace(VOLUME, label),
        })
    })
}

/// The first entry of a boot loader whose files are there.
fn by_boot_loader(files: &mut Files) -> Option<Found> {
    /// As many configurations, and entries in each, as one ISO has, and no more than a hostile one
    /// may cost.
    const MAX: usize = 40;
    const MAX_ENTRIES: usize = 100;
    let mut places: VecDeque<String> = VecDeque::new();
    for (folder, names) in bootconfig::PLACES {
        let there = files.names(folder);
        for wanted in *names {
            let fits = there.iter().filter(|name| match wanted.strip_prefix('*') {
                Some(end) => name.to_ascii_lowercase().ends_with(end),
                None => name.eq_ignore_ascii_case(wanted),
            });
            places.extend(fits.map(|name| format!("{}/{name}", folder.trim_end_matches('/'))));
        }
    }
    for _ in 0..MAX {
        let place = places.pop_front()?;
        let Some(text) = files.text(&place) else {
            continue;
        };
        let folder = place.rsplit_once('/').map_or("", |(folder, _)| folder);
        let read = bootconfig::read(&text, folder);
        for entry in read.entries.into_iter().take(MAX_ENTRIES) {
            let there = |files: &mut Files, file: &str| extent(&mut files.extents, file).is_some();
            if there(files, &entry.kernel) && there(files, &entry.initrd) {
                return Some(Found {
                    kernel: entry.kernel,
                    initrd: entry.initrd,
                    append: entry.append,
                });
            }
        }
        for more in read.includes.into_iter().take(MAX) {
            if !places.contains(&more) {
                places.push_front(more);
            }
        }
    }
    None
}

/// The volume's name, as udev writes it and the kernel's command line can hold it.
fn label(iso: &Source) -> String {
    /// In the primary volume descriptor, at sector 16.
    const AT: u64 = 16 * 2048 + 40;
    const BYTES: usize = 32;
    let bytes = iso.read_up_to(AT, BYTES);
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_end_matches([' ', '\0']);
    let plain = |c: char| c.is_ascii_graphic() && !"\\\"'".contains(c);
    text.chars()
        .map(|c| match c {
            ' ' => "\\x20".to_owned(),
            c if plain(c) => c.to_string(),
            _ => "_".to_owned(),
        })
        .collect()
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

/// Where a file lies in the image: offset and length, if it is one piece.
fn extent(iso: &mut IsoFs<FileDevice>, inside: &str) -> Option<(u64, u64)> {
    let mut node = iso.root();
    for part in inside.split('/').filter(|part| !part.is_empty()) {
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
