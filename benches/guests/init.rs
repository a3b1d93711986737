//! The first process of a measured Linux: says on the serial port that it is there, and waits.
//!
//! One byte straight to the port, past the kernel's driver, so that no VMM's interrupts and no
//! console queue are part of the time. Built by the harness (rows/boot.rs), without a libc.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

global_asm!(".global _start", "_start: and rsp, -16", "call {main}", main = sym main);

const SYS_WRITE: usize = 1;
const SYS_OPEN: usize = 2;
const SYS_LSEEK: usize = 8;
const SYS_PAUSE: usize = 34;
const SYS_FORK: usize = 57;
const SYS_EXIT: usize = 60;
const SYS_WAIT4: usize = 61;
const SYS_MKNOD: usize = 133;
const SYS_IOPERM: usize = 173;

const O_RDWR: usize = 2;
const S_IFCHR: usize = 0o020000;
/// The device of /dev/port: major 1, minor 4.
const PORT_DEVICE: usize = 1 << 8 | 4;
/// /dev/console.
const CONSOLE_DEVICE: usize = 5 << 8 | 1;
const COM1: usize = 0x3f8;
/// STX, which no kernel prints.
const HERE: &[u8; 1] = b"\x02";

fn call(number: usize, a: usize, b: usize, c: usize) -> usize {
    let result;
    unsafe {
        asm!("syscall", inout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") 0, out("rcx") _, out("r11") _);
    }
    result
}

extern "C" fn main() -> ! {
    // Debian's kernels have no /dev/port, our small one no ioperm(2).
    if call(SYS_IOPERM, COM1, 1, 1) != 0 {
        through(c"/port", PORT_DEVICE, COM1);
    } else if !with_ioperm() {
        through(c"/console", CONSOLE_DEVICE, 0);
    }
    loop {
        call(SYS_PAUSE, 0, 0, 0);
    }
}

/// By a child, as this process must not die: the lab's emulated processor refuses the port to guests
/// of QEMU's q35. TCG looks at the task's I/O permissions only where the task register's segment is of
/// the type "available", and KVM calls it busy to a VMM that reads the segment registers and sets them
/// again while the guest runs.
fn with_ioperm() -> bool {
    let child = call(SYS_FORK, 0, 0, 0);
    if child == 0 {
        unsafe { asm!("out dx, al", in("dx") COM1 as u16, in("al") HERE[0]) };
        call(SYS_EXIT, 0, 0, 0);
    }
    let mut status = 0u32;
    call(SYS_WAIT4, child, &raw mut status as usize, 0);
    status == 0
}

/// Writes to a device that is made for it.
fn through(path: &core::ffi::CStr, device: usize, at: usize) {
    let path = path.as_ptr() as usize;
    call(SYS_MKNOD, path, S_IFCHR | 0o600, device);
    let file = call(SYS_OPEN, path, O_RDWR, 0);
    call(SYS_LSEEK, file, at, 0);
    call(SYS_WRITE, file, HERE.as_ptr() as usize, 1);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
