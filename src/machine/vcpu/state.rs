//! What can be seen of a vCPU from outside: its registers as plain values, and how often it has left
//! the guest. All of it becomes JSON.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, kvm_dtable, kvm_regs, kvm_segment,
    kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

/// Counts of a vCPU's exits to user space.
#[derive(Debug, Default)]
pub struct Counters {
    /// Port accesses.
    pub pio: AtomicU64,
    /// MMIO accesses.
    pub mmio: AtomicU64,
}

/// A vCPU at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Its number, from 0.
    pub index: u32,
    /// Whether it is parked. One that is not may have gone on since.
    pub parked: bool,
    /// Port accesses so far.
    pub port_exits: u64,
    /// MMIO accesses so far.
    pub mmio_exits: u64,
    /// `None` where its thread has not answered in time, or KVM does not tell.
    pub registers: Option<Registers>,
}

impl VcpuState {
    /// What can be told without asking the vCPU's thread.
    pub(super) fn outline(index: u32, parked: bool, counters: &Counters) -> Self {
        VcpuState {
            index,
            parked,
            port_exits: counters.pio.load(Ordering::Relaxed),
            mmio_exits: counters.mmio.load(Ordering::Relaxed),
            registers: None,
        }
    }
}

/// The registers of a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// KVM_GET_REGS.
    pub general: General,
    /// KVM_GET_SREGS.
    pub special: Special,
    /// KVM_GET_MP_STATE.
    pub activity: Activity,
}

impl Registers {
    /// Asks KVM for them.
    pub(super) fn read(fd: &VcpuFd) -> Option<Self> {
        Some(Registers {
            general: fd.get_regs().ok()?.into(),
            special: fd.get_sregs().ok()?.into(),
            activity: fd.get_mp_state().ok()?.mp_state.into(),
        })
    }
}

/// Whether a vCPU has anything to do, as KVM's local APIC sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// It executes instructions.
    Runnable,
    /// Nobody has started it yet.
    Uninitialized,
    /// It has got INIT and waits for SIPI.
    InitReceived,
    /// It has got SIPI.
    SipiReceived,
    /// HLT.
    Halted,
    /// A value of KVM_GET_MP_STATE that other architectures have.
    Other(u32),
}

impl From<u32> for Activity {
    fn from(mp_state: u32) -> Self {
        match mp_state {
            KVM_MP_STATE_RUNNABLE => Activity::Runnable,
            KVM_MP_STATE_UNINITIALIZED => Activity::Uninitialized,
            KVM_MP_STATE_INIT_RECEIVED => Activity::InitReceived,
            KVM_MP_STATE_SIPI_RECEIVED => Activity::SipiReceived,
            KVM_MP_STATE_HALTED => Activity::Halted,
            other => Activity::Other(other),
        }
    }
}

/// The general registers, RIP and RFLAGS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the registers' own names (SDM 1, 3.4)")]
pub struct General {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl From<kvm_regs> for General {
    fn from(regs: kvm_regs) -> Self {
        General {
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rsp: regs.rsp,
            rbp: regs.rbp,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rip: regs.rip,
            rflags: regs.rflags,
        }
    }
}

/// Segments, tables and control registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the registers' own names (SDM 3A, 2.1)")]
pub struct Special {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: Table,
    pub idt: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    /// The bit of an interrupt that was taken from the local APIC and not delivered yet.
    pub interrupt_bitmap: [u64; 4],
}

impl From<kvm_sregs> for Special {
    fn from(sregs: kvm_sregs) -> Self {
        Special {
            cs: sregs.cs.into(),
            ds: sregs.ds.into(),
            es: sregs.es.into(),
            fs: sregs.fs.into(),
            gs: sregs.gs.into(),
            ss: sregs.ss.into(),
            tr: sregs.tr.into(),
            ldt: sregs.ldt.into(),
            gdt: sregs.gdt.into(),
            idt: sregs.idt.into(),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            apic_base: sregs.apic_base,
            interrupt_bitmap: sregs.interrupt_bitmap,
        }
    }
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of a descriptor (SDM 3A, 3.4.5)")]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    pub limit: u32,
    pub kind: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
}

impl From<kvm_segment> for Segment {
    fn from(segment: kvm_segment) -> Self {
        Segment {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            kind: segment.type_,
            present: segment.present,
            dpl: segment.dpl,
            db: segment.db,
            s: segment.s,
            l: segment.l,
            g: segment.g,
            avl: segment.avl,
            unusable: segment.unusable,
        }
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "SDM 3A, 2.4")]
pub struct Table {
    pub base: u64,
    pub limit: u16,
}

impl From<kvm_dtable> for Table {
    fn from(table: kvm_dtable) -> Self {
        Table {
            base: table.base,
            limit: table.limit,
        }
    }
}
