//! The page of registers: all offsets, all widths, and kicks (virtio 1.2, 4.2.2).

use core::arch::asm;

use super::driver::*;
use super::shape::*;
use super::{Field, Verdict, must};
use crate::io::*;

const PAGE: u64 = 4096;

/// All widths at all offsets, some of them across the end of the page.
fn everywhere(base: u64, mut access: impl FnMut(u64, u32)) {
    let mut offset = 0;
    // Of the configuration space the first bytes, and then a few of the rest.
    while offset < PAGE {
        for width in [1, 2, 4, 8] {
            access(base + offset, width);
        }
        offset += if offset < 0x180 || offset > PAGE - 16 { 1 } else { 37 };
    }
}

fn write(address: u64, width: u32, value: u64) {
    match width {
        1 => write_u8(address, value as u8),
        2 => write_word(address, value as u16),
        4 => write_u32(address, value as u32),
        _ => write_u64(address, value),
    }
}

pub fn read_all(field: &mut Field) -> Verdict {
    let mut sum = 0u64;
    everywhere(field.target.base, |address, width| {
        sum = sum.wrapping_add(match width {
            1 => read_u8(address).into(),
            2 => read_u16(address).into(),
            4 => read_u32(address).into(),
            _ => read_u64(address),
        });
    });
    must(sum != 0, "all is zero")?;
    must(field.target.status() == 15, "reading has changed the status")?;
    must(request(&mut field.target, field.queue), "a request does not work")
}

pub fn write_zeros(field: &mut Field) -> Verdict {
    everywhere(field.target.base, |address, width| write(address, width, 0));
    Ok(())
}

pub fn write_ones(field: &mut Field) -> Verdict {
    everywhere(field.target.base, |address, width| write(address, width, u64::MAX));
    Ok(())
}

pub fn write_any(field: &mut Field) -> Verdict {
    let base = field.target.base;
    let numbers = &mut field.numbers;
    everywhere(base, |address, width| write(address, width, numbers.next()));
    // In any order, so that all that is looked at has been written before.
    let mut round = 0;
    while round < 3000 {
        let offset = numbers.below(0x140);
        write(base + offset, 1 << numbers.below(4), numbers.next() >> numbers.below(64));
        round += 1;
    }
    Ok(())
}

pub fn strings(field: &mut Field) -> Verdict {
    let (page, memory) = (field.target.base, field.target.data());
    unsafe {
        asm!("rep movsb", inout("rdi") memory => _, inout("rsi") page => _, inout("rcx") 512u64 => _);
        asm!("rep movsq", inout("rdi") memory => _, inout("rsi") page => _, inout("rcx") PAGE / 8 => _);
    }
    must(read_u64(memory + 8) != 0x0bad, "nothing is read")?;
    unsafe {
        asm!("rep stosb", inout("rdi") page => _, in("al") 0xffu8, inout("rcx") 512u64 => _);
        asm!("rep stosd", inout("rdi") page => _, in("eax") 0x5a5a_5a5au32, inout("rcx") PAGE / 4 => _);
        asm!("rep movsd", inout("rdi") page => _, inout("rsi") memory => _, inout("rcx") PAGE / 4 => _);
        // Out of the page into itself.
        asm!("rep movsd", inout("rdi") page => _, inout("rsi") page + 4 => _, inout("rcx") 256u64 => _);
    }
    Ok(())
}

pub fn no_such_queue(field: &mut Field) -> Verdict {
    let mut number = field.target.count as u32;
    while number < 300 {
        field.target.set(NOTIFY, number);
        number += 1;
    }
    for number in [0xffff, 0x1_0000, 0x1_0001, 0x7fff_ffff, u32::MAX] {
        field.target.set(NOTIFY, number);
    }
    for width in [1, 2, 8] {
        write(field.target.base + NOTIFY, width, 0);
    }
    must(field.target.status() == 15, "the status has changed")?;
    must(request(&mut field.target, field.queue), "a request does not work")
}

pub fn kicks(field: &mut Field) -> Verdict {
    let mut round = 0;
    while round < 2000 {
        let mut queue = 0;
        while queue < field.target.count {
            field.target.kick(queue);
            queue += 1;
        }
        round += 1;
    }
    must(request(&mut field.target, field.queue), "a request does not work")
}

pub fn requests(field: &mut Field) -> Verdict {
    let count = least(&field.target);
    let mut round = 0;
    while round < 20 {
        lay(&field.target, field.queue, field.target.queues[field.queue].desc, count);
        let mut left = field.size();
        while left > 0 {
            field.target.queues[field.queue].offer(0);
            field.target.queues[field.queue].publish();
            field.target.kick(field.queue);
            left -= 1;
        }
        match field.target.wait(field.queue) {
            End::Used(_) => {}
            End::Broken => return Err("the queue breaks"),
            End::Silence => return Err("it stops"),
        }
        round += 1;
    }
    Ok(())
}
