//! What is no virtio device: ports, the serial port, interrupt controllers, memory.

use core::arch::asm;

use super::driver::*;
use super::{Field, Verdict, must, wait};
use crate::io::*;

/// Ports at which something happens that is not to happen yet: the first byte written there would end the machine.
const RESET_CONTROL: u32 = 0xcf9;
const PVPANIC: u32 = 0x505;

fn outw(port: u16, value: u16) {
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value) }
}

fn outl(port: u16, value: u32) {
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value) }
}

/// Ports that are looked at: all near to a device, and of the others each 97th.
fn ports(mut each: impl FnMut(u16)) {
    let mut port = 0u32;
    while port < 0x1_0000 {
        each(port as u16);
        port += if port < 0x700 || port >= 0xcf0 && port < 0xd00 || port > 0xfff0 { 1 } else { 97 };
    }
}

pub fn read_ports(_field: &mut Field) -> Verdict {
    let mut all = u64::MAX;
    ports(|port| {
        let byte = inb(port);
        let (word, long) = (inw(port), inl(port));
        if port > 0x1000 && port < 0xff00 {
            all &= u64::from(byte) << 48 | u64::from(word) << 32 | u64::from(long) | 0xff00 << 48;
        }
    });
    must(all == u64::MAX, "a port without a device reads as something else than ones")
}

pub fn write_ports(_field: &mut Field) -> Verdict {
    ports(|port| {
        outb(port, 0);
        outw(port, 0);
        outl(port, 0);
    });
    ports(|port| {
        let at = u32::from(port);
        if at != RESET_CONTROL && at != PVPANIC {
            outb(port, 0xff);
            outw(port, 0xffff);
            outl(port, 0xffff_ffff);
        }
    });
    quiet();
    Ok(())
}

/// The serial port as it was, so that what is printed from here on can be read.
fn quiet() {
    outb(0x3fb, 3);
    outb(0x3fc, 0);
    outb(0x3f9, 0);
}

fn rep_ins(port: u16, memory: u64, count: u64) {
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") memory => _, inout("rcx") count => _);
        asm!("rep insw", in("dx") port, inout("rdi") memory => _, inout("rcx") count => _);
        asm!("rep insd", in("dx") port, inout("rdi") memory => _, inout("rcx") count => _);
    }
}

fn rep_outs(port: u16, memory: u64, count: u64) {
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") memory => _, inout("rcx") count => _);
        asm!("rep outsw", in("dx") port, inout("rsi") memory => _, inout("rcx") count => _);
        asm!("rep outsd", in("dx") port, inout("rsi") memory => _, inout("rcx") count => _);
    }
}

const DEVICES: [u16; 12] = [0x60, 0x64, 0x3f8, 0x3f9, 0x3fb, 0x3fd, 0x3ff, 0x505, 0x600, 0x602, 0xcf8, 0xcfc];

pub fn port_strings(field: &mut Field) -> Verdict {
    let memory = field.target.data();
    for port in DEVICES {
        for count in [0, 1, 3, 1000, 5000] {
            rep_ins(port, memory, count);
        }
    }
    // Zeros end nothing.
    let mut at = 0;
    while at < 0x8000 {
        write_u64(memory + at, 0);
        at += 8;
    }
    for port in DEVICES {
        rep_outs(port, memory, 3000);
    }
    quiet();
    Ok(())
}

pub fn port_to_page(field: &mut Field) -> Verdict {
    for page in [field.target.base + CONFIG, field.other.base + 0xf80, 0xc800_0000] {
        for port in [0x3ff, 0x300, 0xcfc] {
            rep_ins(port, page, 32);
            rep_outs(port, page, 32);
        }
    }
    quiet();
    Ok(())
}

pub fn serial_registers(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 5000 {
        let port = 0x3f8 + field.numbers.below(8) as u16;
        match field.numbers.below(3) {
            0 => drop(inb(port)),
            _ => outb(port, field.numbers.next() as u8),
        }
        round += 1;
    }
    quiet();
    Ok(())
}

pub fn serial_loop(_field: &mut Field) -> Verdict {
    outb(0x3fb, 3);
    outb(0x3fc, 0x10);
    let mut round = 0;
    while round < 20_000 {
        outb(0x3f8, round as u8);
        round += 1;
    }
    let mut held = 0;
    while inb(0x3fd) & 1 != 0 && held < 20_000 {
        inb(0x3f8);
        held += 1;
    }
    quiet();
    must(held <= 64, "it holds more than its FIFO")
}

const LOCAL_APIC: u64 = 0xfee0_0000;
const IO_APIC: u64 = 0xfec0_0000;
const ICR: u64 = LOCAL_APIC + 0x300;
const ICR_HIGH: u64 = LOCAL_APIC + 0x310;

pub fn read_apics(_field: &mut Field) -> Verdict {
    let mut offset = 0;
    let mut sum = 0u64;
    while offset < 0x400 {
        sum = sum.wrapping_add(read_u32(LOCAL_APIC + offset).into());
        sum = sum.wrapping_add(read_u8(LOCAL_APIC + offset).into());
        sum = sum.wrapping_add(read_u64(LOCAL_APIC + offset));
        offset += 4;
    }
    let mut index = 0;
    while index < 256 {
        write_u32(IO_APIC, index);
        sum = sum.wrapping_add(read_u32(IO_APIC + 0x10).into());
        sum = sum.wrapping_add(read_u64(IO_APIC + 0x10));
        index += 1;
    }
    must(sum != 0, "all is zero")
}

