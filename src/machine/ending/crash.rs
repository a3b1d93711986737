//! What can be said when a vCPU cannot go on: the cause, the registers, the bytes at RIP.

use std::fmt;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::machine::host;

/// Bytes shown at RIP: the longest x86 instruction has 15.
const CODE_BYTES: usize = 16;

/// Why the vCPU stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// KVM_EXIT_SHUTDOWN without a request for a reset.
    TripleFault,
    /// KVM_EXIT_FAIL_ENTRY and the hardware's reason.
    FailedEntry(u64),
    /// KVM_EXIT_INTERNAL_ERROR: the suberror, and the instruction where KVM tells it.
    InternalError(u32, Vec<u8>),
    /// KVM_EXIT_SYSTEM_EVENT of a crash.
    SystemEvent(u32),
    /// An exit that this machine does not cause.
    Unexpected(String),
    /// KVM_RUN itself failed.
    RunFailed(String),
}

/// All that is known of a crash.
#[derive(Debug)]
pub struct Crash {
    /// Index of the vCPU.
    pub vcpu: u32,
    /// Why.
    pub cause: Cause,
    /// Registers, where KVM still gives them out.
    pub registers: Option<(kvm_regs, kvm_sregs)>,
    /// Memory at RIP.
    pub code: Vec<u8>,
}

impl Crash {
    /// Collects what `fd` still tells.
    pub fn collect(vcpu: u32, cause: Cause, fd: &VcpuFd, memory: &GuestMemoryMmap) -> Self {
        let registers = fd.get_regs().ok().zip(fd.get_sregs().ok());
        let code = match &cause {
            Cause::InternalError(_, code) if !code.is_empty() => code.clone(),
            _ => registers
                .as_ref()
                .map(|(regs, _)| code_at(regs.rip, fd, memory))
                .unwrap_or_default(),
        };
        Crash {
            vcpu,
            cause,
            registers,
            code,
        }
    }

    /// One line that says what happened.
    pub fn explanation(&self) -> String {
        match &self.cause {
            Cause::TripleFault => {
                "triple fault: an exception could not be delivered, nor the double fault after it"
                    .into()
            }
            Cause::FailedEntry(reason) => {
                format!("the CPU refused to enter the guest (hardware reason {reason:#x})")
            }
            Cause::InternalError(KVM_INTERNAL_ERROR_EMULATION, _)
                if host::is_pvm() =>
            {
                "KVM on this host is PVM, which emulates the guest's kernel code and does not know this instruction"
                    .into()
            }
            Cause::InternalError(KVM_INTERNAL_ERROR_EMULATION, _) => {
                "KVM could not emulate an instruction of the guest".into()
            }
            Cause::InternalError(KVM_INTERNAL_ERROR_SIMUL_EX, _) => {
                "KVM could not deliver two exceptions at once".into()
            }
            Cause::InternalError(KVM_INTERNAL_ERROR_DELIVERY_EV, _) => {
                "KVM met an exit while it delivered an event to the guest".into()
            }
            Cause::InternalError(KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, _) => {
                "the CPU left the guest for a reason that KVM does not know".into()
            }
            Cause::InternalError(suberror, _) => format!("KVM internal error {suberror}"),
            Cause::SystemEvent(kind) => format!("the guest reported a crash (event {kind})"),
            Cause::Unexpected(exit) => format!("KVM reported an exit that has no meaning here: {exit}"),
            Cause::RunFailed(reason) => format!("KVM_RUN failed: {reason}"),
        }
    }

    /// What the user can do.
    pub fn help(&self) -> &'static str {
        match &self.cause {
            Cause::InternalError(KVM_INTERNAL_ERROR_EMULATION, _) if host::is_pvm() => {
                "use a guest kernel built with CONFIG_PVM_GUEST, or a host with VMX or SVM ('bantam check' tells)"
            }
            Cause::TripleFault => {
                "the guest's last console lines may say why; 'earlyprintk=serial' on its command line shows more of them"
            }
            Cause::FailedEntry(_) | Cause::RunFailed(_) => {
                "the host's kernel log (dmesg) may say more"
            }
            _ => "try a newer host kernel, or another guest kernel",
        }
    }
}

/// The bytes at virtual address `rip`, as many as are mapped.
fn code_at(rip: u64, fd: &VcpuFd, memory: &GuestMemoryMmap) -> Vec<u8> {
    let Ok(translation) = fd.translate_gva(rip) else {
        return Vec::new();
    };
    if translation.valid == 0 {
        return Vec::new();
    }
    let mut code = vec![0; CODE_BYTES];
    let address = GuestAddress(translation.physical_address);
    let read = memory.read(&mut code, address).unwrap_or(0);
    code.truncate(read);
    code
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((r, s)) = &self.registers else {
            return write!(f, "vcpu{}: no registers to be had", self.vcpu);
        };
        writeln!(f, "vcpu{} registers", self.vcpu)?;
        writeln!(f, "  rip {:016x}  rflags {:016x}", r.rip, r.rflags)?;
        let general = [
            ("rax", r.rax),
            ("rbx", r.rbx),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("rbp", r.rbp),
            ("rsp", r.rsp),
            ("r8 ", r.r8),
            ("r9 ", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
        ];
        for row in general.chunks(4) {
            for (name, value) in row {
                write!(f, "  {name} {value:016x}")?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "  cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}",
            s.cr0, s.cr2, s.cr3, s.cr4, s.efer
        )?;
        let segments: [(&str, &kvm_segment); 6] = [
            ("cs", &s.cs),
            ("ss", &s.ss),
            ("ds", &s.ds),
            ("es", &s.es),
            ("fs", &s.fs),
            ("gs", &s.gs),
        ];
        for row in segments.chunks(3) {
            for (name, segment) in row {
                write!(
                    f,
                    "  {name} {:04x} base {:016x} limit {:08x}",
                    segment.selector, segment.base, segment.limit
                )?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "  gdt {:016x}/{:04x}  idt {:016x}/{:04x}  tr {:04x}",
            s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit, s.tr.selector
        )?;
        write!(f, "  code at rip:")?;
        if self.code.is_empty() {
            write!(f, " not mapped")?;
        }
        for byte in &self.code {
            write!(f, " {byte:02x}")?;
        }
        Ok(())
    }
}
