//! Opens what the configuration calls a console.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;

use super::ConsoleError;
use super::line::{Input, Line};
use super::raw::{self, RawMode};
use crate::config;
use crate::outlet::keeper::Keeper;
use crate::outlet::{Output, duplicate, say, thread};

/// Both ends of a console, and the terminal's mode if it was changed.
pub struct Endpoints {
    /// Where input comes from and output goes.
    pub line: Line,
    /// Raw mode, as long as the machine runs.
    pub raw: Option<Rc<RawMode>>,
    /// Kept open, so that a reader may come and go.
    pub pty_slave: Option<File>,
}

/// Opens `console`. A terminal is made raw here, so this comes last of all that can fail.
///
/// # Errors
/// When a file cannot be made or the terminal cannot be set.
pub fn open(console: &config::Console) -> Result<Endpoints, ConsoleError> {
    match console {
        config::Console::None => Ok(Endpoints {
            line: Line::none(),
            raw: None,
            pty_slave: None,
        }),
        config::Console::Stdio(_) => stdio(),
        config::Console::File { path, max } => to_file(path, *max),
        config::Console::Pty => pty().map_err(ConsoleError::Pty),
    }
}

fn stdio() -> Result<Endpoints, ConsoleError> {
    let terminal = raw::is_terminal();
    let raw = if raw::owns_terminal() {
        let raw = RawMode::enter().map_err(ConsoleError::Terminal)?;
        Some(Rc::new(raw))
    } else {
        None
    };
    // A terminal that is not ours to read (a job in the background) is left alone.
    let readable = !terminal || raw.is_some();
    let input = match readable {
        true => stdin().map_err(ConsoleError::Standard)?,
        false => None,
    };
    let input = match input {
        Some(file) if may_block(&file) => {
            Some(thread::reader("stdin", file).map_err(ConsoleError::Thread)?)
        }
        input => input,
    };
    let input = input
        .map(|file| Input::new(file, terminal))
        .transpose()
        .map_err(ConsoleError::Timer)?;
    let output = Output::standard(libc::STDOUT_FILENO).map_err(ConsoleError::Thread)?;
    Ok(Endpoints {
        line: Line::new(input, output),
        raw,
        pty_slave: None,
    })
}

/// A descriptor of our own for standard input; `None` where there is none (`<&-`).
///
/// Somebody else may read the same terminal or pipe, and be faster: then a read of ours would wait. So it is
/// opened anew with O_NONBLOCK, which would else be set for all who have it, where that is possible
/// (`outlet/output.rs` does the same).
///
/// # Errors
/// When the host gives no second descriptor.
fn stdin() -> io::Result<Option<File>> {
    let Some(file) = duplicate(libc::STDIN_FILENO)? else {
        return Ok(None);
    };
    if may_block(&file) {
        // Opened anew it would begin at its beginning, and a thread reads it anyway.
        return Ok(Some(file));
    }
    let fd = file.as_raw_fd();
    let anew = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{fd}"));
    Ok(Some(anew.unwrap_or(file)))
}

/// Whether a read or a write of it waits for what it is on.
fn may_block(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| {
        let kind = meta.file_type();
        kind.is_file() || kind.is_block_device()
    })
}

/// Whether `path` is a file that can be begun again, or will be.
///
/// # Errors
/// When it is a FIFO, a device, or whatever else has no length.
pub fn may_have_bound(path: &Path) -> Result<(), ConsoleError> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(ConsoleError::NoBound { path: path.into() }),
        _ => Ok(()),
    }
}

/// Opens what output goes to. What is in it is only thrown away if it is to be `fresh`.
fn create(path: &Path, fresh: bool, readable: bool) -> Result<File, ConsoleError> {
    File::options()
        .write(true)
        .read(readable)
        .create(true)
        .truncate(fresh)
        // A FIFO without a reader is an error instead of a wait.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|source| ConsoleError::File {
            path: path.into(),
            source,
        })
}

fn to_file(path: &Path, max: Option<u64>) -> Result<Endpoints, ConsoleError> {
    let keeper = match max {
        None => {
            let file = create(path, true, false)?;
            match may_block(&file) {
                true => Ok(Keeper::endless(file)),
                false => Err(file),
            }
        }
        Some(max) => {
            may_have_bound(path)?;
            let old_path = config::Console::old(path);
            may_have_bound(&old_path)?;
            let old = create(&old_path, false, false)?;
            Ok(Keeper::bounded(create(path, true, true)?, old, max))
        }
    };
    let output = match keeper {
        Ok(keeper) => Output::file("console", keeper).map_err(ConsoleError::Thread)?,
        Err(other) => Output::lossy(other),
    };
    Ok(Endpoints {
        line: Line::new(None, output),
        raw: None,
        pty_slave: None,
    })
}

fn pty() -> io::Result<Endpoints> {
    let master = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open("/dev/ptmx")?;
    let fd = master.as_raw_fd();
    let mut name = [0 as libc::c_char; 64];
    // SAFETY: takes a descriptor alone.
    if unsafe { libc::unlockpt(fd) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: writes at most `name.len()` bytes; returns the error's number.
    match unsafe { libc::ptsname_r(fd, name.as_mut_ptr(), name.len()) } {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    // SAFETY: ptsname_r succeeded, so the buffer holds a string with its NUL.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    let path = name.to_string_lossy().into_owned();
    let slave = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(&path)?;
    let mut termios = std::mem::MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr fills the struct before cfmakeraw and tcsetattr read it.
    unsafe {
        if libc::tcgetattr(slave.as_raw_fd(), termios.as_mut_ptr()) == 0 {
            libc::cfmakeraw(termios.as_mut_ptr());
            libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, termios.as_ptr());
        }
    }
    let input = Input::new(master.try_clone()?, false)?;
    say(&format!("console: {path}"));
    Ok(Endpoints {
        line: Line::new(Some(input), Output::lossy(master)),
        raw: None,
        pty_slave: Some(slave),
    })
}
