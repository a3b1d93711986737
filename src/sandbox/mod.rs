//! The sandbox: what each thread of this program may still ask of the host, once a guest runs.
//!
//! A hole in the VMM lets a guest do what the VMM may do. So the VMM gives up what it needs for the start alone, before
//! the first guest instruction: it opens all files, makes all threads and rings, and then the door closes behind it.
//!
//! ```text
//!   start: files, console, /dev/kvm
//!     │
//!   confine ── chroot, user, capabilities, Landlock      the process: no file, no port, no other process
//!     │
//!   VM, vCPUs, devices, rings, threads
//!     │
//!   enter(Role) ── seccomp                               each thread: the system calls of its role, by `table`
//!     │
//!   the guest
//! ```
//!
//! - [`table`]: which role may make which call with which arguments, and why. The rest of this folder carries it out.
//! - [`filter`]: the table as a program for the kernel; [`seccomp`]: gives it to a thread; [`violation`]: what happens when
//!   a thread does something else; [`listener`]: what happens then with `--sandbox log`.
//! - [`landlock`]: no files and ports for the process; [`privileges`]: no rights beyond those of an ordinary user.
//! - [`offer`]: what of all this the host has.
//!
//! A thread that has to be there before the process is confined, as one that writes the console's file, confines itself
//! when it takes its filter.
//!
//! A host without one of them (an old kernel, a container) runs with the others.

pub mod filter;
mod kvm;
pub mod landlock;
pub mod listener;
pub mod offer;
pub mod privileges;
pub mod seccomp;
pub mod table;
pub mod violation;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Once, OnceLock};

use crate::error::io_reason;
use privileges::{Ids, PrivilegeError};

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The main thread of a machine that ends when its guest does: its event loop, and the end.
    Main,
    /// The main thread of a machine that starts again: what the set-up of a machine needs as well.
    MainReboot,
    /// A vCPU: KVM_RUN, and the devices that it reaches.
    Vcpu,
    /// An event loop for queues of devices.
    Io,
    /// A thread that makes blocking calls for a disk.
    Pool,
    /// The process that reads what somebody else has put into a disk image.
    Image,
    /// A thread that writes or reads a file of the console's.
    ConsoleFile,
    /// The thread that waits for the end of the process that reads a disk image.
    ImageWatch,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 8] = [
        Role::Main,
        Role::MainReboot,
        Role::Vcpu,
        Role::Io,
        Role::Pool,
        Role::Image,
        Role::ConsoleFile,
        Role::ImageWatch,
    ];

    /// Its bit in the table.
    pub const fn bit(self) -> table::Roles {
        1 << self as u8
    }

    /// What the documentation calls it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Main => "main",
            Role::MainReboot => "reboot",
            Role::Vcpu => "vcpu",
            Role::Io => "io",
            Role::Pool => "pool",
            Role::Image => "image",
            Role::ConsoleFile => "file",
            Role::ImageWatch => "watch",
        }
    }
}

/// What becomes of a call that a thread's role has no use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Mode {
    /// Such a call ends the program, with exit code 7
    #[default]
    On,
    /// Such a call is made, and told of in the log; files are not kept away
    Log,
    /// There is no sandbox
    Off,
}

/// What the user wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Whether there is one.
    pub mode: Mode,
    /// Whom root is to become.
    pub user: Option<String>,
    /// What is to be the root of the file system.
    pub chroot: Option<PathBuf>,
}

/// What has been chosen, and found to be possible.
#[derive(Debug)]
struct Chosen {
    mode: Mode,
    user: Option<(String, Ids)>,
    chroot: Option<PathBuf>,
}

impl Settings {
    /// Whether what the user asks for can be done, while nothing has been done yet.
    ///
    /// # Errors
    /// See [`PrivilegeError`].
    pub fn check(&self) -> Result<(), PrivilegeError> {
        self.checked().map(drop)
    }

    fn checked(&self) -> Result<Chosen, PrivilegeError> {
        if let Some(folder) = &self.chroot {
            privileges::check_chroot(folder)?;
        }
        let user = self.user.as_ref();
        let user = user.map(|user| Ok((user.clone(), privileges::look_up(user)?)));
        Ok(Chosen {
            mode: self.mode,
            user: user.transpose()?,
            chroot: self.chroot.clone(),
        })
    }
}

static CHOSEN: OnceLock<Chosen> = OnceLock::new();
/// The root of the file system has been changed.
static ROOT: Once = Once::new();
/// The ABI of Landlock that this process is in.
static LANDLOCK: AtomicU32 = AtomicU32::new(0);
/// A thread has its filter.
static FILTERS: AtomicBool = AtomicBool::new(false);

