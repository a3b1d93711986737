//! Attacks of which the machine may end, or that go on until it is ended from outside: `do=end what=NAME`.

use core::arch::{asm, global_asm};

use super::driver::*;
use crate::entry::start_the_others;
use crate::io::*;
use crate::words::{number, value};
use crate::{power_off, triple_fault};

const ICR: u64 = 0xfee0_0300;

/// In ring 0: what is to be done there, and the others. What is left is done in ring 3.
pub fn in_ring_0(line: &[u8]) {
    match value(line, b"what=") {
        b"halt" => everybody(halt),
        b"exits" => everybody(exits),
        b"output" => everybody(output),
        b"resets" => everybody(resets),
        b"nmi" => {
            at_work();
            write_u32(ICR, 0x4_4400);
            halt(0)
        }
        b"nmi-to-others" => {
            start_the_others(halt);
            at_work();
            wait_a_moment();
            write_u32(ICR, 0xc_4400);
            halt(0)
        }
        b"fault-of-another" => {
            start_the_others(fault);
            halt(0)
        }
        b"msrs" => {
            at_work();
            msrs();
            power_off()
        }
        _ => {}
    }
}

/// In ring 3.
pub fn in_ring_3(line: &[u8]) {
    match value(line, b"what=") {
        b"jump" => {
            at_work();
            let to = number(line, b"to=");
            unsafe { asm!("jmp {}", in(reg) to, options(noreturn)) }
        }
        b"give-all" => give_all(number(line, b"ram=") as u32),
        b"console" => console(),
        b"reset-in-flight" => reset_in_flight(),
        _ => print_str("WRONG: nothing of this name\n"),
    }
}

fn at_work() {
    print_str("at work\n");
}

fn wait_a_moment() {
    let mut spin = 0;
    while spin < 20_000 {
        core::hint::spin_loop();
        spin += 1;
    }
}

/// All vCPUs do the same for ever.
fn everybody(task: extern "C" fn(u64) -> !) -> ! {
    start_the_others(task);
    at_work();
    task(0)
}

extern "C" fn halt(_number: u64) -> ! {
    loop {
        unsafe { asm!("cli", "hlt") }
    }
}

extern "C" fn exits(_number: u64) -> ! {
    loop {
        inb(0x300);
        outb(0x3ff, 1);
        read_u32(0xd000_0000);
        write_u32(0xd000_0050, 0x1234);
    }
}

/// As much as can be printed, without a look at whether there is room.
extern "C" fn output(_number: u64) -> ! {
    loop {
        unsafe {
            asm!("rep outsb", in("dx") 0x3f8u16, inout("rsi") 0x10_0000u64 => _, inout("rcx") 4096u64 => _);
        }
    }
}

extern "C" fn resets(_number: u64) -> ! {
    loop {
        outb(0x64, 0xfe);
        outb(0xcf9, 0x06);
        outb(0x602, 1);
    }
}

extern "C" fn fault(_number: u64) -> ! {
    at_work();
    triple_fault(7);
    halt(0)
}

/// Gives all of RAM away: its code, its page tables, its rings.
fn give_all(ram: u32) {
    let Some(mut balloon) = Device::find(0) else { return };
    balloon.start(false);
    at_work();
    desc(balloon.queues[2].desc, 0, ram, WRITE, 0);
    loop {
        balloon.submit(2, 0);
    }
}

/// Chains of 4 TiB each, to a console that nobody reads.
fn console() {
    let Some(mut console) = Device::find(0) else { return };
    console.start(false);
    at_work();
    let table = console.table();
    let mut i = 0;
    while i < 1024 {
        let more = if i < 1023 { NEXT } else { 0 };
        desc(table + i * 16, 0x10_0000, u32::MAX, more, i as u16 + 1);
        i += 1;
    }
    desc(console.queues[1].desc, table, 1024 * 16, INDIRECT, 0);
    loop {
        let mut left = console.queues[1].size;
        while left > 0 {
            console.queues[1].offer(0);
            left -= 1;
        }
        console.queues[1].publish();
        console.kick(1);
        console.wait(1);
    }
}

/// Resets the machine with a disk's ring full of requests.
fn reset_in_flight() {
    let Some(mut disk) = Device::find(0) else { return };
    disk.start(false);
    super::shape::lay(&disk, 0, disk.queues[0].desc, 64);
    let mut left = disk.queues[0].size;
    while left > 0 {
        disk.queues[0].offer(0);
        left -= 1;
    }
    disk.queues[0].publish();
    disk.kick(0);
    outb(0x602, 1);
}

// ----------------------------------------------------------------------------------------- MSRs

global_asm!(
    r#"
    .section .text
    /* A general protection fault of RDMSR or WRMSR, which are two bytes long: goes on behind it. KVM's emulator
       knows no IRET in long mode. The error code, RIP, CS, RFLAGS, RSP and SS are on the stack. */
msr_fault:
    mov rcx, [rsp + 8]
    add rcx, 2
    mov rsp, [rsp + 32]
    jmp rcx
    "#
);

unsafe extern "C" {
    static msr_fault: u8;
}

#[repr(C, align(16))]
struct Idt([u64; 64]);
static mut IDT: Idt = Idt([0; 64]);

/// Reads and writes each of them, with zeros, ones, and what it had.
fn msrs() {
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    let handler = (&raw const msr_fault) as u64;
    let idt = (&raw const IDT) as u64;
    let code: u16;
    unsafe { asm!("mov {:x}, cs", out(reg) code) };
    let low = handler & 0xffff | u64::from(code) << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    write_u64(idt + 13 * 16, low);
    write_u64(idt + 13 * 16 + 8, handler >> 32);
    let pointer = Pointer(511, idt);
    unsafe { asm!("lidt [{}]", in(reg) &pointer) };
    for (first, count) in [
        (0u32, 0x400u32),
        (0x400, 0x40),
        (0x600, 0x100),
        (0x800, 0x80),
        (0xc80, 0x20),
        (0xd90, 0x20),
        (0x4000_0000, 0x110),
        (0x4b56_4d00, 0x10),
        (0xc000_0100, 0x10),
        (0xc001_0000, 0x150),
    ] {
        let mut at = first;
        while at < first + count {
            // Base and state of the local APIC stay, and so do the segments that SYSEXIT and this code need.
            let old = msr(at, None);
            if at != 0x1b {
                msr(at, Some(0));
                msr(at, Some(u64::MAX));
                msr(at, Some(0x1234_5678_9abc_d000));
                msr(at, Some(old));
            }
            at += 1;
        }
    }
    print_str("ok msrs\n");
}

/// Writes `value`, or reads.
fn msr(at: u32, value: Option<u64>) -> u64 {
    let (mut low, mut high) = (0u32, 0u32);
    unsafe {
        match value {
            Some(value) => asm!(
                "wrmsr",
                inout("ecx") at => _,
                in("eax") value as u32,
                in("edx") (value >> 32) as u32,
            ),
            None => asm!("rdmsr", inout("ecx") at => _, inout("eax") low, inout("edx") high),
        }
    }
    u64::from(high) << 32 | u64::from(low)
}
