//! The table of system calls: which thread may make which one, with which arguments, and why.
//!
//! A row allows one use of a call to some roles. A call may have several rows, of which one has to fit. What no row
//! allows ends the program ([`violation`](super::violation)). The rows say what a thread does *after* it has gone through
//! the door ([`enter`](super::enter)); before that it may do what the user may. docs/sandbox.md shows the same table, and
//! a test holds the two together.
//!
//! Arguments are numbers here. A filter of the kernel cannot follow a pointer, so a path or a structure in memory is out
//! of its reach; calls that take a path are allowed to nobody.

use libc::{
    AT_EMPTY_PATH, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE,
    FUTEX_CLOCK_REALTIME, FUTEX_PRIVATE_FLAG, FUTEX_WAIT, FUTEX_WAIT_BITSET, FUTEX_WAKE,
};
use syscalls::Sysno;

use super::Role;
use super::kvm::{KVM_LOOK, KVM_RUN, KVM_SETUP};

/// Roles, as bits.
pub type Roles = u8;

const MAIN: Roles = Role::Main.bit();
const REBOOT: Roles = Role::MainReboot.bit();
const VCPU: Roles = Role::Vcpu.bit();
const IO: Roles = Role::Io.bit();
const POOL: Roles = Role::Pool.bit();
const IMAGE: Roles = Role::Image.bit();
const FILE: Roles = Role::ConsoleFile.bit();
const WATCH: Roles = Role::ImageWatch.bit();
/// Those that move the bytes of disks.
const DISK: Roles = IO | POOL | IMAGE;
/// Those with an event loop.
const LOOP: Roles = MAIN | IO;
const ALL: Roles = MAIN | VCPU | IO | POOL | IMAGE | FILE | WATCH;

/// What an argument has to be. The number is its place: 0 for the first.
#[derive(Debug, Clone, Copy)]
pub enum Pin {
    /// One of these values, in its lower 32 bits: what the kernel takes as an int.
    Is(u8, &'static [u64]),
    /// Any value but this one, in its lower 32 bits.
    IsNot(u8, u64),
    /// Exactly this value, in all 64 bits.
    IsAll(u8, u64),
    /// A value without these bits, which are among its lower 32.
    Without(u8, u64),
    /// A value with these bits, which are among its lower 32.
    With(u8, u64),
    /// The number of this process.
    OurProcess(u8),
}

impl Pin {
    /// Which argument it is about.
    pub fn argument(self) -> u8 {
        match self {
            Pin::Is(at, _)
            | Pin::IsNot(at, _)
            | Pin::IsAll(at, _)
            | Pin::Without(at, _)
            | Pin::With(at, _)
            | Pin::OurProcess(at) => at,
        }
    }
}

/// What becomes of a call that a row fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is made.
    Allow,
    /// It fails with this error, as on a kernel that has no such call.
    Fail(u16),
}

/// One use of a system call.
#[derive(Debug)]
pub struct Row {
    /// The call.
    pub call: Sysno,
    /// Who may make it.
    pub roles: Roles,
    /// What holds for its arguments; all of these.
    pub pins: &'static [Pin],
    /// The same in words; nothing where no argument is pinned.
    pub only: &'static str,
    /// What it is needed for.
    pub why: &'static str,
    /// What becomes of it.
    pub answer: Answer,
}

impl Row {
    /// Whether `role` may make this use of the call.
    ///
    /// Threads that are started by a thread with a filter have that filter as well, below their own. So the main
    /// thread of a machine that starts again has all rows of the threads that it starts.
    pub fn is_for(&self, role: Role) -> bool {
        let roles = match role {
            Role::MainReboot => REBOOT | MAIN | VCPU | IO | POOL | FILE | WATCH,
            role => role.bit(),
        };
        self.roles & roles != 0
    }
}

const fn row(call: Sysno, roles: Roles, why: &'static str) -> Row {
    only(call, roles, &[], "", why)
}

const fn only(
    call: Sysno,
    roles: Roles,
    pins: &'static [Pin],
    only: &'static str,
    why: &'static str,
) -> Row {
    Row {
        call,
        roles,
        pins,
        only,
        why,
        answer: Answer::Allow,
    }
}

/// The calls that are made for every exit and every lock, and whose arguments are pinned: a filter looks for these before
/// all others. (What is allowed with any argument costs nothing: the kernel does not ask the filter, since Linux 5.11.)
pub const OFTEN: [Sysno; 2] = [Sysno::ioctl, Sysno::futex];

use Pin::{Is, IsAll, IsNot, OurProcess, With, Without};

/// Questions about a block device (linux/fs.h): the bytes of a sector, and the length.
const BLKSSZGET: u64 = 0x1268;
const BLKGETSIZE64: u64 = 0x8008_1272;

