//! The calls to the kernel that a machine makes, and how each of them can fail on a host that is sick.

use std::collections::BTreeMap;

use libc::{
    EAGAIN, EBUSY, EINTR, EIO, EMFILE, ENFILE, ENOLCK, ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM,
    c_int, c_long,
};

use crate::tracer::Call;

/// A kind of call: its name, its number, and the errors that make sense for it.
pub struct Kind {
    pub name: &'static str,
    pub number: c_long,
    pub errors: &'static [c_int],
    /// It moves bytes, and may move fewer than it was asked to.
    pub moves: bool,
}

const fn kind(name: &'static str, number: c_long, errors: &'static [c_int]) -> Kind {
    Kind {
        name,
        number,
        errors,
        moves: false,
    }
}

const fn moving(name: &'static str, number: c_long, errors: &'static [c_int]) -> Kind {
    Kind {
        name,
        number,
        errors,
        moves: true,
    }
}

const READ: &[c_int] = &[EINTR, EAGAIN, EIO, ENOMEM];
const WRITE: &[c_int] = &[EINTR, EAGAIN, ENOSPC, EIO];
const SYNC: &[c_int] = &[EINTR, EIO, ENOSPC];
const OPEN: &[c_int] = &[EINTR, EMFILE, ENFILE, ENOMEM, EIO, ENOSPC];
const DESCRIPTOR: &[c_int] = &[EMFILE, ENFILE, ENOMEM];
const MEMORY: &[c_int] = &[ENOMEM, EAGAIN];
const LOOK: &[c_int] = &[EIO, ENOMEM];
const NAME: &[c_int] = &[EIO, ENOSPC, EPERM];
const WAIT: &[c_int] = &[EINTR];
const NOTHING: &[c_int] = &[];

