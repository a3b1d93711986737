//! A vCPU thread: KVM_RUN, and what each exit means.
//!
//! ```text
//!   ┌─▶ KVM_RUN ──▶ port or MMIO access ─▶ bus ─┐
//!   │           ├─▶ interrupted: stop?  ────────┤
//!   │           └─▶ reset, crash ─▶ ExitBox ─▶ end
//!   └───────────────────────────────────────────┘
//! ```

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::GuestMemoryMmap;

use crate::board::bus::Bus;
use crate::machine::ending::crash::{Cause, Crash};
use crate::machine::ending::reset::ResetFlag;
use crate::machine::ending::{Exit, ExitBox};

/// Counts of a vCPU's exits to user space.
#[derive(Debug, Default)]
pub struct Counters {
    /// Port accesses.
    pub pio: AtomicU64,
    /// MMIO accesses.
    pub mmio: AtomicU64,
}

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
    counters: Arc<Counters>,
}

/// Which way a port access goes.
#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// Whether the loop goes on.
enum Next {
    Run,
    End(Exit),
}

impl Vcpu {
    /// Ties a KVM vCPU to its machine.
    pub fn new(index: u32, fd: VcpuFd, shared: Arc<Shared>, counters: Arc<Counters>) -> Self {
        Vcpu {
            index,
            fd,
            shared,
            counters,
        }
    }

    /// The thread's body: runs until the machine ends.
    pub fn run(mut self) {
        let _kick = KickTarget::register(self.fd.get_kvm_run());
        let _last_word = EndOnPanic(self.shared.exit.clone());
        while !self.shared.exit.stopped() {
            match self.step() {
                Next::Run => {}
                Next::End(exit) => self.shared.exit.post(exit),
            }
        }
    }

    fn step(&mut self) -> Next {
        let shared = &self.shared;
        let cause = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                self.counters.pio.fetch_add(1, Ordering::Relaxed);
                match data.len() {
                    1 => shared.pio.write(port.into(), data),
                    _ => self.wide_port_access(Direction::Out),
                }
                return Next::Run;
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.counters.pio.fetch_add(1, Ordering::Relaxed);
                match data.len() {
                    1 => shared.pio.read(port.into(), data),
                    _ => self.wide_port_access(Direction::In),
                }
                return Next::Run;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.counters.mmio.fetch_add(1, Ordering::Relaxed);
                shared.mmio.write(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.counters.mmio.fetch_add(1, Ordering::Relaxed);
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
            Ok(other) => Cause::Unexpected(format!("{other:?}")),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.fd.set_kvm_immediate_exit(0);
                return Next::Run;
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

/// A machine does not outlive one of its vCPU threads: a defect of ours that panics ends it all.
struct EndOnPanic(Arc<ExitBox>);

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

thread_local! {
    /// Where this thread's vCPU has its `kvm_run`, for the signal handler.
    static KVM_RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// While it lives, the kick signal makes this thread's KVM_RUN return, also when the signal
/// arrives right before the call: the handler sets `immediate_exit`.
struct KickTarget;

impl KickTarget {
    fn register(run: &mut kvm_run) -> Self {
        KVM_RUN.set(ptr::from_mut(run));
        KickTarget
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        KVM_RUN.set(ptr::null_mut());
    }
}

/// The signal that ends a KVM_RUN.
pub fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_signal: libc::c_int) {
    let run = KVM_RUN.get();
    if !run.is_null() {
        // SAFETY: the pointer is into this thread's own kvm_run, mapped as long as `KickTarget`
        // lives. KVM_RUN reads the byte; our own code writes it only between two runs, on this
        // same thread, and never keeps a reference to it.
        unsafe { ptr::write_volatile(&raw mut (*run).immediate_exit, 1) };
    }
}

/// Installs the handler of the kick signal, once per process.
///
/// # Errors
/// Those of sigaction(2).
pub fn install_kick_handler() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as libc::sighandler_t;
        match libc::sigaction(kick_signal(), &raw const action, ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