/// All rows, by subject.
pub const TABLE: &[Row] = &[
    // The guest.
    only(
        Sysno::ioctl,
        VCPU,
        &[Is(1, &[KVM_RUN])],
        "KVM_RUN",
        "runs the guest",
    ),
    only(
        Sysno::ioctl,
        VCPU,
        &[Is(1, KVM_LOOK)],
        "KVM_KVMCLOCK_CTRL, KVM_GET_REGS, KVM_GET_SREGS, KVM_GET_MP_STATE, KVM_TRANSLATE",
        "a pause, Ctrl-a c, and the report of a crash",
    ),
    // Files that are open.
    row(
        Sysno::read,
        ALL,
        "event fds, timers, the terminal, standard input",
    ),
    row(Sysno::write, ALL, "event fds, the console, messages"),
    row(
        Sysno::writev,
        ALL,
        "what the C library says before it ends the program",
    ),
    row(Sysno::close, ALL, "the end of what a thread holds"),
    row(Sysno::preadv, DISK, "reads of disks"),
    row(Sysno::pwritev, DISK, "writes of disks"),
    row(
        Sysno::pwritev2,
        DISK,
        "writes that are durable when they return",
    ),
    row(
        Sysno::pread64,
        DISK | FILE,
        "the copy of an overlay's grain, the tables of an image, the console's file, when it is full",
    ),
    row(
        Sysno::pwrite64,
        DISK | FILE,
        "zeros, an overlay's grain, the tables of an image, the console's file, when it is full",
    ),
    row(Sysno::fdatasync, DISK, "FLUSH"),
    row(Sysno::fsync, DISK, "FLUSH of a qcow2 image"),
    only(
        Sysno::fallocate,
        DISK,
        &[Is(1, &[0, PUNCH, ZERO])],
        "mode: allocate, punch a hole, zero a range",
        "DISCARD and WRITE_ZEROES; a qcow2 image that grows",
    ),
    row(
        Sysno::ftruncate,
        DISK | FILE,
        "a qcow2 image that grows; the console's file, when it is full",
    ),
    row(
        Sysno::lseek,
        DISK | FILE,
        "the length of an image; the console's file, when it is full",
    ),
    only(
        Sysno::statx,
        DISK | FILE,
        &[With(2, AT_EMPTY_PATH as u64)],
        "AT_EMPTY_PATH: of an open file",
        "the length and kind of an open file",
    ),
    only(
        Sysno::newfstatat,
        DISK | FILE,
        &[With(3, AT_EMPTY_PATH as u64)],
        "AT_EMPTY_PATH: of an open file",
        "the length and kind of an open file",
    ),
    row(
        Sysno::fstat,
        DISK | FILE,
        "the length and kind of an open file",
    ),
    only(
        Sysno::fcntl,
        IMAGE,
        &[Is(1, &[libc::F_GETFL as u64])],
        "F_GETFL",
        "how an image was opened",
    ),
    only(
        Sysno::ioctl,
        IMAGE,
        &[Is(1, &[BLKSSZGET, BLKGETSIZE64])],
        "BLKSSZGET, BLKGETSIZE64",
        "the blocks and the length of a block device",
    ),
    row(Sysno::fstatfs, IMAGE, "on what file system an image is"),
    only(
        Sysno::fcntl,
        ALL,
        &[Is(1, &[libc::F_GETFD as u64])],
        "F_GETFD",
        "a debug build asks whether a descriptor that it closes is open",
    ),
    row(
        Sysno::io_uring_enter,
        IO | VCPU,
        "requests of disks; a vCPU that resets a disk waits for those in flight",
    ),
    // Events.
    row(Sysno::epoll_wait, LOOP, "an event loop waits"),
    row(
        Sysno::epoll_ctl,
        LOOP,
        "standard output is full, or has room again",
    ),
    row(
        Sysno::timerfd_settime,
        LOOP | VCPU,
        "rate limits, the serial port's timer, the time to power off",
    ),
    row(
        Sysno::poll,
        MAIN | IMAGE | FILE,
        "waits for a reader of the console",
    ),
    row(
        Sysno::ppoll,
        MAIN | IMAGE | FILE,
        "the same, with a deadline",
    ),
    // The terminal.
    only(
        Sysno::ioctl,
        ALL,
        &[Is(0, &[0]), Is(1, &[libc::TCGETS, libc::TCSETS])],
        "standard input, TCGETS and TCSETS",
        "gives the terminal back, also from a panic or a fatal signal",
    ),
    only(
        Sysno::ioctl,
        MAIN,
        &[Is(1, &[libc::TCGETS, libc::TIOCGWINSZ, libc::TIOCGPGRP])],
        "TCGETS, TIOCGWINSZ, TIOCGPGRP",
        "whether there is a terminal, whose it is, and its size",
    ),
    row(
        Sysno::getpgrp,
        MAIN,
        "whether the terminal is ours after SIGCONT",
    ),
    row(
        Sysno::getpgid,
        MAIN,
        "the same, as another C library asks it",
    ),
    // The process that reads a disk image, and those who talk with it.
    row(
        Sysno::sendmsg,
        IO | POOL | IMAGE | REBOOT,
        "words to the other side, with an event fd or a file",
    ),
    row(
        Sysno::recvmsg,
        IO | POOL | IMAGE | REBOOT,
        "words from the other side, with an event fd or a file",
    ),
    row(
        Sysno::recvfrom,
        IO | POOL | IMAGE | REBOOT,
        "words from the other side",
    ),
    row(
        Sysno::waitid,
        MAIN | IO | POOL | WATCH,
        "waits for the end of the process",
    ),
    row(
        Sysno::wait4,
        MAIN | IO | POOL | WATCH,
        "hears how it has ended",
    ),
    Row {
        call: Sysno::kill,
        roles: MAIN | IO | POOL | WATCH,
        pins: &[],
        only: "answered with EPERM",
        why: "a process that does not end is left to the host, which ends it with this one",
        answer: Answer::Fail(libc::EPERM as u16),
    },
    // Memory.
    only(
        Sysno::mmap,
        ALL,
        &[Without(2, libc::PROT_EXEC as u64)],
        "without PROT_EXEC",
        "the allocator",
    ),
    row(
        Sysno::munmap,
        ALL,
        "the allocator; the end of a thread, of a vCPU, of a ring",
    ),
    row(
        Sysno::mremap,
        ALL,
        "the allocator, when a large piece grows",
    ),
    row(Sysno::brk, ALL, "the allocator"),
    only(
        Sysno::madvise,
        ALL,
        &[Is(
            2,
            &[libc::MADV_DONTNEED as u64, libc::MADV_REMOVE as u64],
        )],
        "MADV_DONTNEED, MADV_REMOVE",
        "the end of a thread's stack; memory that the guest gives back; guest memory between two lives",
    ),
    only(
        Sysno::madvise,
        DISK,
        &[Is(2, &[libc::MADV_DONTDUMP as u64])],
        "MADV_DONTDUMP",
        "an overlay's grain on its way from the base to the top is in no core dump",
    ),
    only(
        Sysno::madvise,
        REBOOT,
        &[Is(2, &[libc::MADV_NOHUGEPAGE as u64])],
        "MADV_NOHUGEPAGE",
        "memory between a disk and guest memory is made anew",
    ),
    // Threads among themselves.
    only(
        Sysno::futex,
        ALL,
        &[Is(1, FUTEX_OPS)],
        "FUTEX_WAIT, FUTEX_WAKE and FUTEX_WAIT_BITSET, with and without PRIVATE and CLOCK_REALTIME",
        "locks, conditions, channels, and waiting for a thread's end",
    ),
    only(
        Sysno::tgkill,
        ALL,
        &[OurProcess(0)],
        "threads of this process",
        "kicks a vCPU out of KVM_RUN; abort(3)",
    ),
    row(Sysno::rt_sigreturn, ALL, "the end of a signal's handler"),
    row(
        Sysno::rt_sigprocmask,
        ALL,
        "pthread_kill(3), abort(3), the end of a thread",
    ),
    only(
        Sysno::rt_sigaction,
        ALL,
        &[IsNot(0, libc::SIGSYS as u64)],
        "not for SIGSYS, by which the sandbox speaks",
        "abort(3); a fatal signal takes its handler away",
    ),
    row(Sysno::sigaltstack, ALL, "the end of a thread"),
    row(Sysno::getpid, ALL, "abort(3)"),
    row(Sysno::gettid, ALL, "abort(3)"),
    row(Sysno::sched_yield, ALL, "a lock that is held for a moment"),
    row(
        Sysno::restart_syscall,
        ALL,
        "a wait that SIGSTOP and SIGCONT have interrupted",
    ),
    row(Sysno::exit, ALL, "the end of a thread"),
    row(Sysno::exit_group, ALL, "the end of the program"),
    // Time and chance.
    row(
        Sysno::clock_gettime,
        ALL,
        "the time, where the vDSO does not know it",
    ),
    row(Sysno::clock_nanosleep, ALL, "waits a moment"),
    row(
        Sysno::nanosleep,
        ALL,
        "the same, as another C library does it",
    ),
    row(
        Sysno::getrandom,
        ALL,
        "virtio-rng; the seeds of hash tables",
    ),
    // Questions about this process.
    only(
        Sysno::prlimit64,
        MAIN,
        &[IsAll(2, 0)],
        "no new limit",
        "what to advise when there is no memory",
    ),
    // A machine that starts again: VM, vCPUs, threads and rings are made anew.
    only(
        Sysno::ioctl,
        REBOOT,
        &[Is(1, KVM_SETUP)],
        "the KVM calls of a start, by number",
        "makes a VM and its vCPUs",
    ),
    only(
        Sysno::clone,
        REBOOT,
        &[IsAll(0, THREAD_FLAGS)],
        "the flags of a thread",
        "starts the threads of the next life",
    ),
    Row {
        call: Sysno::clone3,
        roles: REBOOT,
        pins: &[],
        only: "answered with ENOSYS",
        why: "its flags are in memory, where a filter cannot see them: the C library then uses clone",
        answer: Answer::Fail(libc::ENOSYS as u16),
    },
    only(
        Sysno::mprotect,
        REBOOT | IMAGE,
        &[Without(2, libc::PROT_EXEC as u64)],
        "without PROT_EXEC",
        "the guard page of a thread's stack",
    ),
    only(
        Sysno::prctl,
        REBOOT,
        &[Is(
            0,
            &[
                libc::PR_SET_NAME as u64,
                libc::PR_GET_NAME as u64,
                libc::PR_SET_NO_NEW_PRIVS as u64,
            ],
        )],
        "PR_SET_NAME, PR_GET_NAME, PR_SET_NO_NEW_PRIVS",
        "a new thread's name, and its way into the sandbox",
    ),
    only(
        Sysno::seccomp,
        REBOOT,
        &[Is(0, &[libc::SECCOMP_SET_MODE_FILTER as u64])],
        "SECCOMP_SET_MODE_FILTER",
        "a new thread gets its own filter, which can only take away",
    ),
    row(Sysno::set_robust_list, REBOOT, "the beginning of a thread"),
    row(Sysno::rseq, REBOOT, "the beginning of a thread"),
    row(
        Sysno::sched_getaffinity,
        REBOOT,
        "the beginning of a thread: where its stack is",
    ),
    row(
        Sysno::eventfd2,
        REBOOT,
        "interrupts and doorbells of new devices",
    ),
    row(Sysno::timerfd_create, REBOOT, "timers of new devices"),
    row(
        Sysno::epoll_create1,
        REBOOT,
        "the event loop of the next life",
    ),
    only(
        Sysno::fcntl,
        REBOOT,
        &[Is(1, &[libc::F_DUPFD_CLOEXEC as u64])],
        "F_DUPFD_CLOEXEC",
        "another descriptor of a file that is open",
    ),
    row(Sysno::io_uring_setup, REBOOT, "rings of new disks"),
    row(
        Sysno::io_uring_register,
        REBOOT,
        "their files, event fds and restrictions",
    ),
];