/// What is tried. A call with no errors cannot fail, for all that it is given, or its failure has no meaning.
pub const KINDS: &[Kind] = &[
    moving("read", libc::SYS_read, READ),
    moving("pread64", libc::SYS_pread64, READ),
    moving("readv", libc::SYS_readv, READ),
    moving("preadv", libc::SYS_preadv, READ),
    moving("preadv2", libc::SYS_preadv2, READ),
    moving("write", libc::SYS_write, WRITE),
    moving("pwrite64", libc::SYS_pwrite64, WRITE),
    moving("writev", libc::SYS_writev, WRITE),
    moving("pwritev", libc::SYS_pwritev, WRITE),
    moving("pwritev2", libc::SYS_pwritev2, WRITE),
    moving(
        "copy_file_range",
        libc::SYS_copy_file_range,
        &[EINTR, EIO, ENOSPC, ENOMEM, EOPNOTSUPP],
    ),
    moving("sendmsg", libc::SYS_sendmsg, &[EINTR, EAGAIN, ENOMEM]),
    moving("recvmsg", libc::SYS_recvmsg, &[EINTR, EAGAIN, ENOMEM]),
    moving("sendto", libc::SYS_sendto, &[EINTR, EAGAIN, ENOMEM]),
    moving("recvfrom", libc::SYS_recvfrom, &[EINTR, EAGAIN, ENOMEM]),
    kind("fsync", libc::SYS_fsync, SYNC),
    kind("fdatasync", libc::SYS_fdatasync, SYNC),
    kind(
        "fallocate",
        libc::SYS_fallocate,
        &[EINTR, ENOSPC, EIO, EOPNOTSUPP],
    ),
    kind("ftruncate", libc::SYS_ftruncate, &[EINTR, ENOSPC, EIO]),
    kind("lseek", libc::SYS_lseek, &[EIO]),
    kind("openat", libc::SYS_openat, OPEN),
    kind("open", libc::SYS_open, OPEN),
    kind("fstat", libc::SYS_fstat, LOOK),
    kind("statx", libc::SYS_statx, LOOK),
    kind("newfstatat", libc::SYS_newfstatat, LOOK),
    kind("fstatfs", libc::SYS_fstatfs, LOOK),
    kind("readlink", libc::SYS_readlink, LOOK),
    kind("readlinkat", libc::SYS_readlinkat, LOOK),
    kind("getdents64", libc::SYS_getdents64, LOOK),
    kind("getcwd", libc::SYS_getcwd, LOOK),
    kind("access", libc::SYS_access, LOOK),
    kind("linkat", libc::SYS_linkat, NAME),
    kind("rename", libc::SYS_rename, NAME),
    kind("renameat2", libc::SYS_renameat2, NAME),
    kind("unlink", libc::SYS_unlink, NAME),
    kind("unlinkat", libc::SYS_unlinkat, NAME),
    kind("mkdir", libc::SYS_mkdir, NAME),
    kind("chmod", libc::SYS_chmod, NAME),
    kind("fchmod", libc::SYS_fchmod, NAME),
    kind("utimensat", libc::SYS_utimensat, NAME),
    kind("fcntl", libc::SYS_fcntl, &[EINTR, EAGAIN, EMFILE, ENOLCK]),
    kind(
        "ioctl",
        libc::SYS_ioctl,
        &[EINTR, EAGAIN, ENOMEM, EIO, EMFILE, ENOSPC],
    ),
    kind("mmap", libc::SYS_mmap, MEMORY),
    kind("mremap", libc::SYS_mremap, MEMORY),
    kind("mprotect", libc::SYS_mprotect, &[ENOMEM]),
    kind("madvise", libc::SYS_madvise, MEMORY),
    kind("memfd_create", libc::SYS_memfd_create, DESCRIPTOR),
    kind("clone3", libc::SYS_clone3, MEMORY),
    kind("clone", libc::SYS_clone, MEMORY),
    kind("eventfd2", libc::SYS_eventfd2, DESCRIPTOR),
    kind("timerfd_create", libc::SYS_timerfd_create, DESCRIPTOR),
    kind("signalfd4", libc::SYS_signalfd4, DESCRIPTOR),
    kind("pipe2", libc::SYS_pipe2, DESCRIPTOR),
    kind("socketpair", libc::SYS_socketpair, DESCRIPTOR),
    kind("dup3", libc::SYS_dup3, &[EINTR, EMFILE, EBUSY]),
    kind("epoll_create1", libc::SYS_epoll_create1, DESCRIPTOR),
    kind("epoll_ctl", libc::SYS_epoll_ctl, &[ENOMEM, ENOSPC]),
    kind("epoll_wait", libc::SYS_epoll_wait, WAIT),
    kind("epoll_pwait", libc::SYS_epoll_pwait, WAIT),
    kind("poll", libc::SYS_poll, &[EINTR, ENOMEM]),
    kind("ppoll", libc::SYS_ppoll, &[EINTR, ENOMEM]),
    kind("futex", libc::SYS_futex, &[EINTR, EAGAIN]),
    kind("nanosleep", libc::SYS_nanosleep, WAIT),
    kind("clock_nanosleep", libc::SYS_clock_nanosleep, WAIT),
    kind(
        "io_uring_setup",
        libc::SYS_io_uring_setup,
        &[EMFILE, ENOMEM, EPERM, ENOSYS],
    ),
    kind(
        "io_uring_enter",
        libc::SYS_io_uring_enter,
        &[EINTR, EAGAIN, EBUSY, ENOMEM],
    ),
    kind(
        "io_uring_register",
        libc::SYS_io_uring_register,
        &[ENOMEM, EMFILE, EBUSY],
    ),
    kind("getrandom", libc::SYS_getrandom, &[EINTR, EAGAIN, ENOSYS]),
    // The queue of real-time signals is full (RLIMIT_SIGPENDING).
    kind("tgkill", libc::SYS_tgkill, &[EAGAIN]),
    kind("wait4", libc::SYS_wait4, WAIT),
    kind("close", libc::SYS_close, &[EINTR, EIO, ENOSPC]),
    kind("prctl", libc::SYS_prctl, &[EPERM]),
    kind("dup2", libc::SYS_dup2, &[EINTR, EMFILE, EBUSY]),
    kind("waitid", libc::SYS_waitid, WAIT),
    kind("setsockopt", libc::SYS_setsockopt, &[ENOMEM]),
    // The sandbox: a host that has a part of it not.
    kind("seccomp", libc::SYS_seccomp, &[ENOSYS, ENOMEM]),
    kind("close_range", libc::SYS_close_range, &[ENOSYS, ENOMEM]),
    kind(
        "landlock_create_ruleset",
        libc::SYS_landlock_create_ruleset,
        &[ENOSYS, EOPNOTSUPP, EMFILE],
    ),
    kind("landlock_add_rule", libc::SYS_landlock_add_rule, &[ENOMEM]),
    kind(
        "landlock_restrict_self",
        libc::SYS_landlock_restrict_self,
        &[EPERM, ENOMEM],
    ),
    kind("capset", libc::SYS_capset, &[EPERM]),
    // From here on: nothing to be tried.
    kind("capget", libc::SYS_capget, NOTHING),
    kind("getppid", libc::SYS_getppid, NOTHING),
    // The C library ends the program where a thread's stack cannot be unmapped (max_map_count), and nobody can prevent it.
    kind("munmap", libc::SYS_munmap, NOTHING),
    kind("brk", libc::SYS_brk, NOTHING), // says how far it is, and malloc then asks mmap
    kind("timerfd_settime", libc::SYS_timerfd_settime, NOTHING),
    kind("restart_syscall", libc::SYS_restart_syscall, NOTHING),
    kind("rt_sigaction", libc::SYS_rt_sigaction, NOTHING),
    kind("rt_sigprocmask", libc::SYS_rt_sigprocmask, NOTHING),
    kind("rt_sigreturn", libc::SYS_rt_sigreturn, NOTHING),
    kind("sigaltstack", libc::SYS_sigaltstack, NOTHING),
    kind("set_robust_list", libc::SYS_set_robust_list, NOTHING),
    kind("set_tid_address", libc::SYS_set_tid_address, NOTHING),
    kind("rseq", libc::SYS_rseq, NOTHING),
    kind("arch_prctl", libc::SYS_arch_prctl, NOTHING),
    kind("prlimit64", libc::SYS_prlimit64, NOTHING),
    kind("sched_getaffinity", libc::SYS_sched_getaffinity, NOTHING),
    kind("sched_yield", libc::SYS_sched_yield, NOTHING),
    kind("getpid", libc::SYS_getpid, NOTHING),
    kind("gettid", libc::SYS_gettid, NOTHING),
    kind("getpgrp", libc::SYS_getpgrp, NOTHING),
    kind("getuid", libc::SYS_getuid, NOTHING),
    kind("geteuid", libc::SYS_geteuid, NOTHING),
    kind("getgid", libc::SYS_getgid, NOTHING),
    kind("getegid", libc::SYS_getegid, NOTHING),
    kind("getresuid", libc::SYS_getresuid, NOTHING),
    kind("getresgid", libc::SYS_getresgid, NOTHING),
    kind("uname", libc::SYS_uname, NOTHING),
    kind("umask", libc::SYS_umask, NOTHING),
    kind("sysinfo", libc::SYS_sysinfo, NOTHING),
    kind("clock_gettime", libc::SYS_clock_gettime, NOTHING),
    kind("exit", libc::SYS_exit, NOTHING),
    kind("exit_group", libc::SYS_exit_group, NOTHING),
    kind("execve", libc::SYS_execve, NOTHING),
];

