//! Why a machine cannot be started, once its configuration and files are in order.

use std::io;
use std::path::PathBuf;

use super::host;
use crate::board::SiteError;
use crate::console::ConsoleError;
use crate::error::{Help, io_reason};
use crate::memory::MapError;
use crate::sandbox::privileges::PrivilegeError;

/// See [`Machine`](super::Machine).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// /dev/kvm cannot be opened or used.
    #[error(transparent)]
    Kvm(#[from] host::KvmError),
    /// Linux that is not built for PVM, where KVM is PVM.
    #[error(
        "kernel {} does not boot on this host: its KVM is PVM, which runs only kernels built with \
         CONFIG_PVM_GUEST",
        path.display()
    )]
    LostOnPvm {
        /// The kernel.
        path: PathBuf,
        /// What would run it.
        command: String,
    },
    /// mmap(2) refused.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The console cannot be opened.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// What the user asks the sandbox for cannot be done.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// More vCPUs than KVM makes.
    #[error("--cpus {cpus}: KVM on this host makes at most {max}")]
    Cpus {
        /// Asked for.
        cpus: u32,
        /// KVM_CAP_MAX_VCPUS.
        max: usize,
    },
    /// A KVM call failed.
    #[error("{call} failed: {}", io_reason(source))]
    Call {
        /// The ioctl.
        call: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// Another call of the host failed.
    #[error("cannot {what}: {}", io_reason(source))]
    Host {
        /// What was to be done.
        what: String,
        /// The host's reason.
        source: io::Error,
    },
    /// A file has changed since it was looked at.
    #[error("cannot load {} into guest memory: {}", path.display(), io_reason(source))]
    Load {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Boot tables could not be written.
    #[error("cannot write the boot tables: {0}")]
    Tables(String),
    /// What cannot be, unless Bantam itself is wrong.
    #[error("{0}")]
    Defect(String),
}

impl Help for StartError {
    fn help(&self) -> String {
        match self {
            StartError::Kvm(error) => error.help(),
            StartError::LostOnPvm { command, .. } => format!(
                "run it in the lab, from the source's folder: {command}; or on a host with VMX or SVM"
            ),
            StartError::Memory(error) => error.help(),
            StartError::Console(error) => error.help(),
            StartError::Privilege(error) => error.help(),
            StartError::Cpus { max, .. } => format!("give at most --cpus {max}"),
            StartError::Call { .. } => {
                "'bantam check' tells whether this host has what is needed".into()
            }
            StartError::Host { source, .. } if source.raw_os_error() == Some(libc::EAGAIN) => {
                "raise the limit of threads: ulimit -u, or pids.max of the cgroup".into()
            }
            StartError::Host { source, .. } => match source.raw_os_error() {
                Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                    "give yourself the right to it, or choose another place".into()
                }
                Some(libc::ENOSPC | libc::EDQUOT) => {
                    "raise the limit: sysctl fs.epoll.max_user_watches".into()
                }
                Some(_) => "check the limits of this user (ulimit -a) and of its cgroup".into(),
                None => "this is a defect of bantam: report it with the line above".into(),
            },
            StartError::Load { .. } => {
                "do not change images while a machine starts from them".into()
            }
            StartError::Defect(_) => {
                "this is a defect of bantam: report it with the line above".into()
            }
            StartError::Tables(_) => "give the machine more memory with --memory".into(),
        }
    }
}

/// A part of the machine cannot be built.
impl From<SiteError> for StartError {
    fn from(error: SiteError) -> Self {
        match error {
            SiteError::Call { call, source } => StartError::Call { call, source },
            SiteError::Host { what, source } => host(what)(source),
            SiteError::Overlap(overlap) => StartError::Defect(overlap.to_string()),
        }
    }
}

/// Turns a failed KVM call into an error that names it.
pub(crate) fn call(call: &'static str) -> impl Fn(vmm_sys_util::errno::Error) -> StartError {
    move |error| StartError::Call {
        call,
        source: error.into(),
    }
}

/// Turns a failed host call into an error that says what was to be done.
pub(crate) fn host(what: &str) -> impl Fn(io::Error) -> StartError + '_ {
    move |source| StartError::Host {
        what: what.to_owned(),
        source,
    }
}
