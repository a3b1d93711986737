//! Guests that notice when a pause has cost them anything: of their disk, their vCPUs, their typing.

use core::arch::asm;

use crate::block::{BASE, DATA, Driver, SIZE, initialize, scatter, settled};
use crate::check;
use crate::io::*;

/// Number of the write that a block was last written by, 4 bytes each; 0 for none.
const LATEST: u64 = 0x400_0000;
const BLOCK: u64 = 4096;

/// Where write `n` goes. `tests/pause/disks.rs` knows the same.
fn place(n: u64, blocks: u64) -> u64 {
    n.wrapping_mul(7919).checked_rem(blocks).unwrap_or(0)
}

/// Whether 'q' has been typed.
fn told_to_end() -> bool {
    inb(0x3fd) & 1 != 0 && inb(0x3f8) == b'q'
}

/// Fills the block that request `i` of a burst moves: word w of write n is n * 65536 + w.
fn put_block(i: u64, n: u64) {
    let mut word = 0;
    while word < BLOCK / 8 {
        write_u64(DATA + i * BLOCK + word * 8, n << 16 | word);
        word += 1;
    }
}

/// Whether the block that request `i` has read is that of write `n`; of none, all zeros.
fn is_block(i: u64, n: u64) -> bool {
    let mut word = 0;
    while word < BLOCK / 8 {
        let wanted = if n == 0 { 0 } else { n << 16 | word };
        if read_u64(DATA + i * BLOCK + word * 8) != wanted {
            return false;
        }
        word += 1;
    }
    true
}

/// Reads the blocks that `block` gives for 0 to 7, all at once; whether each is as it was written.
fn reads_back(driver: &mut Driver, block: impl Fn(u64) -> u64) -> bool {
    let mut i = 0;
    while i < SIZE {
        put_block(i, 0xdead);
        i += 1;
    }
    scatter(driver, 0, BLOCK, |i| block(i) * 8);
    let mut good = settled(driver);
    i = 0;
    while i < SIZE {
        good &= is_block(i, u64::from(read_u32(LATEST + block(i) * 4)));
        i += 1;
    }
    good
}

/// Writes blocks and reads others, eight requests at a time, until 'q' is typed; then looks at all of
/// the disk, and says how many writes there were. Runs in ring 3.
pub fn churn() {
    let blocks = read_u64(BASE + 0x100) / 8;
    let mut driver = initialize();
    print_str("at work\n");
    let (mut writes, mut wrong) = (0u64, 0u64);
    while !told_to_end() {
        let first = writes + 1;
        let mut i = 0;
        while i < SIZE {
            put_block(i, first + i);
            write_u32(LATEST + place(first + i, blocks) * 4, (first + i) as u32);
            i += 1;
        }
        scatter(&mut driver, 1, BLOCK, |i| place(first + i, blocks) * 8);
        wrong += u64::from(!settled(&driver));
        writes += SIZE;
        wrong += u64::from(!reads_back(&mut driver, |i| place(first * 31 + i * 5, blocks)));
    }
    check("each request did what it should", wrong == 0);
    let mut good = true;
    let mut block = 0;
    while block + SIZE <= blocks {
        good &= reads_back(&mut driver, |i| block + i);
        block += SIZE;
    }
    check("all of the disk is what was written to it", good);
    print_str("writes ");
    print_dec(writes);
    print_str("\n");
    stop_the_others();
}

const IO_APIC: u64 = 0xfec0_0000;
const LOCAL_APIC: u64 = 0xfee0_0000;

/// GSI 5, the power button, becomes vector 0x40 of this vCPU. With interrupts off it stays in the local APIC's IRR, where
/// it can be seen (SDM 3A, 11.8.4).
pub fn watch_the_button() {
    unsafe { asm!("cli") };
    write_u32(LOCAL_APIC + 0xf0, 0x1ff);
    write_u32(IO_APIC, 0x10 + 2 * 5);
    write_u32(IO_APIC + 0x10, 0x40);
}

/// Whether it has been pressed since.
pub fn is_button_pressed() -> bool {
    read_u32(LOCAL_APIC + 0x200 + 0x20) & 1 != 0
}

/// Prints dots; says each line that is typed, in brackets; ends at a line "q", and when its power
/// button is pressed.
pub fn tick() {
    watch_the_button();
    let pressed = is_button_pressed;

    // Not on the stack: the compiler would clear it by SSE, which ring 0 does not have everywhere.
    const LINE: u64 = 0x30_0000;
    let mut len = 0;
    print_str("ticking\n");
    let mut idle = 0u64;
    while !pressed() {
        if inb(0x3fd) & 1 == 0 {
            idle += 1;
            if idle % 256 == 0 {
                put(b'.');
            }
            continue;
        }
        match inb(0x3f8) {
            b'\n' | b'\r' => {
                if len == 1 && read_u8(LINE) == b'q' {
                    return;
                }
                put(b'[');
                let mut at = 0;
                while at < len {
                    put(read_u8(LINE + at));
                    at += 1;
                }
                put(b']');
                len = 0;
            }
            byte => {
                write_u8(LINE + len, byte);
                len += 1;
            }
        }
    }
    print_str("power button\n");
}

// ------------------------------------------------------------------------------ the other vCPUs

/// Not 0: they are to stop.
static mut STOP: u64 = 0;
const OTHERS: usize = 3;
/// What each of them counts: rounds, wrong answers, and whether it has stopped.
static mut COUNTS: [[u64; 3]; OTHERS + 1] = [[0; 3]; OTHERS + 1];

fn count(number: u64, what: u64) -> u64 {
    (&raw const COUNTS) as u64 + number * 24 + what * 8
}

/// Another vCPU: asks two devices and a page without one, again and again. An answer that got lost on its way
/// would leave the one before it in the register.
pub extern "C" fn other(number: u64) -> ! {
    while read_u64((&raw const STOP) as u64) == 0 {
        let mut good = inl(0x300) == 0xffff_ffff;
        good &= inb(0x505) == 1;
        good &= read_u32(0xc000_0000) == 0xffff_ffff;
        good &= inw(0x505) as u8 == 1;
        write_u64(count(number, 0), read_u64(count(number, 0)) + 1);
        write_u64(count(number, 1), read_u64(count(number, 1)) + u64::from(!good));
    }
    write_u64(count(number, 2), 1);
    loop {
        unsafe { asm!("cli", "hlt") }
    }
}

/// Has the other vCPUs stop, and says what they have counted.
fn stop_the_others() {
    write_u64((&raw const STOP) as u64, 1);
    let come = crate::entry::come();
    let mut number = 1;
    while number <= come {
        while read_u64(count(number, 2)) == 0 {}
        print_str("vcpu rounds ");
        print_dec(read_u64(count(number, 0)));
        print_str("\n");
        check("each answer arrived", read_u64(count(number, 1)) == 0);
        number += 1;
    }
}
