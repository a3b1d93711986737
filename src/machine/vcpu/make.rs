//! The vCPUs, made by the thread that will run the first of them.
//!
//! ```text
//!   builder                       thread "vcpu0"
//!   ───────                       ──────────────
//!   start  ─────────────────────▶ KVM_GET_SUPPORTED_CPUID
//!   KVM_CREATE_VM, memory, irqchip
//!   make   ───────── VM ────────▶ KVM_CREATE_VCPU, CPUID, registers, local APIC, for each vCPU
//!   devices, irqfds, ioeventfds
//!   made   ◀── all but the first ─
//!   run    ──────── shared ─────▶ KVM_RUN      (a thread for each of the others as well)
//! ```
//!
//! So the two halves of the set-up share the time they take, and the thread, which costs as much
//! as several of the calls, has its start-up behind it when the guest is to run.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::mailbox::{Mailbox, Mailboxes};
use super::step::{Shared, Vcpu};
use crate::arch::x86_64::topology::Topology;
use crate::arch::x86_64::{cpuid, interrupts, layout, registers};
use crate::boot::Protocol;
use crate::limits;
use crate::machine::error::{StartError, call, host};
use crate::sandbox::{self, Role};

/// MTRR default type: enabled, write-back (Intel SDM 3A, 13.11.2.1), as firmware leaves it.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
/// IA32_MISC_ENABLE: fast strings.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

/// How the vCPUs begin.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// How many, and where each stands.
    pub topology: Topology,
    /// Whether the guest may be a hypervisor itself.
    pub nested: bool,
    /// What is in the first one's registers.
    pub protocol: Protocol,
    /// The first one's RIP.
    pub entry: u64,
}

/// A vCPU before it has anything to run among.
struct Made {
    index: u32,
    fd: VcpuFd,
    mailbox: Arc<Mailbox>,
}

impl Made {
    fn run(self, shared: Arc<Shared>) {
        Vcpu::new(self.index, self.fd, shared, self.mailbox).run();
    }
}

/// The thread, as long as there is no VM.
pub struct VcpuMaker {
    vm: SyncSender<Arc<VmFd>>,
    making: Making,
}

/// The thread at work.
pub struct Making {
    others: Receiver<Result<Others, StartError>>,
    first: First,
}

/// The first vCPU, which waits on its own thread.
struct First {
    run: SyncSender<Arc<Shared>>,
    thread: JoinHandle<()>,
}

/// What the thread hands back: the vCPUs but its own, and the mailboxes of all.
struct Others {
    vcpus: Vec<Made>,
    mailboxes: Arc<Mailboxes>,
}

/// All vCPUs, ready to run.
pub struct Vcpus {
    first: First,
    others: Others,
}

impl VcpuMaker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the host allows no more of them.
    pub fn start(kvm: Arc<Kvm>, start: Start) -> Result<Self, StartError> {
        let (vm, get_vm) = mpsc::sync_channel(1);
        let (give, others) = mpsc::sync_channel(1);
        let (run, get_run) = mpsc::sync_channel(1);
        let body = move || {
            let first = match make(&kvm, &get_vm, start) {
                Ok(None) => return,
                Ok(Some((first, others))) => {
                    let _ = give.send(Ok(others));
                    first
                }
                Err(error) => {
                    let _ = give.send(Err(error));
                    return;
                }
            };
            sandbox::enter(Role::Vcpu);
            // Without an answer the machine has been given up.
            if let Ok(shared) = get_run.recv() {
                first.run(shared);
            }
        };
        let thread = limits::spawn(name(0), body).map_err(host("start a thread"))?;
        Ok(VcpuMaker {
            vm,
            making: Making {
                others,
                first: First { run, thread },
            },
        })
    }

    /// Lets the thread make the vCPUs of `vm`, which has its interrupt controllers.
    pub fn make(self, vm: Arc<VmFd>) -> Making {
        // A thread that is gone has left its reason for `made`.
        let _ = self.vm.send(vm);
        self.making
    }
}

impl Making {
    /// Waits until the vCPUs are there.
    ///
    /// # Errors
    /// Those of the KVM calls.
    pub fn made(self) -> Result<Vcpus, StartError> {
        let gone = |_| host("make the vCPUs")(std::io::Error::other("their thread panicked"));
        Ok(Vcpus {
            others: self.others.recv().map_err(gone)??,
            first: self.first,
        })
    }
}

