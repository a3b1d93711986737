//! A guest for the bare machine: does what its command line says, and tells the serial port.
//!
//! It can be entered by every boot protocol, runs in long mode with the first 4 GiB mapped one to
//! one, without interrupts, and uses nothing but ports and memory. Built by the test run
//! (tests/common/guest.rs); also by hand, see there.

#![no_std]
#![no_main]

mod attack;
mod bench;
mod block;
mod entry;
mod faults;
mod greed;
mod io;
mod pause;
mod snapshot;
mod user;
mod words;

use core::arch::asm;
use core::panic::PanicInfo;

use entry::state;
use io::{inb, inl, inw, outb, print_hex, print_str, write_word};

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    print_str("guest: panic\n");
    power_off()
}

/// What the compiler calls to compare slices, with no libc around.
#[unsafe(no_mangle)]
extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let mut i = 0;
    while i < len {
        if unsafe { a.add(i).read_volatile() != b.add(i).read_volatile() } {
            return 1;
        }
        i += 1;
    }
    0
}

/// The core library was built to unwind, and names who would. A guest that panics ends.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// What the compiler calls to copy and to fill.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    unsafe { asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8, inout("rcx") len => _) }
    to
}

pub fn power_off() -> ! {
    outb(0x600, 5 << 2 | 1 << 5);
    halt()
}

fn halt() -> ! {
    loop {
        unsafe { asm!("cli", "hlt") }
    }
}

/// The command line, by whichever protocol we came.
pub fn command_line() -> &'static [u8] {
    let (rbx, rsi) = (state(0), state(1));
    let pointer = if rbx != 0 {
        io::read_u64(rbx + 24)
    } else {
        u64::from(io::read_u32(rsi + 0x228))
    };
    let mut len = 0;
    while io::read_u8(pointer + len) != 0 {
        len += 1;
    }
    unsafe { core::slice::from_raw_parts(pointer as *const u8, len as usize) }
}

fn wish(line: &[u8]) -> &[u8] {
    words::value(line, b"do=")
}

extern "C" fn main() -> ! {
    let line = command_line();
    match wish(line) {
        b"churn" => entry::start_the_others(pause::other),
        b"attack" => attack::prepare(line),
        b"end" => attack::ends::in_ring_0(line),
        _ => {}
    }
    match wish(line) {
        b"entry" => entry(line),
        b"echo" => echo(),
        b"flood" => flood(),
        b"deaf" => loop {
            unsafe { asm!("pause") }
        },
        b"halt" => halt(),
        b"ports" => ports(),
        b"block" => block::run(),
        b"block-read-only" => block::read_only(),
        b"block-broken" => block::broken(),
        b"block-many" => block::many(),
        b"read-errors" => block::errors(0),
        b"write-errors" => block::errors(1),
        b"gone" => block::gone(),
        b"faults" => faults::run(1),
        b"faults-twice" => faults::run(2),
        b"busy" => faults::busy(),
        b"hog" => faults::hog(),
        b"flush-again" => faults::flush_again(),
        b"stuck" => block::stuck(),
        b"greed" => greed::disks(),
        b"secret" => greed::secret(),
        b"greed-small" => greed::small(),
        b"fill" => snapshot::fill(),
        b"two-lives" => snapshot::two_lives(),
        b"journal" => block::journal(),
        b"tick" => pause::tick(),
        b"exits" | b"disk" | b"model" | b"churn" | b"attack" | b"end" => user::enter(0, in_ring_3, line),
        b"ready" => {
            io::put(b'!');
            halt();
        }
        b"acpi-reset" => outb(0x602, 1),
        b"kbd-reset" => outb(0x64, 0xfe),
        b"cf9-reset" => outb(0xcf9, 0x06),
        b"flag-reset" => {
            write_word(0x472, 0);
            triple_fault(7);
        }
        b"warm-reset" => {
            write_word(0x472, 0x1234);
            outb(0x602, 1);
        }
        b"lives" => lives(),
        b"idt-reset" => triple_fault(0),
        b"triple-fault" => triple_fault(7),
        b"panic" => outb(0x505, 1),
        b"bad-instruction" => unsafe {
            // In a page that is not RAM: KVM would have to emulate code from nowhere.
            asm!("mov rax, 0xc0100000", "jmp rax", out("rax") _)
        },
        _ => print_str("hello from the bare machine\n"),
    }
    power_off()
}

/// In ring 3.
extern "C" fn in_ring_3(_number: u64) -> ! {
    let line = command_line();
    match wish(line) {
        b"exits" => bench::exits(line),
        b"attack" => {
            attack::run(line);
            power_off()
        }
        b"end" => {
            attack::ends::in_ring_3(line);
            power_off()
        }
        b"model" => {
            snapshot::model(line);
            power_off()
        }
        b"churn" => {
            pause::churn();
            power_off()
        }
        _ => bench::disk(line),
    }
}