const PUNCH: u64 = (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) as u64;
const ZERO: u64 = (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE) as u64;

const FUTEX_OPS: &[u64] = &[
    (FUTEX_WAIT | FUTEX_PRIVATE_FLAG) as u64,
    (FUTEX_WAKE | FUTEX_PRIVATE_FLAG) as u64,
    (FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG) as u64,
    (FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME) as u64,
    // A thread's end is not private: the kernel wakes those who wait for it.
    (FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME) as u64,
    FUTEX_WAIT as u64,
    FUTEX_WAKE as u64,
];

/// What glibc gives to clone(2) for a thread.
const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../docs/sandbox.md");

    /// The row as docs/sandbox.md shows it.
    fn shown(row: &Row) -> String {
        let roles = Role::ALL
            .into_iter()
            .filter(|role| row.roles & role.bit() != 0);
        let roles: Vec<_> = roles.map(Role::name).collect();
        let roles = match row.roles {
            ALL => "all".to_owned(),
            _ => roles.join(", "),
        };
        format!(
            "| `{}` | {roles} | {} | {} |",
            row.call.name(),
            row.only,
            row.why
        )
    }

    #[test]
    fn the_documentation_has_this_table() {
        let expected: Vec<String> = TABLE.iter().map(shown).collect();
        let rows = PAGE
            .lines()
            .skip_while(|line| !line.starts_with("| call |"));
        let rows: Vec<&str> = rows
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert_eq!(
            rows,
            expected,
            "the table should be:\n{}",
            expected.join("\n")
        );
    }

    #[test]
    fn rows_say_what_they_pin_and_why() {
        for row in TABLE {
            let name = row.call.name();
            assert!(!row.why.is_empty() && row.roles != 0, "{name}");
            let pinned = !row.pins.is_empty() || row.answer != Answer::Allow;
            assert_eq!(pinned, !row.only.is_empty(), "{name}");
            assert!(row.pins.iter().all(|pin| pin.argument() < 6), "{name}");
        }
    }
}