impl Vcpus {
    /// By these they are told what to do, also before they run.
    pub fn mailboxes(&self) -> Arc<Mailboxes> {
        self.others.mailboxes.clone()
    }

    /// Lets all of them run, the first last: no guest instruction before all threads are there.
    /// What has been started is in the list, also after an error.
    pub fn run(self, shared: &Arc<Shared>) -> (Vec<JoinHandle<()>>, Result<(), StartError>) {
        let mut threads = Vec::new();
        for vcpu in self.others.vcpus {
            let shared = shared.clone();
            match limits::spawn(name(vcpu.index), move || {
                sandbox::enter(Role::Vcpu);
                vcpu.run(shared);
            }) {
                Ok(thread) => threads.push(thread),
                // The first one's thread ends as nothing comes to run.
                Err(error) => return (threads, Err(host("start a vCPU thread")(error))),
            }
        }
        let _ = self.first.run.send(shared.clone());
        threads.push(self.first.thread);
        (threads, Ok(()))
    }
}

fn name(index: u32) -> String {
    format!("vcpu{index}")
}

/// The first vCPU and the others; `None` when there is no VM for them.
fn make(
    kvm: &Kvm,
    vm: &Receiver<Arc<VmFd>>,
    start: Start,
) -> Result<Option<(Made, Others)>, StartError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let Ok(vm) = vm.recv() else {
        return Ok(None);
    };
    let topology = start.topology;
    let mailboxes = Mailboxes::new(topology.cpus()).map_err(host("make an event fd"))?;
    let mut template = Vec::new();
    let mut vcpus = Vec::new();
    for (mailbox, index) in mailboxes.iter().zip(0..) {
        let fd = vm
            .create_vcpu(topology.apic_id(index).into())
            .map_err(call("KVM_CREATE_VCPU"))?;
        if template.is_empty() {
            template = cpuid::template(
                &supported,
                cpuid::Facts {
                    topology,
                    tsc_khz: fd.get_tsc_khz().ok().filter(|khz| *khz > 0),
                    tsc_deadline,
                    nested: start.nested,
                },
            );
        }
        // First of all: KVM checks registers and MSRs against it.
        let entries = cpuid::for_vcpu(&template, topology, index);
        let entries = CpuId::from_entries(&entries)
            .map_err(|error| StartError::Defect(format!("cannot set a vCPU's CPUID: {error:?}")))?;
        fd.set_cpuid2(&entries).map_err(call("KVM_SET_CPUID2"))?;
        set_state(&fd, index, start)?;
        vcpus.push(Made {
            index,
            fd,
            mailbox: mailbox.clone(),
        });
    }
    let mailboxes = Arc::new(mailboxes);
    let mut vcpus = vcpus.into_iter();
    let first = vcpus.next();
    Ok(first.map(|first| {
        let vcpus = vcpus.collect();
        (first, Others { vcpus, mailboxes })
    }))
}

fn set_state(fd: &VcpuFd, index: u32, start: Start) -> Result<(), StartError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
        entry(MSR_MISC_ENABLE, FAST_STRINGS),
    ])
    .map_err(|error| StartError::Defect(format!("cannot set a vCPU's MSRs: {error:?}")))?;
    // Both are conveniences that not every backend knows; a guest runs without them.
    let set = fd.set_msrs(&msrs).map_err(call("KVM_SET_MSRS"))?;
    if set < msrs.as_slice().len() {
        log::debug!(
            "vcpu{index}: KVM took {set} MSRs of {}",
            msrs.as_slice().len()
        );
    }
    let mut lapic = fd.get_lapic().map_err(call("KVM_GET_LAPIC"))?;
    interrupts::virtual_wire(&mut lapic);
    fd.set_lapic(&lapic).map_err(call("KVM_SET_LAPIC"))?;
    if index > 0 {
        // Waits for INIT and SIPI from the first.
        return Ok(());
    }
    let (rsi, rbx) = match start.protocol {
        Protocol::Pvh => (0, layout::PVH_START_INFO),
        Protocol::Linux64 | Protocol::Linux32 => (layout::ZERO_PAGE, 0),
    };
    let mode = start.protocol.mode();
    let mut sregs = fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    registers::special(&mut sregs, mode);
    fd.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
    fd.set_regs(&registers::general(registers::Entry {
        mode,
        rip: start.entry,
        rsi,
        rbx,
    }))
    .map_err(call("KVM_SET_REGS"))
}
