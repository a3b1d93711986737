//! Whether a plan would start: everything that a start does up to the guest's first instruction, and
//! nothing that anybody could see afterwards. `--dry-run` ends with it.
//!
//! The machine is made for real, with its memory, vCPUs, interrupts and rings, so what is found here
//! is what a start would find: rights, limits, capabilities. Only the console is looked at without
//! being opened, as a file would lose what is in it and a terminal its settings.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::error::StartError;
use super::{Machine, Plan, host};
use crate::config::Console;
use crate::console::{ConsoleError, endpoints};
use crate::memory::ram;

/// Makes the machine and gives it up again.
///
/// # Errors
/// Those of a start.
pub fn rehearse(plan: &Plan) -> Result<(), StartError> {
    ram::share_heap();
    let memory = Arc::new(ram::map(plan.config.memory, plan.config.memory_backing)?);
    let kvm = Arc::new(host::open()?);
    drop(Machine::build(plan, &memory, &kvm)?);
    match &plan.config.console {
        Console::Stdio(_) | Console::None => Ok(()),
        Console::Pty => may(Path::new("/dev/ptmx"), libc::R_OK | libc::W_OK)
            .map_err(|error| ConsoleError::Pty(error).into()),
        Console::File { path, max } => {
            let file = |path: &Path| {
                let error = |source| ConsoleError::File {
                    path: path.into(),
                    source,
                };
                may_write(path).map_err(error)
            };
            file(path)?;
            if max.is_some() {
                endpoints::may_have_bound(path)?;
                file(&Console::old(path))?;
            }
            Ok(())
        }
    }
}

/// Whether the file could be made or overwritten.
fn may_write(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        Ok(_) => may(path, libc::W_OK),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            may(folder, libc::W_OK | libc::X_OK)
        }
        Err(error) => Err(error),
    }
}

fn may(path: &Path, rights: libc::c_int) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: the path is a C string that lives for the call. AT_EACCESS asks for the user as whom
    // files are opened.
    match unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), rights, libc::AT_EACCESS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
