//! What of the sandbox this host offers, for `bantam check`.

use serde::Serialize;

use super::{landlock, privileges, seccomp};

/// One of its means.
#[derive(Debug, Serialize)]
pub struct Means {
    /// What it is called.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether this process could have it.
    pub available: bool,
    /// What is to be said besides.
    pub detail: String,
}

/// All of them.
pub fn examine() -> Vec<Means> {
    let abi = landlock::offered();
    let means = |name, purpose, available, detail: &str| Means {
        name,
        purpose,
        available,
        detail: detail.into(),
    };
    let filters = seccomp::knows(libc::SECCOMP_RET_TRAP);
    vec![
        means(
            "seccomp",
            "system calls by thread",
            filters,
            if filters {
                ""
            } else {
                "the kernel has no CONFIG_SECCOMP_FILTER, or a container forbids it"
            },
        ),
        means(
            "seccomp log",
            "--sandbox log",
            seccomp::knows(libc::SECCOMP_RET_USER_NOTIF),
            "",
        ),
        means(
            "landlock",
            "no files and ports",
            abi > 0,
            &match abi {
                0 => "not in the kernel's list of security modules (lsm=landlock,...)".to_owned(),
                abi => format!("ABI {abi}"),
            },
        ),
        means(
            "user",
            "--user",
            privileges::may_become_another_user(),
            "for root alone",
        ),
        means(
            "chroot",
            "--chroot",
            privileges::may_change_root(),
            "for root alone",
        ),
    ]
}
