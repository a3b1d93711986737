//! From a [`Plan`] to a running machine: the KVM calls, in order, each with the reason for its place.
//!
//! 1. guest RAM: a memory slot set after the interrupt controllers exist costs KVM more;
//! 2. TSS and identity map: VMX wants their addresses before the first vCPU;
//! 3. irqchip: before vCPUs, which get their local APICs from it; then the PIT, a timer;
//! 4. devices: each part of the plan's board builds its own on a [`Site`], which ties it to KVM by
//!    irqfds and ioeventfds ([`Wires`]).
//!
//! Two other threads are at work meanwhile. One brings kernel, initrd and boot tables into RAM. The other is the
//! one that will run the first vCPU: it makes all vCPUs as soon as the irqchip is there
//! ([`vcpu::make`](super::vcpu::make)). Nobody runs before [`Machine::run`](super::run) says so.

use std::sync::{Arc, OnceLock};
use std::thread::{Scope, ScopedJoinHandle};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::ending::reset::{self, ResetFlag};
use super::ending::{Exit, ExitBox};
use super::error::{StartError, call, host};
use super::handle::{Machine, Parts};
use super::host;
use super::plan::Plan;
use super::vcpu::{Shared, Start, VcpuMaker};
use crate::arch::x86_64::{acpi, layout, registers, reset_vector, smbios};
use crate::board::{CharDevice, PowerRequest, PowerSink, Site, SiteError, Wires};
use crate::boot::{Protocol, Source, cmdline, linux, pvh};
use crate::limits;

/// Less than this is loaded before a thread for it would have started.
const WORTH_A_THREAD: u64 = 1 << 20;

impl Machine {
    /// Makes the machine that `plan` describes by `kvm`, with `memory`, which is all zeros, as its RAM. No file
    /// is opened for it: the process may be in the sandbox.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn build(
        plan: &Plan,
        memory: &Arc<GuestMemoryMmap>,
        kvm: &Arc<Kvm>,
    ) -> Result<Self, StartError> {
        let cpus = plan.config.topology.cpus();
        let max = kvm.get_max_vcpus();
        if cpus as usize > max {
            return Err(StartError::Cpus { cpus, max });
        }
        // First of all: it finds out what CPUID can be, which is slow where CPUID is virtual.
        let vcpus = VcpuMaker::start(
            kvm.clone(),
            Start {
                topology: plan.config.topology,
                nested: plan.config.nested,
                protocol: plan.placement.protocol,
                entry: plan.placement.entry,
            },
        )?;
        // KVM waits for the kernel's housekeeping in some calls. What does not need the VM goes on
        // meanwhile.
        std::thread::scope(|scope| {
            let load = || load(plan, memory);
            let loading = if plan.bytes_to_load() < WORTH_A_THREAD {
                load()?;
                None
            } else {
                Some(spawn(scope, load)?)
            };
            let machine = Machine::assemble(kvm, vcpus, plan, memory);
            if let Some(loading) = loading {
                join(loading)??;
            }
            machine
        })
    }

    /// The KVM calls.
    fn assemble(
        kvm: &Kvm,
        vcpus: VcpuMaker,
        plan: &Plan,
        memory: &Arc<GuestMemoryMmap>,
    ) -> Result<Self, StartError> {
        let vm = Arc::new(create_vm(kvm)?);
        add_memory(&vm, memory)?;
        vm.set_tss_address(layout::KVM_TSS as usize)
            .map_err(call("KVM_SET_TSS_ADDR"))?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        let vcpus = vcpus.make(vm.clone());
        vm.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })
        .map_err(call("KVM_CREATE_PIT2"))?;

        let exit = Arc::new(ExitBox::new().map_err(host("make an event fd"))?);
        // The parts are built with a way to end the machine, which asks one of them about the end.
        let told = Arc::new(OnceLock::new());
        let reset = Arc::new(ResetFlag::new(
            memory.clone(),
            cmdline::panics_reset_warm(&plan.cmdline),
            told_of_panic(told.clone()),
        ));
        let wires = vm.clone();
        let mut site = Site::new(memory, power_sink(&exit, &reset), &*wires, exit.waiting());
        for placed in plan.board.parts() {
            placed.part.build(&placed.place, &mut site)?;
        }
        let _ = told.set(site.chars.clone());
        let no_button = || StartError::Defect("the machine has no power button".into());
        let shared = Arc::new(Shared {
            pio: site.ports,
            mmio: site.pages,
            reset,
            memory: memory.clone(),
            exit: exit.clone(),
        });
        let vcpus = vcpus.made()?;
        let parts = Parts {
            chars: site.chars,
            power_button: site.power_button.ok_or_else(no_button)?,
            pumps: site.pumps,
            vcpus,
            shared,
            _vm: vm,
        };
        Ok(Machine::new(parts, exit, site.devices, plan.config.memory))
    }
}

