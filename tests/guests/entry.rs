//! From whatever state a processor is in to Rust code in long mode, with the first 4 GiB mapped one to one.
//!
//! ```text
//!   PVH, Linux 32 bits ─▶ entry32 ─────────────────┐
//!   INIT and SIPI ──────▶ other_begin ─▶ other32 ──┴▶ to_long_mode ─▶ start64 ─▶ begin(number)
//!   Linux 64 bits ──────▶ entry64 ────────────────────────────────────┘
//! ```
//!
//! The first processor has number 0 and goes on in `main`; the others, in the order in which they come, in what
//! [`start_the_others`] was given. Each has a stack of its own.

use core::arch::global_asm;

use crate::io::{read_u64, write_u8, write_u32, write_u64};

/// The most processors that are ever started.
pub const MOST: u64 = 8;
/// Bytes of a stack, a power of two.
const STACK_BYTES: u64 = 0x8000;
/// Where the others begin, in real mode. The vector of a SIPI is a page below 1 MiB.
const OTHERS_BEGIN: u64 = 0x8000;

global_asm!(
    r#"
    .section .entry, "awx"
    .code32
    .global entry32
entry32:
    /* EBX: start info (PVH), ESI: zero page (Linux). What the CPU is in is kept for the tests. */
    mov [{state} + 0], ebx
    mov [{state} + 8], esi
    mov eax, cr0
    mov [{state} + 16], eax
    mov eax, cr4
    mov [{state} + 24], eax
    mov eax, cs
    mov [{state} + 32], eax
    mov eax, ds
    mov [{state} + 40], eax
    mov esp, offset {stacks} + 0x8000
    pushfd
    pop eax
    mov [{state} + 48], eax
    mov dword ptr [{state} + 56], 32

    /* Page tables: 2 MiB pages for 4 GiB. */
    mov eax, offset {tables} + 0x1003
    mov [{tables}], eax
    mov ecx, 0
1:  mov eax, ecx
    shl eax, 12
    add eax, offset {tables} + 0x2003
    mov [{tables} + 0x1000 + ecx*8], eax
    inc ecx
    cmp ecx, 4
    jne 1b
    mov ecx, 0
2:  mov eax, ecx
    shl eax, 21
    or eax, 0x83
    mov [{tables} + 0x2000 + ecx*8], eax
    inc ecx
    cmp ecx, 2048
    jne 2b
    lgdt [gdt_pointer]
    xor edi, edi
    jmp to_long_mode

    .align 8
gdt_pointer:
    .word 31
    .long gdt
    .org 0x200
    .code64
    .global entry64
entry64:
    mov [{state} + 0], rbx
    mov [{state} + 8], rsi
    mov rax, cr0
    mov [{state} + 16], rax
    mov rax, cr4
    mov [{state} + 24], rax
    mov eax, cs
    mov [{state} + 32], rax
    mov eax, ds
    mov [{state} + 40], rax
    mov rsp, offset {stacks} + 0x8000
    pushfq
    pop rax
    mov [{state} + 48], rax
    mov qword ptr [{state} + 56], 64
    mov rax, cr4
    or rax, 0x600
    mov cr4, rax
    xor edi, edi
    jmp start64

    .section .text
    .code16
    .global other_begin, other_end
other_begin:
    cli
    mov ax, cs
    mov ds, ax
    /* lgdtd [other_gdtr], counted from the start of the page */
    .byte 0x66, 0x0f, 0x01, 0x16
    .word other_gdtr - other_begin
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long other32
    .word 24
    .align 4
other_gdtr:
    .word 31
    .long gdt
other_end:
    .align 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
    .code32
other32:
    mov ax, 16
    mov ds, ax
    mov edi, 1
    lock xadd [{come}], edi
    inc edi
to_long_mode:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, offset {tables}
    mov cr3, eax
    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long start64
    .word 8
    .code64
start64:
    /* Processor n has the nth stack, from its end down. */
    mov edi, edi
    lea rsp, [rdi + 1]
    shl rsp, 15
    add rsp, offset {stacks}
    call {begin}
5:  hlt
    jmp 5b

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18
    .asciz "Xen"
    .long entry32
    "#,
    state = sym STATE,
    stacks = sym STACKS,
    tables = sym TABLES,
    come = sym COME,
    begin = sym begin,
);

/// rbx, rsi, cr0, cr4, cs, ds, flags at entry, and the width of the entry.
static mut STATE: [u64; 8] = [0; 8];
/// How many others have come.
static mut COME: u64 = 0;
/// What the others do.
static mut TASK: u64 = 0;

#[repr(C, align(4096))]
struct Pages<const N: usize>(#[allow(dead_code)] [u8; N]);

static mut TABLES: Pages<0x6000> = Pages([0; 0x6000]);
static mut STACKS: Pages<{ (MOST * STACK_BYTES) as usize }> =
    Pages([0; (MOST * STACK_BYTES) as usize]);

unsafe extern "C" {
    static other_begin: u8;
    static other_end: u8;
}

extern "C" fn begin(number: u64) -> ! {
    if number == 0 {
        crate::main();
    }
    // SAFETY: start_the_others has put a function there.
    let task: extern "C" fn(u64) -> ! =
        unsafe { core::mem::transmute(read_u64((&raw const TASK) as u64)) };
    task(number)
}

/// One of the words that were kept at the entry.
pub fn state(index: usize) -> u64 {
    unsafe { (&raw const STATE).cast::<u64>().add(index).read_volatile() }
}

/// Where the stack of processor `number` begins, downwards.
pub fn stack_top(number: u64) -> u64 {
    (&raw const STACKS) as u64 + (number + 1) * STACK_BYTES
}

/// How many others have come.
pub fn come() -> u64 {
    read_u64((&raw const COME) as u64)
}

/// Has all other processors do `task`, each with its number. Without any this does nothing. In ring 0.
pub fn start_the_others(task: extern "C" fn(u64) -> !) {
    const ICR: u64 = 0xfee0_0300;
    write_u64((&raw const TASK) as u64, task as *const () as u64);
    let from = (&raw const other_begin) as u64;
    let len = (&raw const other_end) as u64 - from;
    let mut at = 0;
    while at < len {
        write_u8(OTHERS_BEGIN + at, crate::io::read_u8(from + at));
        at += 1;
    }
    // INIT and then SIPI to all but this one (SDM 3A, 9.4.4).
    write_u32(ICR, 0xc_4500);
    write_u32(ICR, 0xc_4600 | (OTHERS_BEGIN >> 12) as u32);
}
