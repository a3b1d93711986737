//! A bzImage booted as the vmlinux inside it: unpacked on the host, once, not in every guest.
//!
//! ```text
//!   bzImage ─▶ in the cache? ─▶ vmlinux ─▶ copied into guest memory, entered in long mode
//!                 └ no: unpack, keep
//! ```
//!
//! The kernel's own decompressor would do the same slowly, and then move the kernel to a random
//! address (KASLR), which is lost here; `--unpack guest` leaves both to the guest. Whatever cannot
//! be done, from an unknown compression to a 32-bit kernel, is no error: the guest can do it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;

use super::cache::Cache;
use super::elf::ElfImage;
use super::kernel::{Kernel, KernelFormat};
use super::payload;
use super::source::Source;

/// Who unpacks a bzImage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Unpack {
    /// The host, once; the vmlinux is kept in the cache
    #[default]
    Host,
    /// The guest, at every boot, and puts itself at a random address (KASLR)
    Guest,
}

impl Kernel {
    /// The vmlinux in a bzImage, to be booted in its place; any other kernel as it is.
    pub fn unpacked(self, cache: Option<&Cache>) -> Kernel {
        let KernelFormat::BzImage(image) = &self.format else {
            return self;
        };
        if let Some(source) = cache.and_then(|cache| cache.find(&self.source)) {
            if let Ok(elf) = ElfImage::parse(&source) {
                log::info!("{}: unpacked before", self.source.path().display());
                return inner(source, elf, image.setup.header);
            }
            log::warn!("{}: damaged, unpacking again", source.path().display());
        }
        let seen = self.source.file().metadata();
        let vmlinux = match payload::unpack(&self.source, image) {
            Ok(vmlinux) => vmlinux,
            Err(error) => {
                log::info!("the guest unpacks its kernel itself: {error}");
                return self;
            }
        };
        let keep = |cache: &Cache| cache.keep(&self.source, &seen?, &vmlinux);
        let source = match cache.map(keep) {
            Some(Ok(Some(kept))) => Ok(kept),
            Some(Err(error)) => {
                log::warn!("cannot keep the unpacked kernel in the cache: {error}");
                in_memory(&self.source, &vmlinux)
            }
            Some(Ok(None)) | None => in_memory(&self.source, &vmlinux),
        };
        match source.map(|source| ElfImage::parse(&source).map(|elf| (source, elf))) {
            Ok(Ok((source, elf))) => inner(source, elf, image.setup.header),
            // A 32-bit kernel, or no ELF file at all: the guest knows what to do with it.
            Ok(Err(error)) => {
                log::info!("the guest unpacks its kernel itself: {error}");
                self
            }
            Err(error) => {
                log::warn!("cannot unpack the kernel here: {error}");
                self
            }
        }
    }
}

fn inner(
    source: Source,
    mut elf: ElfImage,
    header: linux_loader::loader::bootparam::setup_header,
) -> Kernel {
    elf.header = Some(header);
    Kernel {
        source,
        format: KernelFormat::Elf(elf),
    }
}

/// A file that only this process has.
fn in_memory(image: &Source, vmlinux: &[u8]) -> io::Result<Source> {
    // SAFETY: the name is a C string for the call; the new file descriptor has no other owner.
    let mut file = unsafe {
        match libc::memfd_create(c"vmlinux".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error()),
            fd => File::from_raw_fd(fd),
        }
    };
    file.write_all(vmlinux)?;
    Source::of_file(file, image.path().into()).map_err(io::Error::other)
}