impl Wires for VmFd {
    fn interrupt(&self, fd: &EventFd, gsi: u32) -> Result<(), SiteError> {
        self.register_irqfd(fd, gsi).map_err(wire("KVM_IRQFD"))
    }

    fn doorbell(&self, fd: &EventFd, address: u64, value: u32) -> Result<(), SiteError> {
        self.register_ioevent(fd, &IoEventAddress::Mmio(address), value)
            .map_err(wire("KVM_IOEVENTFD"))
    }
}

fn wire(call: &'static str) -> impl Fn(vmm_sys_util::errno::Error) -> SiteError {
    move |error| SiteError::Call {
        call,
        source: error.into(),
    }
}

/// Whether a character device has seen the guest's kernel say that it panics.
fn told_of_panic(chars: Arc<OnceLock<Vec<Arc<dyn CharDevice>>>>) -> impl Fn() -> bool {
    move || {
        let mut all = chars.get().into_iter().flatten();
        all.any(|chars| chars.told_of_panic())
    }
}

/// A thread that helps to build: where the host allows no more of them, an error and not a panic.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, StartError> {
    limits::room_for_a_thread()
        .and_then(|()| std::thread::Builder::new().spawn_scoped(scope, work))
        .map_err(host("start a thread"))
}

/// What a thread of the scope has found.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> Result<T, StartError> {
    thread
        .join()
        .map_err(|_| host("build the machine")(std::io::Error::other("a thread of it panicked")))
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, StartError> {
    loop {
        match kvm.create_vm() {
            Ok(vm) => return Ok(vm),
            // A signal that arrives meanwhile interrupts the call.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) if error.errno() == libc::EBUSY => {
                return Err(host::KvmError::Busy.into());
            }
            Err(error) => return Err(call("KVM_CREATE_VM")(error)),
        }
    }
}

fn add_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), StartError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a mapping of our own that lives as long as the machine: every
        // vCPU thread holds it by `Shared`, and the vCPUs end before it does.
        unsafe { vm.set_user_memory_region(region) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

fn power_sink(exit: &Arc<ExitBox>, reset: &Arc<ResetFlag>) -> PowerSink {
    let (exit, reset) = (exit.clone(), reset.clone());
    Arc::new(move |request| {
        exit.post(match request {
            PowerRequest::PowerOff => Exit::PoweredOff,
            PowerRequest::Reset(how) => reset.exit(how),
            PowerRequest::Panicked => Exit::Panicked,
        });
    })
}

/// Kernel, initrd and everything that the boot protocol wants in memory.
fn load(plan: &Plan, memory: &GuestMemoryMmap) -> Result<(), StartError> {
    let put = |source: &Source, offset, len, address| {
        source
            .load(offset, len, memory, address)
            .map_err(|error| StartError::Load {
                path: source.path().into(),
                source: error,
            })
    };
    // Guest memory is fresh and zero, so what follows a segment's bytes already is.
    for segment in &plan.placement.segments {
        put(
            &plan.kernel.source,
            segment.offset,
            segment.file_len,
            segment.address,
        )?;
    }
    let mut initrd_at = None;
    if let Some(initrd) = &plan.initrd {
        put(initrd.source(), 0, initrd.len(), initrd.address())?;
        initrd_at = Some((initrd.address(), initrd.len()));
    }
    write_tables(plan, memory, initrd_at)
}

fn write_tables(
    plan: &Plan,
    memory: &GuestMemoryMmap,
    initrd: Option<(u64, u64)>,
) -> Result<(), StartError> {
    let tables = |error: vm_memory::GuestMemoryError| StartError::Tables(error.to_string());
    acpi::write(
        memory,
        &acpi::Platform {
            topology: plan.config.topology,
            devices: &plan.board.aml(),
        },
    )
    .map_err(|error| StartError::Tables(error.to_string()))?;
    smbios::write(memory, &plan.smbios).map_err(tables)?;
    linux::write_cmdline(memory, &plan.cmdline).map_err(tables)?;
    let protocol = plan.placement.protocol;
    match protocol {
        Protocol::Pvh => pvh::write_start_info(memory, initrd, plan.config.memory),
        Protocol::Linux64 | Protocol::Linux32 => linux::write_zero_page(
            memory,
            linux::ZeroPage {
                placement: &plan.placement,
                cmdline_len: plan.cmdline.len(),
                initrd,
                memory: plan.config.memory,
            },
        ),
    }
    .map_err(tables)?;
    registers::write_tables(memory, protocol.mode()).map_err(tables)?;
    reset_vector::write(memory).map_err(tables)?;
    reset::prepare(memory).map_err(tables)
}
