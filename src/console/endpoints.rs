//! Opens what the configuration calls a console.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;

use super::ConsoleError;
use super::line::{Input, Line};
use super::output::{Output, duplicate};
use super::raw::{self, RawMode};
use crate::config;
use crate::error::say;

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
        config::Console::File(path) => to_file(path),
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
        true => duplicate(libc::STDIN_FILENO).map_err(ConsoleError::Standard)?,
        false => None,
    };
    let input = input
        .map(|file| Input::new(file, terminal))
        .transpose()
        .map_err(ConsoleError::Timer)?;
    Ok(Endpoints {
        line: Line::new(input, Output::stdout().map_err(ConsoleError::Standard)?),
        raw,
        pty_slave: None,
    })
}

fn to_file(path: &Path) -> Result<Endpoints, ConsoleError> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        // A FIFO without a reader is an error instead of a wait.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|source| ConsoleError::File {
            path: path.into(),
            source,
        })?;
    let plain = file.metadata().is_ok_and(|meta| meta.is_file());
    let output = match plain {
        true => Output::file(file),
        false => Output::lossy(file),
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
