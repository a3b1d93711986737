//! Ports, memory, and words on the serial port.

use core::arch::asm;

pub fn outb(port: u16, value: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

pub fn inb(port: u16) -> u8 {
    let value;
    unsafe { asm!("in al, dx", in("dx") port, out("al") value) }
    value
}

pub fn inw(port: u16) -> u16 {
    let value;
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value) }
    value
}

pub fn inl(port: u16) -> u32 {
    let value;
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value) }
    value
}

pub fn read_u8(address: u64) -> u8 {
    unsafe { (address as *const u8).read_volatile() }
}

pub fn read_u16(address: u64) -> u16 {
    unsafe { (address as *const u16).read_volatile() }
}

pub fn read_u32(address: u64) -> u32 {
    unsafe { (address as *const u32).read_volatile() }
}

pub fn read_u64(address: u64) -> u64 {
    unsafe { (address as *const u64).read_volatile() }
}

pub fn write_u8(address: u64, value: u8) {
    unsafe { (address as *mut u8).write_volatile(value) }
}

pub fn write_word(address: u64, value: u16) {
    unsafe { (address as *mut u16).write_volatile(value) }
}

pub fn write_u32(address: u64, value: u32) {
    unsafe { (address as *mut u32).write_volatile(value) }
}

pub fn write_u64(address: u64, value: u64) {
    unsafe { (address as *mut u64).write_volatile(value) }
}

pub fn put(byte: u8) {
    while inb(0x3fd) & 0x20 == 0 {}
    outb(0x3f8, byte);
}

pub fn print_str(text: &str) {
    for byte in text.bytes() {
        put(byte);
    }
}

pub fn print_hex(value: u64) {
    print_str("0x");
    let mut shift = 64;
    let mut seen = false;
    while shift > 0 {
        shift -= 4;
        let digit = (value >> shift & 0xf) as u8;
        seen |= digit != 0 || shift == 0;
        if seen {
            put(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        }
    }
}

pub fn print_dec(value: u64) {
    if value >= 10 {
        print_dec(value / 10);
    }
    put(b'0' + (value % 10) as u8);
}
