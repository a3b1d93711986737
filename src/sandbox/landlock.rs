//! Landlock: no files, no ports, no signals to others (landlock(7)).
//!
//! Where seccomp looks at calls, Landlock looks at what they reach. Its domain is laid around the main thread when all
//! files of the machine are open, and before the other threads are started, which inherit it. What was opened before
//! stays open with all rights; so the domain needs no exception, and has none: no path, no port. It holds also where a
//! call is made for us by the kernel, such as by io_uring.
//!
//! How much of it there is depends on the host's kernel, which counts its abilities (the ABI): files from 1, moving and
//! truncating them from 2 and 3, TCP from 4, ioctls of devices from 5, signals and abstract sockets from 6.

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};

/// The newest that is asked for.
const NEWEST: ABI = ABI::V7;

/// Lays the domain around this thread and all that it starts; the ABI of which it is, 0 where the host has none.
///
/// # Errors
/// When the host's kernel has Landlock, and refuses.
pub fn enter() -> Result<u32, RulesetError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => 0,
        (_, LandlockStatus::Available { effective_abi, .. }) => number(effective_abi),
        _ => 0,
    })
}

/// The ABI that this host offers, at most the newest that is asked for; 0 where it has none.
pub fn offered() -> u32 {
    // SAFETY: with this flag the call takes no structure, and returns a number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(abi).unwrap_or(0).min(number(NEWEST))
}

/// linux/landlock.h
const CREATE_RULESET_VERSION: libc::c_uint = 1;

fn number(abi: ABI) -> u32 {
    (abi.min(NEWEST)) as u32
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_a_child;
    use super::*;

    #[test]
    fn there_are_no_files_behind_the_door() {
        if offered() == 0 {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = std::fs::File::open(file.path()).unwrap();
        in_a_child(|| {
            assert!(enter().unwrap() > 0);
            let refused = std::fs::File::open(file.path()).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
            assert!(std::fs::File::create(file.path().with_extension("new")).is_err());
            assert!(
                std::fs::File::open(format!(
                    "/proc/self/fd/{}",
                    std::os::fd::AsRawFd::as_raw_fd(&open)
                ))
                .is_err()
            );
            // What was open stays so.
            assert_eq!(std::io::Read::read(&mut &open, &mut [0]).unwrap(), 0);
            if offered() >= 6 {
                // SAFETY: asks whether a signal could be sent, and sends none.
                let (sent, parent) = unsafe { (libc::kill(libc::getppid(), 0), libc::getppid()) };
                assert_eq!(sent, -1, "{parent}");
            }
            if offered() >= 4 {
                let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
            }
        });
    }
}
