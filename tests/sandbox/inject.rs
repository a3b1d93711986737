//! A call put into another process's thread from outside, as if the code of that thread had been taken over.
//!
//! The thread is stopped by ptrace(2) while it waits in a system call. Its registers are set to another call, and it is
//! put back onto the instruction that makes calls.

use std::time::{Duration, Instant};

/// A system call: its number, and its arguments.
pub type Call = (libc::c_long, [u64; 6]);

/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Has the thread `tid` make `call`. Whether it is allowed to is seen by what becomes of it.
pub fn make(tid: i32, call: Call) {
    // SAFETY: all pointers are valid for the calls; the tracee is a thread of a child of the test's.
    unsafe {
        let null = std::ptr::null_mut::<libc::c_void>();
        assert_eq!(
            libc::ptrace(libc::PTRACE_SEIZE, tid, null, null),
            0,
            "{}",
            error()
        );
        assert_eq!(
            libc::ptrace(libc::PTRACE_INTERRUPT, tid, null, null),
            0,
            "{}",
            error()
        );
        let end = Instant::now() + Duration::from_secs(20);
        let mut status = 0;
        while libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) != tid {
            assert!(Instant::now() < end, "the thread does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        let got = libc::ptrace(libc::PTRACE_GETREGS, tid, null, &raw mut registers);
        assert_eq!(got, 0, "{}", error());
        registers.rip -= SYSCALL.len() as u64;
        let code = libc::ptrace(libc::PTRACE_PEEKTEXT, tid, registers.rip, null);
        assert_eq!(
            code.to_ne_bytes()[..2],
            SYSCALL,
            "the thread was in no system call"
        );
        let (number, arguments) = call;
        // No call is to be made once more when the thread goes on.
        registers.orig_rax = u64::MAX;
        registers.rax = number as u64;
        [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
            registers.r9,
        ] = arguments;
        let set = libc::ptrace(libc::PTRACE_SETREGS, tid, null, &raw const registers);
        assert_eq!(set, 0, "{}", error());
        assert_eq!(
            libc::ptrace(libc::PTRACE_DETACH, tid, null, null),
            0,
            "{}",
            error()
        );
    }
}

fn error() -> std::io::Error {
    std::io::Error::last_os_error()
}

/// Why no thread of another process can be stopped here.
pub fn missing() -> Option<String> {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().ok()?;
    let tid = child.id() as i32;
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: no pointer is read or written by these requests.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, null, null) };
    let why = (seized != 0).then(|| format!("ptrace: {}", error()));
    let _ = child.kill();
    let _ = child.wait();
    why
}
