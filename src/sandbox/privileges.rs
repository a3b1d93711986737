//! What the process gives up of its user's rights: capabilities, the user itself, the rest of the file system, and
//! descriptors that it has inherited.
//!
//! Capabilities (capabilities(7)) are the parts of which root's power is made. A machine needs none of them once its files
//! are open, so all of them go, and with no_new_privs (PR_SET_NO_NEW_PRIVS) none comes back by a program that is executed.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};

use crate::error::{Help, io_reason};

/// linux/securebits.h: SECBIT_NOROOT and SECBIT_NO_CAP_AMBIENT_RAISE, both locked.
const NO_ROOT: libc::c_ulong = 1 | 1 << 1 | 1 << 6 | 1 << 7;

/// Where users are told.
const PASSWD: &str = "/etc/passwd";

/// Why a right could not be given up as the user has asked.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// `--user` without the right to change it.
    #[error("--user {user}: only root can become another user")]
    NotRoot {
        /// As it was given.
        user: String,
    },
    /// No line of /etc/passwd has it.
    #[error("--user {user}: there is no such user on this host")]
    NoUser {
        /// As it was given.
        user: String,
    },
    /// The kernel refuses.
    #[error("cannot become user {user}: {}", io_reason(source))]
    User {
        /// As it was given.
        user: String,
        /// The host's reason.
        source: io::Error,
    },
    /// `--chroot` without CAP_SYS_CHROOT.
    #[error("--chroot {}: only root can change the root of the file system", folder.display())]
    NoChroot {
        /// As it was given.
        folder: PathBuf,
    },
    /// The folder is none, or cannot be entered.
    #[error("--chroot {}: {}", folder.display(), io_reason(source))]
    Chroot {
        /// As it was given.
        folder: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The kernel refuses to take capabilities away.
    #[error("cannot give up root's capabilities: {0}")]
    Capabilities(String),
}

impl Help for PrivilegeError {
    fn help(&self) -> String {
        match self {
            PrivilegeError::NotRoot { .. } => {
                "leave --user away: the machine runs as you; or start it as root".into()
            }
            PrivilegeError::NoUser { .. } => {
                "name a user of /etc/passwd, or a number; 'adduser --system bantam' makes one".into()
            }
            PrivilegeError::User { .. } => {
                "inside a container, name a user that its user namespace has".into()
            }
            PrivilegeError::NoChroot { .. } => {
                "leave --chroot away, or start as root; Landlock keeps files away without it ('bantam check' tells)"
                    .into()
            }
            PrivilegeError::Chroot { .. } => {
                "name a folder that is there; it may be empty: mkdir /var/empty".into()
            }
            PrivilegeError::Capabilities(_) => "'--sandbox off' runs without this".into(),
        }
    }
}

/// Whether [`chroot`] would succeed.
///
/// # Errors
/// See [`PrivilegeError`].
pub fn check_chroot(folder: &Path) -> Result<(), PrivilegeError> {
    let refused = |source| PrivilegeError::Chroot {
        folder: folder.into(),
        source,
    };
    if !std::fs::metadata(folder).map_err(refused)?.is_dir() {
        return Err(refused(io::ErrorKind::NotADirectory.into()));
    }
    match may_change_root() {
        true => Ok(()),
        false => Err(PrivilegeError::NoChroot {
            folder: folder.into(),
        }),
    }
}

/// Makes `folder` the root of the file system for this process.
///
/// # Errors
/// See [`PrivilegeError`].
pub fn chroot(folder: &Path) -> Result<(), PrivilegeError> {
    let refused = |source: io::Error| match source.raw_os_error() {
        Some(libc::EPERM) => PrivilegeError::NoChroot {
            folder: folder.into(),
        },
        _ => PrivilegeError::Chroot {
            folder: folder.into(),
            source,
        },
    };
    std::os::unix::fs::chroot(folder).map_err(refused)?;
    // Else the working directory would still be outside.
    std::env::set_current_dir("/").map_err(refused)
}

/// Who a user is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    user: libc::uid_t,
    group: libc::gid_t,
}