/// The detail of a read or write of an event fd, a timer fd or a signal fd.
const EVENT: u64 = 1;

fn is_event(call: &Call) -> bool {
    let link = format!("/proc/{}/fd/{}", call.process, call.args[0]);
    std::fs::read_link(link).is_ok_and(|to| to.to_string_lossy().starts_with("anon_inode:["))
}

/// Which of the calls of a kind: of an ioctl its request, of a futex its operation, of an fcntl its command; whether a
/// read or write is one of an event fd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Which {
    pub number: c_long,
    pub detail: u64,
}

impl Which {
    pub fn of(call: &Call) -> Self {
        let detail = match call.number {
            libc::SYS_ioctl | libc::SYS_fcntl | libc::SYS_io_uring_register | libc::SYS_prctl => {
                let at = usize::from(call.number != libc::SYS_prctl);
                call.args[at] & 0xffff_ffff
            }
            libc::SYS_futex => call.args[1] & 0x7f,
            libc::SYS_read | libc::SYS_write if is_event(call) => EVENT,
            _ => 0,
        };
        Which {
            number: call.number,
            detail,
        }
    }

    pub fn kind(&self) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.number == self.number)
    }

    /// Whether a transfer of fewer bytes than were asked for can be.
    pub fn moves(&self) -> bool {
        let event = matches!(self.number, libc::SYS_read | libc::SYS_write) && self.detail == EVENT;
        !event && self.kind().is_some_and(|kind| kind.moves)
    }

    pub fn name(&self) -> String {
        match (self.kind(), self.detail) {
            (None, _) => format!("call {}", self.number),
            (Some(kind), 0) => kind.name.to_owned(),
            (Some(kind), detail) => format!("{}/{detail:#x}", kind.name),
        }
    }

    /// The errors to be tried.
    pub fn errors(&self) -> &'static [c_int] {
        const FUTEX_WAKE: u64 = 1;
        match (self.number, self.detail) {
            // Nobody can be interrupted in a wake-up.
            (libc::SYS_futex, FUTEX_WAKE) => NOTHING,
            // Its counter is never so full that there is no room for one more, and nothing else can go wrong.
            (libc::SYS_write, EVENT) => NOTHING,
            (libc::SYS_read, EVENT) => &[EINTR, EAGAIN],
            _ => self.kind().map_or(NOTHING, |kind| kind.errors),
        }
    }
}

/// How often each call was made.
pub type Counts = BTreeMap<Which, u64>;

/// Names of the errors, for messages.
pub fn error_name(errno: c_int) -> &'static str {
    match errno {
        EAGAIN => "EAGAIN",
        EBUSY => "EBUSY",
        EINTR => "EINTR",
        EIO => "EIO",
        EMFILE => "EMFILE",
        ENFILE => "ENFILE",
        ENOLCK => "ENOLCK",
        ENOMEM => "ENOMEM",
        ENOSPC => "ENOSPC",
        ENOSYS => "ENOSYS",
        EOPNOTSUPP => "EOPNOTSUPP",
        EPERM => "EPERM",
        _ => "an error",
    }
}
