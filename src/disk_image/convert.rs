//! An image made into another: its format, and without what lies below it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use imago::file::File as ImagoFile;
use imago::{FormatAccess, Mapping, raw};

use super::target::Target;
use super::{ImageError, format_to_make, host, open_locked, whole_sectors};
use crate::storage::Access;
use crate::storage::Format;
use crate::storage::qcow2::Qcow2;
use crate::storage::qcow2::manage::{self, New};

/// Bytes read at a time.
const CHUNK: u64 = 2 << 20;
/// Zeros of this length are not written: the least that a file system keeps apart.
const HOLE: usize = 4096;

/// Copies the disk in `from` to a new image `to`; returns the length of the disk, and the format of
/// the new image. Formats are those of the names unless they are given. A backing file of `from` is
/// read only with `backing`: its name stands in a file that may be anybody's. `progress` is told how
/// far it is, of how much.
///
/// # Errors
/// See [`ImageError`].
pub fn convert(
    (from, from_format): (&Path, Option<Format>),
    (to, to_format): (&Path, Option<Format>),
    backing: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<(u64, Format), ImageError> {
    let to_format = format_to_make(to, to_format)?;
    let (source, from_format) = open_locked(from, from_format, true)?;
    let holes = match from_format {
        Format::Raw => Some(source.try_clone().map_err(host("read", from))?),
        Format::Qcow2 => None,
    };
    let source = match from_format {
        Format::Raw => ImagoFile::try_from(source)
            .and_then(|storage| raw::Raw::open_image(storage, false))
            .map(FormatAccess::new)
            .map_err(host("read", from))?,
        Format::Qcow2 => {
            let access = Access {
                format: from_format,
                read_only: true,
                backing,
                ..Access::default()
            };
            Qcow2::access(source, from, access)?
        }
    };
    let len = source.size();
    if len == 0 {
        return Err(ImageError::Words {
            what: format!("{} is a disk of no bytes", from.display()),
            help: "there is nothing to convert".into(),
        });
    }
    let (target, file) = Target::create(to)?;
    let whole = whole_sectors(len)?;
    let made = file.try_clone().and_then(|file| match to_format {
        Format::Raw => {
            file.set_len(whole)?;
            raw::Raw::open_image(ImagoFile::try_from(file)?, true).map(FormatAccess::new)
        }
        Format::Qcow2 => manage::make(
            file,
            &New {
                len: whole,
                cluster: manage::CLUSTER,
                backing: None,
            },
        ),
    });
    let disk = made.map_err(host("make", to))?;
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < len {
        progress(at, len);
        let (data, end) = next(&source, holes.as_ref(), at, len).map_err(host("read", from))?;
        if data {
            let part = buffer.get_mut(..end.saturating_sub(at) as usize);
            let part = part.unwrap_or_default();
            source.read(&mut *part, at).map_err(host("read", from))?;
            write_data(&disk, part, at).map_err(host("write", to))?;
        }
        at = end;
    }
    disk.flush()
        .and_then(|()| disk.sync())
        .map_err(host("write", to))?;
    drop(disk);
    progress(len, len);
    target.finish(&file)?;
    Ok((whole, to_format))
}

/// Whether there is data at `at`, and up to where that is so; at most a chunk if it is.
fn next(
    source: &FormatAccess<ImagoFile>,
    holes: Option<&File>,
    at: u64,
    len: u64,
) -> io::Result<(bool, u64)> {
    let chunk = at.saturating_add(CHUNK).min(len);
    if let Some(file) = holes {
        return Ok(match seek_data(file, at) {
            Some(data) if data > at => (false, data.min(len)),
            Some(_) => (true, chunk),
            None => (false, len),
        });
    }
    let (mapping, run) = source.get_mapping(at, len.saturating_sub(at))?;
    // What is not known to be zeros is read.
    Ok(match mapping {
        Mapping::Zero { .. } if run > 0 => (false, at.saturating_add(run).min(len)),
        _ if run > 0 => (true, at.saturating_add(run).min(chunk)),
        _ => (true, chunk),
    })
}

/// Where the next data of `file` begins; `None` when there is none. A file system that does not
/// know says "here".
fn seek_data(file: &File, at: u64) -> Option<u64> {
    let offset = i64::try_from(at).ok()?;
    // SAFETY: the call touches no memory of ours.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), offset, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(found) => Some(found),
        Err(_) => match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENXIO) => None,
            _ => Some(at),
        },
    }
}

/// Writes `bytes` but for the zeros in them, which a new image has everywhere.
fn write_data(disk: &FormatAccess<ImagoFile>, bytes: &[u8], mut at: u64) -> io::Result<()> {
    let mut run: Option<(u64, usize)> = None;
    let mut start = 0;
    for block in bytes.chunks(HOLE) {
        let zero = block.iter().all(|byte| *byte == 0);
        match (&mut run, zero) {
            (None, false) => run = Some((at, start)),
            (Some((offset, from)), true) => {
                let data = bytes.get(*from..start).unwrap_or_default();
                disk.write(data, *offset)?;
                run = None;
            }
            _ => {}
        }
        at = at.saturating_add(block.len() as u64);
        start = start.saturating_add(block.len());
    }
    if let Some((offset, from)) = run {
        disk.write(bytes.get(from..).unwrap_or_default(), offset)?;
    }
    Ok(())
}