fn entry(line: &[u8]) {
    let (rbx, rsi) = (state(0), state(1));
    print_str("width ");
    io::print_dec(state(7));
    for (name, index) in [("cr0", 2), ("cr4", 3), ("cs", 4), ("ds", 5), ("flags", 6)] {
        print_str(" ");
        print_str(name);
        print_str(" ");
        print_hex(state(index));
    }
    print_str("\n");
    if rbx != 0 {
        print_str("pvh magic ");
        print_hex(u64::from(io::read_u32(rbx)));
        print_str(" memmap ");
        print_hex(u64::from(io::read_u32(rbx + 48)));
        print_str(" modules ");
        print_hex(u64::from(io::read_u32(rbx + 12)));
        print_str(" rsdp ");
        print_hex(io::read_u64(io::read_u64(rbx + 32)));
    } else {
        print_str("zero page ");
        // Not aligned to 4 bytes.
        print_hex(u64::from(io::read_u16(rsi + 0x202)) | u64::from(io::read_u16(rsi + 0x204)) << 16);
        print_str(" e820 ");
        print_hex(u64::from(io::read_u8(rsi + 0x1e8)));
        print_str(" initrd ");
        print_hex(u64::from(io::read_u32(rsi + 0x21c)));
        let at = io::read_u32(rsi + 0x218);
        if at != 0 {
            print_str(" starting ");
            print_hex(u64::from(io::read_u32(u64::from(at))));
        }
        print_str(" rsdp ");
        print_hex(io::read_u64(io::read_u64(rsi + 0x70)));
    }
    print_str("\ncommand line ");
    for byte in line {
        io::put(*byte);
    }
    print_str("\n");
}

/// Shows a word of memory, changes it, and resets the machine when it receives 'r'; ends at 'q'.
fn lives() {
    const SOMEWHERE: u64 = 0x80_0000;
    print_str("memory ");
    print_hex(u64::from(io::read_u32(SOMEWHERE)));
    write_word(SOMEWHERE, 0x5a5a);
    print_str(".\n");
    loop {
        if inb(0x3fd) & 1 != 0 {
            match inb(0x3f8) {
                b'r' => outb(0x602, 1),
                b'q' => return,
                byte => io::put(byte),
            }
        }
    }
}

/// Sends back what is received, until 'q'.
fn echo() {
    print_str("echo\n");
    loop {
        if inb(0x3fd) & 1 != 0 {
            let byte = inb(0x3f8);
            if byte == b'q' {
                return;
            }
            io::put(byte);
        }
    }
}

/// 256 KiB of output, as fast as the port takes it.
fn flood() {
    for line in 0..4096u64 {
        print_str("flood ");
        print_hex(line);
        let mut width = 6 + 2 + 16 + 1;
        while width < 64 {
            io::put(b'.');
            width += 1;
        }
        print_str("\n");
    }
}

pub fn triple_fault(limit: u16) {
    #[repr(C, packed)]
    struct Idt(u16, u64);
    let idt = Idt(limit, 0x500);
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &idt) }
}

fn check(name: &str, good: bool) {
    print_str(if good { "ok " } else { "WRONG " });
    print_str(name);
    print_str("\n");
}

fn ports() {
    check("an absent port reads all ones", inb(0x300) == 0xff);
    check("16 bits wide as well", inw(0x300) == 0xffff);
    check("32 bits wide as well", inl(0x300) == 0xffff_ffff);
    check("there is no device on PCI", inl(0xcfc) == 0xffff_ffff);
    check("an absent page reads all ones", io::read_u64(0xc000_0000) == u64::MAX);
    check("of one byte too", io::read_u8(0xc000_1001) == 0xff);
    io::write_u32(0xc000_0000, 5);
    check("the scratch register keeps its value", {
        outb(0x3ff, 0x5a);
        inb(0x3ff) == 0x5a
    });
    outb(0x64, 0xaa);
    check("the keyboard controller passes its self-test", inb(0x60) == 0x55);
    check("pvpanic tells what it knows", inb(0x505) == 1);
    let text = b"string output\n";
    unsafe {
        asm!("rep outsb", in("dx") 0x3f8u16, inout("rsi") text.as_ptr() => _, inout("rcx") text.len() => _);
    }
    let mut bytes = [0u8; 7];
    unsafe {
        asm!("rep insb", in("dx") 0x300u16, inout("rdi") bytes.as_mut_ptr() => _, inout("rcx") bytes.len() => _);
    }
    let mut all = true;
    for byte in bytes {
        all &= byte == 0xff;
    }
    check("string input of all ones", all);
    unsafe {
        asm!("rep insb", in("dx") 0x3ffu16, inout("rdi") bytes.as_mut_ptr() => _, inout("rcx") bytes.len() => _);
    }
    let mut all = true;
    for byte in bytes {
        all &= byte == 0x5a;
    }
    check("string input asks the device for each byte", all);
}
