//! seccomp: gives this thread the filter of its role (seccomp(2)).
//!
//! A filter is made once for each role, and by the first thread that needs it: the threads of all vCPUs share one.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::OnceLock;

use super::filter::{self, Program};
use super::{Mode, Role, listener, violation};

/// Makes the filter of `role` this thread's, and that of all that it starts. What the filter refuses ends the program
/// ([`violation`]), or is told of by the thread of [`listener`], as the mode says.
///
/// # Errors
/// ENOSYS or EINVAL where the host's kernel has no filters, EPERM or EACCES where a container forbids them.
pub fn enter(role: Role, mode: Mode) -> io::Result<()> {
    let refused = match mode {
        Mode::On => libc::SECCOMP_RET_TRAP,
        Mode::Log => libc::SECCOMP_RET_USER_NOTIF,
        Mode::Off => return Ok(()),
    };
    let thread = violation::name_thread(role);
    let program = program(role, refused)?;
    // Without this right a program that is started later could not be trusted with more than we have. The kernel asks
    // for it, and the threads of a machine have it already.
    // SAFETY: no pointers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    match mode {
        Mode::Log => {
            match install(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER) {
                // A thread of a later life: the filter of the main thread, which it has inherited, tells of its calls.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
                Err(error) => Err(error),
                Ok(fd) => {
                    // SAFETY: with this flag the result is a new descriptor, which is nobody else's.
                    listener::listen(thread, unsafe { OwnedFd::from_raw_fd(fd) });
                    Ok(())
                }
            }
        }
        _ => install(program, 0).map(drop),
    }
}

/// The filter of `role`, which may be made already.
fn program(role: Role, refused: u32) -> io::Result<&'static Program> {
    static PROGRAMS: [OnceLock<Option<Program>>; Role::ALL.len()] =
        [const { OnceLock::new() }; Role::ALL.len()];
    let made = PROGRAMS.get(role as usize).and_then(|place| {
        place
            .get_or_init(|| filter::program(role, refused).ok())
            .as_ref()
    });
    made.ok_or_else(|| io::Error::other("the table of system calls makes no filter"))
}

fn install(program: &Program, flags: libc::c_ulong) -> io::Result<libc::c_int> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // Kernels before 5.16 slow down a thread with a filter, as it might run code of a stranger beside its own
    // (speculative store bypass). There is no such code in this process: a guest has an address space of its own.
    let flags = flags | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the kernel copies the program, which has the layout of its own sock_filter and the length that
    // is given, and keeps no pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => libc::c_int::try_from(result).map_err(io::Error::other),
    }
}

/// Whether the kernel has this result of a filter, one of the SECCOMP_RET values.
pub fn knows(action: u32) -> bool {
    // SAFETY: reads the number, which lives for the call.
    unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        ) == 0
    }
}
