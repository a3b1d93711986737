//! A vCPU thread: KVM_RUN, and what each exit means.
//!
//! ```text
//!   ┌─▶ mailbox: anything to be told? ─▶ KVM_RUN ─▶ port or MMIO access ─▶ bus ─┐
//!   │       └─▶ park, tell, end                 ├─▶ interrupted ────────────────┤
//!   │                                           └─▶ reset, crash ─▶ ExitBox ────┤
//!   └───────────────────────────────────────────────────────────────────────────┘
//! ```

use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::GuestMemoryMmap;

use super::mailbox::{Mailbox, Resident};
use super::state::Registers;
use crate::board::bus::Bus;
use crate::machine::ending::crash::{Cause, Crash};
use crate::machine::ending::reset::ResetFlag;
use crate::machine::ending::{Exit, ExitBox};

/// KVM_RUNs that it may take to complete what an exit has begun; see [`Vcpu::settle`].
const MAX_TO_SETTLE: u32 = 4096;

/// What all vCPUs share.
pub struct Shared {
    /// Ports.
    pub pio: Bus,
    /// Guest physical addresses.
    pub mmio: Bus,
    /// RAM.
    pub memory: Arc<GuestMemoryMmap>,
    /// What a reset means.
    pub reset: Arc<ResetFlag>,
    /// Where the end is announced.
    pub exit: Arc<ExitBox>,
}

/// A vCPU and what it runs among.
pub struct Vcpu {
    index: u32,
    fd: VcpuFd,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
}

/// Which way a port access goes.
#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// What a KVM_RUN has led to.
enum Next {
    /// The guest goes on.
    Run,
    /// A signal or `immediate_exit` has ended it; nothing of an earlier exit is left to be completed.
    Interrupted,
    /// The machine ends.
    End(Exit),
}

impl Vcpu {
    /// Ties a KVM vCPU to its machine.
    pub fn new(index: u32, fd: VcpuFd, shared: Arc<Shared>, mailbox: Arc<Mailbox>) -> Self {
        Vcpu {
            index,
            fd,
            shared,
            mailbox,
        }
    }

    /// The thread's body: runs until the machine ends.
    pub fn run(mut self) {
        let mailbox = self.mailbox.clone();
        let exit = self.shared.exit.clone();
        let _kicked_here = mailbox.thread.enter(Some(self.fd.get_kvm_run()));
        #[cfg(panic = "unwind")]
        let _last_word = EndOnPanic(exit.clone());
        loop {
            // An end is among what is told: `ExitBox::post` asks for attention.
            if mailbox.wants_attention() && !mailbox.attend(&|| exit.stopped(), &mut self) {
                return;
            }
            self.go();
        }
    }

    /// One step; false when there is nothing left to be completed, or no guest any more.
    fn go(&mut self) -> bool {
        match self.step() {
            Next::Run => true,
            Next::Interrupted => false,
            Next::End(exit) => {
                self.shared.exit.post(exit);
                false
            }
        }
    }

    fn step(&mut self) -> Next {
        let shared = &self.shared;
        let cause = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                self.mailbox.counters.pio.fetch_add(1, Ordering::Relaxed);
                match data.len() {
                    1 => shared.pio.write(port.into(), data),
                    _ => self.wide_port_access(Direction::Out),
                }
                return Next::Run;
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.mailbox.counters.pio.fetch_add(1, Ordering::Relaxed);
                match data.len() {
                    1 => shared.pio.read(port.into(), data),
                    _ => self.wide_port_access(Direction::In),
                }
                return Next::Run;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.mailbox.counters.mmio.fetch_add(1, Ordering::Relaxed);
                shared.mmio.write(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.mailbox.counters.mmio.fetch_add(1, Ordering::Relaxed);
                shared.mmio.read(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => return Next::Run,
            Ok(VcpuExit::Shutdown) => {
                if self.reset_was_asked_for() {
                    return Next::End(shared.reset.exit("triple fault"));
                }
                Cause::TripleFault
            }
            Ok(VcpuExit::FailEntry(reason, _cpu)) => Cause::FailedEntry(reason),
            Ok(VcpuExit::InternalError) => internal_error(self.fd.get_kvm_run()),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Next::End(Exit::PoweredOff);
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                return Next::End(shared.reset.exit("KVM system event"));
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => Cause::SystemEvent(kind),
            Ok(other) => Cause::Unexpected(name_of(&other)),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.fd.set_kvm_immediate_exit(0);
                // The next thing is a look at the mailbox's `attention`, and it must come after the
                // line above: a kick in between would be wiped away without being heard (`mailbox.rs`).
                compiler_fence(Ordering::SeqCst);
                return Next::Interrupted;
            }
            Err(error) => Cause::RunFailed(io::Error::from(error).to_string()),
        };
        let crash = Crash::collect(self.index, cause, &self.fd, &self.shared.memory);
        Next::End(Exit::Crashed(Box::new(crash)))
    }