/// Chooses for this process, and the processes that it makes of itself. The first choice stands.
///
/// # Errors
/// See [`PrivilegeError`].
pub fn choose(settings: &Settings) -> Result<(), PrivilegeError> {
    let chosen = settings.checked()?;
    if chosen.mode != Mode::Off {
        violation::prepare();
    }
    let _ = CHOSEN.set(chosen);
    Ok(())
}

/// The mode of this process. As long as nobody has chosen, there is no sandbox: tests, benches and the
/// subcommands that run no guest have none.
pub fn mode() -> Mode {
    CHOSEN.get().map_or(Mode::Off, |chosen| chosen.mode)
}

/// Gives up what has no use when all files of the machine are open: the root of the file system for the process; the
/// user, capabilities and all paths for this thread, and all threads that it starts from now on. There is no way back.
///
/// # Errors
/// When the user asks for what cannot be done. What the host does not offer is left out.
pub fn confine() -> Result<(), PrivilegeError> {
    let Some(chosen) = CHOSEN.get() else {
        return Ok(());
    };
    let mut root = Ok(());
    if let Some(folder) = &chosen.chroot {
        ROOT.call_once(|| root = privileges::chroot(folder));
    }
    root?;
    confine_thread(chosen)
}

/// What of it is a thread's own.
fn confine_thread(chosen: &Chosen) -> Result<(), PrivilegeError> {
    if let Some((user, ids)) = &chosen.user {
        privileges::become_user(user, *ids)?;
    }
    if chosen.mode == Mode::Off {
        return Ok(());
    }
    violation::handle();
    privileges::drop_capabilities()?;
    if chosen.mode == Mode::On {
        match landlock::enter() {
            Ok(0) => log::debug!(
                "the host's kernel has no Landlock: files are kept away by seccomp alone"
            ),
            Ok(abi) => {
                LANDLOCK.store(abi, Ordering::Relaxed);
                log::debug!("Landlock: ABI {abi}");
            }
            Err(error) => log::debug!("no Landlock: {error}"),
        }
    }
    Ok(())
}

/// Leaves this thread, and all that it starts from now on, with the system calls that `role` needs. There is no way
/// back. A thread that may have been started before [`confine`], by its role, is confined as well.
pub fn enter(role: Role) {
    let Some(chosen) = CHOSEN.get() else {
        return;
    };
    let mode = chosen.mode;
    let confined = match role {
        // The root of the file system is that of all threads, and others may still be opening files.
        Role::ConsoleFile => confine_thread(chosen),
        Role::Image => confine(),
        _ => Ok(()),
    };
    if let Err(error) = confined {
        log::warn!("{error}");
    }
    if mode == Mode::Off {
        return;
    }
    if role == Role::Image && mode == Mode::Log {
        // There is nobody in that process who could tell of calls.
        return;
    }
    if mode == Mode::Log {
        listener::start();
    }
    match seccomp::enter(role, mode) {
        Ok(()) => FILTERS.store(true, Ordering::Relaxed),
        Err(error) => {
            static SAID: AtomicBool = AtomicBool::new(false);
            if !SAID.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "the host has no seccomp filters ({}): system calls are not checked",
                    io_reason(&error)
                );
            }
        }
    }
}

/// What is on for this process, for Ctrl-a c.
pub fn status() -> String {
    let mode = match mode() {
        Mode::Off => return "off".into(),
        Mode::Log => "log",
        Mode::On => "on",
    };
    let filters = match FILTERS.load(Ordering::Relaxed) {
        true => "system calls by thread",
        false => "system calls unchecked",
    };
    let files = match LANDLOCK.load(Ordering::Relaxed) {
        0 => "no Landlock".to_owned(),
        abi => format!("no files and ports (Landlock ABI {abi})"),
    };
    format!("{mode}: {filters}, {files}, no capabilities")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `test` in a process of its own, which it may change for good, and fails where it does.
    pub fn in_a_child(test: impl FnOnce()) {
        // SAFETY: the child has one thread. What it does beyond async-signal-safe calls works with glibc, which
        // puts the allocator right after a fork.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
            // SAFETY: ends the child at once; nothing of the parent's is flushed or unlocked twice.
            unsafe { libc::_exit(i32::from(ended.is_err())) };
        }
        let mut status = 0;
        // SAFETY: the number is that of a child of ours.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child has failed: its output says why");
    }

    #[test]
    fn every_role_has_a_bit_and_a_name() {
        let bits = Role::ALL.iter().fold(0, |bits, role| bits | role.bit());
        assert_eq!(bits.count_ones() as usize, Role::ALL.len());
        for (at, role) in Role::ALL.iter().enumerate() {
            assert_eq!(*role as usize, at);
            assert!(
                Role::ALL[..at]
                    .iter()
                    .all(|other| other.name() != role.name())
            );
        }
    }
}