/// Looks `user` up: a name of /etc/passwd, or a number, which is that of the group as well where no line has it.
///
/// # Errors
/// When there is no such user, or this process may not become another one.
pub fn look_up(user: &str) -> Result<Ids, PrivilegeError> {
    let passwd = std::fs::read_to_string(PASSWD).unwrap_or_default();
    let ids = find(&passwd, user).ok_or_else(|| PrivilegeError::NoUser { user: user.into() })?;
    match caps::has_cap(None, CapSet::Effective, Capability::CAP_SETUID) {
        Ok(true) => Ok(ids),
        _ => Err(PrivilegeError::NotRoot { user: user.into() }),
    }
}

fn find(passwd: &str, user: &str) -> Option<Ids> {
    let number = user.parse().ok();
    let line = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let ids = Ids {
            user: fields.nth(1)?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        };
        (name == user || number == Some(ids.user)).then_some(ids)
    });
    let ids = line.or_else(|| {
        number.map(|number| Ids {
            user: number,
            group: number,
        })
    });
    // To setresuid(2) the highest number means "as it is", which would be root.
    ids.filter(|ids| ids.user != libc::uid_t::MAX && ids.group != libc::gid_t::MAX)
}

/// Makes this thread, and those that it starts, that user's, in its own group and in no other. (setuid(2) of the C
/// library would have all threads of the process do the same, also those that may not do it any more.)
///
/// # Errors
/// Those of setgroups(2), setresgid(2) and setresuid(2).
pub fn become_user(user: &str, ids: Ids) -> Result<(), PrivilegeError> {
    let Ids {
        user: uid,
        group: gid,
    } = ids;
    let mut parents_end: libc::c_int = 0;
    // In this order: each takes a right away that the ones before it need. Where it is done already, nothing is. A new
    // user also makes the kernel forget which signal comes when the parent ends (PR_SET_PDEATHSIG(2const)), by which a
    // process of ours does not outlive this one.
    // SAFETY: the first call fills a number; there are no groups, so no other pointer is read.
    let done = unsafe {
        libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut parents_end);
        libc::geteuid() == uid
            || libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) == 0
                && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
                && libc::prctl(
                    libc::PR_SET_PDEATHSIG,
                    libc::c_ulong::from(parents_end.unsigned_abs()),
                    0,
                    0,
                    0,
                ) == 0
    };
    match done {
        true => Ok(()),
        false => Err(PrivilegeError::User {
            user: user.into(),
            source: io::Error::last_os_error(),
        }),
    }
}

/// Takes all capabilities from this thread and all that it starts, for ever.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_capabilities() -> Result<(), PrivilegeError> {
    let refused = |error: caps::errors::CapsError| PrivilegeError::Capabilities(error.to_string());
    // SAFETY: no pointers. With it no program that is executed gets what is lost here.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        let error = io::Error::last_os_error();
        return Err(PrivilegeError::Capabilities(io_reason(&error)));
    }
    // What a user without rights has, and most do.
    let permitted = caps::read(None, CapSet::Permitted).map_err(refused)?;
    let inheritable = caps::read(None, CapSet::Inheritable).map_err(refused)?;
    if permitted.is_empty() && inheritable.is_empty() {
        return Ok(());
    }
    // User 0 gets nothing back by executing a program, and no bit of this can be changed again. It says the same as an
    // empty bounding set, which would take a call for each capability.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        // SAFETY: no pointers.
        let done = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NO_ROOT, 0, 0, 0) };
        if done != 0 {
            let error = io::Error::last_os_error();
            return Err(PrivilegeError::Capabilities(io_reason(&error)));
        }
    }
    // Kernels before 4.3 have none of these.
    let _ = caps::clear(None, CapSet::Ambient);
    [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted]
        .into_iter()
        .try_for_each(|set| caps::clear(None, set))
        .map_err(refused)
}