pub fn io_apic(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 2000 {
        write_u32(IO_APIC, field.numbers.below(256) as u32);
        // No delivery mode that no guest without a table of handlers would live through: NMI, INIT, SMI.
        let value = field.numbers.next() as u32 & !0x700;
        match field.numbers.below(4) {
            0 => write_u32(IO_APIC + field.numbers.below(64) * 4, value),
            1 => write_u8(IO_APIC + 0x10, value as u8),
            _ => write_u32(IO_APIC + 0x10, value),
        }
        round += 1;
    }
    // Masked again.
    let mut pin = 0;
    while pin < 24 {
        write_u32(IO_APIC, 0x10 + 2 * pin);
        write_u32(IO_APIC + 0x10, 0x1_0000);
        pin += 1;
    }
    Ok(())
}

pub fn wild_interrupts(field: &mut Field) -> Verdict {
    write_u32(LOCAL_APIC + 0xf0, 0x1ff);
    let mut round = 0;
    while round < 3000 {
        // To processors that are not there, in all modes; to all, in a mode that waits until they listen.
        let nobody = 0x40 + field.numbers.below(0xb0) as u32;
        write_u32(ICR_HIGH, nobody << 24);
        write_u32(ICR, field.numbers.next() as u32 & 0xcfff);
        write_u32(ICR, 0x8_4000 | 0x20 + field.numbers.below(0xd0) as u32);
        round += 1;
    }
    Ok(())
}

pub fn interrupt_storm(_field: &mut Field) -> Verdict {
    write_u32(LOCAL_APIC + 0xf0, 0x1ff);
    // The timer as fast as it goes, and each vector by hand. Interrupts are off here, so they stay where they are.
    write_u32(LOCAL_APIC + 0x3e0, 0xb);
    write_u32(LOCAL_APIC + 0x320, 0x2_0030);
    write_u32(LOCAL_APIC + 0x380, 1);
    let mut round = 0;
    while round < 3000 {
        write_u32(ICR, 0x4_4000 | 0x20 + round % 0xd0);
        round += 1;
    }
    let pending = read_u32(LOCAL_APIC + 0x200 + 0x10 * 2);
    write_u32(LOCAL_APIC + 0x320, 0x1_0000);
    write_u32(LOCAL_APIC + 0x380, 0);
    must(pending != 0, "nothing is pending")
}

pub fn init_storm(_field: &mut Field) -> Verdict {
    // Where they begin again is a page with a loop: a processor that halts with interrupts off.
    const PARK: u64 = 0x9_0000;
    // cli; hlt; jmp to the first
    for (i, byte) in [0xfa, 0xf4, 0xeb, 0xfc].into_iter().enumerate() {
        write_u8(PARK + i as u64, byte);
    }
    must(crate::entry::come() > 0, "there is no other vCPU")?;
    let mut round = 0;
    while round < 1000 {
        write_u32(ICR, 0xc_4500);
        write_u32(ICR, 0xc_4600 | (PARK >> 12) as u32);
        write_u32(ICR, 0xc_4600 | (PARK >> 12) as u32);
        if round % 100 == 0 {
            wait(2_000_000);
        }
        round += 1;
    }
    Ok(())
}

pub fn firmware(_field: &mut Field) -> Verdict {
    let mut at = 0xe_0000;
    while at < 0x10_0000 {
        write_u64(at, u64::MAX);
        at += 8;
    }
    must(read_u64(0xf_fff8) == u64::MAX, "it is not written")
}

pub fn holes(field: &mut Field) -> Verdict {
    for at in [field.ram, field.ram + 0x1000, 0xc800_0000, 0xd080_0000, 0xe000_0000, 0xfed0_0000, 0xffff_fff0] {
        must(read_u64(at) == u64::MAX, "it reads as something else")?;
        must(read_u8(at + 1) == 0xff && read_u16(at + 3) == 0xffff, "it reads as something else")?;
        write_u64(at, 0);
        write_u8(at + 1, 0);
        must(read_u32(at) == u32::MAX, "it can be written")?;
    }
    Ok(())
}

pub fn across(field: &mut Field) -> Verdict {
    for edge in [field.ram, field.target.base, field.target.base + 0x1000, field.target.base + 0x2000, 0xd001_0000] {
        let mut at = edge - 8;
        while at < edge {
            write_u64(at, read_u64(at));
            write_u32(at, read_u32(at));
            write_word(at, read_u16(at));
            at += 1;
        }
    }
    let memory = field.target.data();
    let end = field.ram - 64;
    unsafe {
        asm!("rep movsb", inout("rdi") end => _, inout("rsi") memory => _, inout("rcx") 4096u64 => _);
        asm!("rep movsb", inout("rdi") memory => _, inout("rsi") end => _, inout("rcx") 4096u64 => _);
    }
    must(read_u8(memory + 100) == 0xff, "what is behind RAM reads as something else")
}
