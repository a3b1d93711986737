//! What this host can do: /dev/kvm, its capabilities, and the kind of virtualization behind it.
//!
//! A start needs the first two, and an error that says what to do where one is missing. The kind decides
//! what a host runs: with VMX or SVM any kernel, with PVM only kernels that were built for it.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use kvm_ioctls::{Cap, Kvm};

use crate::error::{Help, io_reason};

/// The device.
pub const KVM_DEVICE: &str = "/dev/kvm";
/// There where KVM's vendor module is PVM.
const PVM_MODULE: &str = "/sys/module/kvm_pvm";
/// The API has been frozen at this number since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What Bantam cannot do without, and what each is for.
pub const NEEDED: [(Cap, &str, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest RAM"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "interrupt controllers"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "interrupts without a call"),
    (
        Cap::Ioeventfd,
        "KVM_CAP_IOEVENTFD",
        "notifications without an exit to user space",
    ),
    (Cap::Pit2, "KVM_CAP_PIT2", "timer"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "real mode on VMX"),
    (Cap::MpState, "KVM_CAP_MP_STATE", "more than one CPU"),
    (
        Cap::ImmediateExit,
        "KVM_CAP_IMMEDIATE_EXIT",
        "stopping a vCPU at once",
    ),
];

/// Who virtualizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// A host without either, whose KVM runs guests by page tables alone.
    Pvm,
    /// KVM is there, but what is behind it cannot be told.
    Unknown,
    /// No KVM.
    None,
}

impl Backend {
    /// What it means for the user.
    pub fn meaning(self) -> &'static str {
        match self {
            Backend::Vmx => "Intel VT-x: guests run at native speed",
            Backend::Svm => "AMD-V: guests run at native speed",
            Backend::Pvm => {
                "PVM: no hardware virtualization; only kernels built with CONFIG_PVM_GUEST run at speed, a stock kernel does not boot"
            }
            Backend::Unknown => "KVM without the vmx or svm CPU flag: an unknown backend",
            Backend::None => "no KVM: no guest can run",
        }
    }
}

/// Whether the guest's kernel would run in ring 3, under PVM. Costs one look where it would not, and is found out
/// once: the report of a crash, which asks again, can open no file.
pub fn is_pvm() -> bool {
    static IS_PVM: OnceLock<bool> = OnceLock::new();
    *IS_PVM.get_or_init(|| Path::new(PVM_MODULE).exists() && backend() == Backend::Pvm)
}

/// Finds out who virtualizes on this host.
pub fn backend() -> Backend {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| {
        flags
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|line| line.split_whitespace().any(|word| word == flag))
    };
    if !Path::new(KVM_DEVICE).exists() {
        Backend::None
    } else if has("vmx") {
        Backend::Vmx
    } else if has("svm") {
        Backend::Svm
    } else if Path::new(PVM_MODULE).exists() {
        Backend::Pvm
    } else {
        Backend::Unknown
    }
}

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No device.
    #[error("/dev/kvm does not exist")]
    Missing,
    /// Not ours to open.
    #[error("/dev/kvm: permission denied for user {user}")]
    Permission {
        /// Who we are.
        user: String,
        /// The group that may, where there is one.
        group: Option<String>,
    },
    /// Somebody else has the CPU's virtualization.
    #[error("/dev/kvm is busy: another hypervisor holds the CPU's virtualization")]
    Busy,
    /// Another reason of open(2).
    #[error("/dev/kvm: {}", io_reason(.0))]
    Open(#[source] io::Error),
    /// Not the API that everybody has.
    #[error("/dev/kvm speaks API version {0}, not {API_VERSION}")]
    Version(i32),
    /// A capability is missing.
    #[error("KVM on this host lacks {name}, needed for {purpose}")]
    Capability {
        /// KVM_CAP_...
        name: &'static str,
        /// What it is for.
        purpose: &'static str,
    },
}

impl Help for KvmError {
    fn help(&self) -> String {
        match self {
            KvmError::Missing => {
                "load the module (modprobe kvm_intel or kvm_amd) and enable virtualization in the firmware; 'bantam check' says more".into()
            }
            KvmError::Permission { user, group } => match group {
                Some(group) => format!("run 'sudo adduser {user} {group}' and log in again"),
                None => "run as root, or 'sudo chmod 666 /dev/kvm'".into(),
            },
            KvmError::Busy => {
                "stop the other hypervisor (VirtualBox, VMware ...) and try again".into()
            }
            KvmError::Open(_) => "look at what the host's kernel says of it: dmesg | grep -i kvm".into(),
            KvmError::Version(_) => "update the host's kernel".into(),
            KvmError::Capability { .. } => {
                "update the host's kernel; 'bantam check' lists all that is needed".into()
            }
        }
    }
}

/// The error that a failed open or KVM_CREATE_VM of /dev/kvm means.
pub fn explain(error: io::Error) -> KvmError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => KvmError::Missing,
        Some(libc::EACCES | libc::EPERM) => KvmError::Permission {
            user: user_name(),
            group: device_group(),
        },
        Some(libc::EBUSY) => KvmError::Busy,
        _ => KvmError::Open(error),
    }
}

/// Opens /dev/kvm and checks that it has all that is [`NEEDED`].
///
/// # Errors
/// See [`KvmError`].
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| explain(error.into()))?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::Version(version));
    }
    match NEEDED.iter().find(|(cap, ..)| !kvm.check_extension(*cap)) {
        Some((_, name, purpose)) => Err(KvmError::Capability { name, purpose }),
        None => Ok(kvm),
    }
}

/// Name of the user that runs this process.
pub fn user_name() -> String {
    // SAFETY: geteuid cannot fail and touches no memory.
    let uid = unsafe { libc::geteuid() };
    lookup("/etc/passwd", uid).unwrap_or_else(|| uid.to_string())
}

/// The group that /dev/kvm belongs to, when its members may open it.
pub fn device_group() -> Option<String> {
    let meta = std::fs::metadata(KVM_DEVICE).ok()?;
    let members_may = meta.mode() & 0o060 == 0o060 && meta.gid() != 0;
    members_may
        .then(|| lookup("/etc/group", meta.gid()))
        .flatten()
}

/// The name that has `id` in the third field of a passwd-like file.
fn lookup(file: &str, id: u32) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let id = id.to_string();
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).is_some_and(|field| *field == id))
        .and_then(|fields| fields.first().map(|name| (*name).to_owned()))
}

/// Whether this process may open /dev/kvm for reading and writing.
pub fn may_open() -> bool {
    let Ok(path) = CString::new(KVM_DEVICE) else {
        return false;
    };
    // SAFETY: the path is a valid C string for the call.
    unsafe { libc::access(path.as_ptr(), libc::R_OK | libc::W_OK) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_words() {
        let of = |errno| explain(io::Error::from_raw_os_error(errno));
        assert!(matches!(of(libc::ENOENT), KvmError::Missing));
        assert!(matches!(of(libc::EACCES), KvmError::Permission { .. }));
        assert!(matches!(of(libc::EBUSY), KvmError::Busy));
        let named = KvmError::Permission {
            user: "ada".into(),
            group: Some("kvm".into()),
        };
        assert_eq!(named.help(), "run 'sudo adduser ada kvm' and log in again");
    }
}