    /// A port access of more than one byte: one wide access, or many of a string instruction
    /// (`rep insb`), which KVM hands over together. kvm-ioctls gives the bytes without the width,
    /// so that is read from `kvm_run`.
    fn wide_port_access(&mut self, direction: Direction) {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason is KVM_EXIT_IO, so this member of the union is the one that KVM
        // has filled; all of its fields are plain integers.
        let io = unsafe { run.__bindgen_anon_1.io };
        let width = usize::from(io.size).max(1);
        let len = width.saturating_mul(io.count as usize);
        // SAFETY: KVM_EXIT_IO promises `size * count` bytes at `data_offset` of the kvm_run
        // mapping, one page behind its struct; `run` is borrowed for as long as the slice lives
        // and not used meanwhile.
        let data = unsafe {
            let start = ptr::from_mut(run).cast::<u8>().add(io.data_offset as usize);
            std::slice::from_raw_parts_mut(start, len)
        };
        for part in data.chunks_mut(width) {
            match direction {
                Direction::In => self.shared.pio.read(io.port.into(), part),
                Direction::Out => self.shared.pio.write(io.port.into(), part),
            }
        }
    }

    /// Whether a triple fault is the guest's way of asking for a reset: it has said so, or has loaded
    /// an IDT without entries, which nobody does by accident.
    fn reset_was_asked_for(&self) -> bool {
        // On AMD, KVM has put the vCPU into its INIT state by now and the IDT's limit is 0xffff.
        let empty_idt = self.fd.get_sregs().is_ok_and(|sregs| sregs.idt.limit == 0);
        empty_idt || self.shared.reset.announced()
    }
}

impl Resident for Vcpu {
    /// KVM completes a port or MMIO access only as KVM_RUN is called the next time: until then the
    /// instruction has not been executed, and what was read is not in its register (KVM API, 5,
    /// KVM_EXIT_IO). `immediate_exit` has that call complete it and then return at once.
    ///
    /// One instruction may make many accesses (`rep movsb` out of a device's page), and each is an exit. A
    /// guest may make them as many as it likes, so this gives up at some point; the vCPU is then within
    /// that instruction.
    fn settle(&mut self) {
        for _ in 0..MAX_TO_SETTLE {
            self.fd.set_kvm_immediate_exit(1);
            if !self.go() {
                return;
            }
        }
    }

    fn registers(&mut self) -> Option<Registers> {
        Registers::read(&self.fd)
    }

    /// Has KVM tell the guest's watchdogs that time has passed without it (KVM_KVMCLOCK_CTRL).
    fn before_parking(&mut self) {
        // EINVAL: this guest does not use kvmclock, and has no watchdog that would ask it.
        let _ = self.fd.kvmclock_ctrl();
    }
}

/// Where a panic unwinds its thread alone, a machine does not outlive one of its vCPU threads: a defect of ours that panics ends it all.
#[cfg(panic = "unwind")]
struct EndOnPanic(Arc<ExitBox>);

#[cfg(panic = "unwind")]
impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.post(Exit::Defect);
        }
    }
}

/// The suberror, and the instruction that KVM could not emulate where it tells.
fn internal_error(run: &kvm_run) -> Cause {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so this member of the union is the one
    // that KVM has filled; all of its fields are plain integers.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    const FLAG_INSTRUCTION_BYTES: u64 = 1;
    let mut code = Vec::new();
    if failure.suberror == KVM_INTERNAL_ERROR_EMULATION && failure.ndata >= 3 {
        // SAFETY: as above; `ndata` of at least 3 says that flags and instruction are there.
        let (flags, insn) = unsafe {
            let anon = failure.__bindgen_anon_1.__bindgen_anon_1;
            (failure.flags, anon)
        };
        if flags & FLAG_INSTRUCTION_BYTES != 0 {
            code.extend(insn.insn_bytes.iter().take(usize::from(insn.insn_size)));
        }
    }
    Cause::InternalError(failure.suberror, code)
}

/// What an exit is called, without what is in it, which is the guest's.
fn name_of(exit: &VcpuExit<'_>) -> String {
    let text = format!("{exit:?}");
    let name = text.split(['(', ' ', '{']).next();
    name.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_named_without_the_bytes_of_the_guest() {
        let exit = VcpuExit::MmioWrite(0x1234, &[0x5a, 0xa5]);
        assert_eq!(name_of(&exit), "MmioWrite");
        assert_eq!(name_of(&VcpuExit::Hlt), "Hlt");
    }
}