/// Closes all descriptors but the standard ones and those that are named in `words`, as `/dev/fd/3` or
/// `/proc/self/fd/3`: they were somebody else's who has forgotten them, and no machine is to have them.
pub fn close_inherited<'a>(words: impl IntoIterator<Item = &'a OsStr>) {
    let mut kept: Vec<libc::c_uint> = words.into_iter().flat_map(named).collect();
    kept.sort_unstable();
    let mut first: libc::c_uint = 3;
    for fd in kept.into_iter().chain([libc::c_uint::MAX]) {
        if fd > first {
            let last = if fd == libc::c_uint::MAX {
                fd
            } else {
                fd.saturating_sub(1)
            };
            // Linux 5.9; an older one leaves them open.
            // SAFETY: nothing in this process has opened a descriptor that it counts on: this is its beginning.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
        first = first.max(fd.saturating_add(1));
    }
}

/// The descriptors that a word names.
fn named(word: &OsStr) -> Vec<libc::c_uint> {
    const WAYS: [&[u8]; 4] = [b"/dev/fd/", b"/self/fd/", b"/thread-self/fd/", b"/fd/"];
    let bytes = word.as_bytes();
    let mut found = Vec::new();
    for way in WAYS {
        for (at, _) in bytes
            .windows(way.len())
            .enumerate()
            .filter(|(_, part)| *part == way)
        {
            let rest = bytes
                .get(at.saturating_add(way.len())..)
                .unwrap_or_default();
            let digits: Vec<u8> = rest
                .iter()
                .copied()
                .take_while(u8::is_ascii_digit)
                .collect();
            found.extend(
                std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|digits| digits.parse::<libc::c_uint>().ok()),
            );
        }
    }
    found
}

/// Whether this process could become another user.
pub fn may_become_another_user() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SETUID).unwrap_or(false)
}

/// Whether this process could change its root.
pub fn may_change_root() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_CHROOT).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_a_child;
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nada:x:1000:100:Ada:/home/ada:/bin/sh\nbroken:x\n";
        let ids = |user, group| Some(Ids { user, group });
        assert_eq!(find(passwd, "ada"), ids(1000, 100));
        assert_eq!(find(passwd, "1000"), ids(1000, 100));
        assert_eq!(find(passwd, "65534"), ids(65534, 65534));
        assert_eq!(find(passwd, "broken"), None);
        assert_eq!(find(passwd, "nobody"), None);
        assert_eq!(find(passwd, "-1"), None);
        assert_eq!(find(passwd, "4294967295"), None, "it would stay root");
        let odd = "odd:x:4294967295:1::/:/bin/sh\nodder:x:1:4294967295::/:/bin/sh\n";
        assert_eq!((find(odd, "odd"), find(odd, "odder")), (None, None));
    }

    #[test]
    fn descriptors_are_named_by_paths() {
        let of = |word: &str| named(OsStr::new(word));
        assert!(of("/dev/fd/7,ro").contains(&7));
        assert!(of("file=/proc/self/fd/12").contains(&12));
        assert!(of("/proc/123/fd/9").contains(&9));
        assert!(of("/dev/fd/").is_empty() && of("fd/7").is_empty() && of("/dev/fd/x").is_empty());
    }

    #[test]
    fn what_is_not_named_is_closed() {
        let pipes = [std::io::pipe().unwrap(), std::io::pipe().unwrap()];
        let [named, forgotten] = pipes.map(|(reader, writer)| {
            drop(writer);
            std::os::fd::IntoRawFd::into_raw_fd(std::os::fd::OwnedFd::from(reader))
        });
        in_a_child(|| {
            close_inherited([OsStr::new(&format!("/dev/fd/{named}"))]);
            // SAFETY: asks for the flags of a descriptor, or learns that there is none.
            let is_open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
            assert!(is_open(named) && is_open(2) && !is_open(forgotten));
        });
        // SAFETY: they are ours and not used any more.
        unsafe { (libc::close(named), libc::close(forgotten)) };
    }

    #[test]
    fn no_capability_is_kept() {
        in_a_child(|| {
            let was_root = caps::has_cap(None, CapSet::Permitted, Capability::CAP_SETPCAP).unwrap();
            drop_capabilities().unwrap();
            for set in [
                CapSet::Permitted,
                CapSet::Effective,
                CapSet::Inheritable,
                CapSet::Ambient,
            ] {
                assert!(caps::read(None, set).unwrap().is_empty(), "{set:?}");
            }
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            assert!(status.contains("NoNewPrivs:\t1"));
            if was_root {
                // SAFETY: no pointers.
                let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) };
                assert_eq!(bits as libc::c_ulong, NO_ROOT);
            }
        });
    }

    #[test]
    fn the_user_is_changed_for_good() {
        if !may_become_another_user() {
            return;
        }
        in_a_child(|| {
            let ids = look_up("65534").unwrap();
            become_user("65534", ids).unwrap();
            // SAFETY: no pointers.
            let ids = unsafe { (libc::getuid(), libc::geteuid(), libc::setuid(0)) };
            assert_eq!(ids, (65534, 65534, -1));
            assert!(matches!(look_up("0"), Err(PrivilegeError::NotRoot { .. })));
        });
    }
}
