//! From a [`Plan`] to a running machine: the KVM calls, in order, each with the reason for its place.
//!
//! 1. guest RAM: a memory slot set after the interrupt controllers exist costs KVM more;
//! 2. TSS and identity map: VMX wants their addresses before the first vCPU;
//! 3. irqchip, PIT: before vCPUs, which get their local APICs from it;
//! 4. devices: each with its ioeventfd and irqfd;
//! 5. vCPUs: CPUID first, as KVM checks registers and MSRs against it;
//! 6. threads, last of all: nothing runs before everything stands.
//!
//! Meanwhile threads of their own bring kernel, initrd and boot tables into RAM, and ask what CPUID
//! can be.

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_msr_entry, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::block_io::BlockIo;
use super::bus::Bus;
use super::error::{StartError, call, host};
use super::exit::{Exit, ExitBox};
use super::plan::{Plan, PlannedDisk};
use super::vcpu::{Counters, RESET_FLAG_UNTOUCHED, Shared, Vcpu};
use super::{host, memory};
use crate::arch::x86_64::{acpi, cpuid, interrupts, layout, registers};
use crate::boot::{Protocol, Source, linux, pvh};
use crate::devices::i8042::I8042;
use crate::devices::power::{AcpiPower, PciReset, PowerRequest, PowerSink};
use crate::devices::pvpanic::PvPanic;
use crate::devices::serial::Uart;
use crate::devices::{BusDevice, IrqLine};
use crate::virtio::block::Block;
use crate::virtio::mmio::QUEUE_NOTIFY;
use crate::virtio::{Interrupt, MmioTransport};

/// MTRR default type: enabled, write-back (Intel SDM 3A, 13.11.2.1), as firmware leaves it.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
/// IA32_MISC_ENABLE: fast strings.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

/// Less than this is loaded before a thread for it would have started.
const WORTH_A_THREAD: u64 = 1 << 20;

/// A machine that is set up; [`Machine::run`](super::run) starts it.
pub struct Machine {
    pub(super) exit: Arc<ExitBox>,
    pub(super) uart: Arc<Uart>,
    pub(super) power_button: IrqLine,
    pub(super) disks: Vec<BlockIo>,
    pub(super) vcpus: Vec<(Vcpu, Arc<Counters>)>,
    pub(super) console: crate::config::Console,
    pub(super) time_limit: Option<Duration>,
    pub(super) memory_bytes: u64,
    pub(super) built: Instant,
    // Dropped last: the vCPUs and event fds belong to it.
    _vm: VmFd,
}

impl Machine {
    /// Makes the machine that `plan` describes.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn build(mut plan: Plan) -> Result<Self, StartError> {
        let kvm = host::open()?;
        let cpus = plan.config.topology.cpus();
        let max = kvm.get_max_vcpus();
        if cpus as usize > max {
            return Err(StartError::Cpus { cpus, max });
        }
        let memory = Arc::new(memory::map(plan.config.memory)?);
        let slots = plan.virtio_slots();
        let disks = std::mem::take(&mut plan.disks);
        // KVM waits for the kernel's housekeeping in some calls, and asking the processor what it
        // can do is slow where that is itself virtual. What does not need the VM goes on meanwhile.
        std::thread::scope(|scope| {
            let supported = spawn(scope, || kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))?;
            let load = || load(&plan, &slots, &memory);
            let loading = if plan.bytes_to_load() < WORTH_A_THREAD {
                load()?;
                None
            } else {
                Some(spawn(scope, load)?)
            };
            let machine = Machine::assemble(&kvm, supported, &plan, disks, &memory);
            if let Some(loading) = loading {
                join(loading)??;
            }
            machine
        })
    }

    /// The KVM calls.
    fn assemble(
        kvm: &Kvm,
        supported: ScopedJoinHandle<'_, Result<CpuId, kvm_ioctls::Error>>,
        plan: &Plan,
        planned: Vec<PlannedDisk>,
        memory: &Arc<GuestMemoryMmap>,
    ) -> Result<Self, StartError> {
        let vm = create_vm(kvm)?;
        add_memory(&vm, memory)?;
        vm.set_tss_address(layout::KVM_TSS as usize)
            .map_err(call("KVM_SET_TSS_ADDR"))?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        vm.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })
        .map_err(call("KVM_CREATE_PIT2"))?;

        let exit = Arc::new(ExitBox::new().map_err(host("make an event fd"))?);
        let uart = Arc::new(
            Uart::new(irq_line(&vm, layout::COM1_GSI)?).map_err(host("make an event fd"))?,
        );
        let mut mmio = Bus::default();
        let mut disks = Vec::new();
        for disk in planned {
            disks.push(add_disk(&vm, disk, memory, &mut mmio)?);
        }
        let shared = Arc::new(Shared {
            pio: ports(&uart, power_sink(&exit))?,
            mmio,
            memory: memory.clone(),
            exit: exit.clone(),
        });
        let supported = join(supported)?.map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
        let cpuid = (&supported, kvm.check_extension(Cap::TscDeadlineTimer));
        let vcpus = add_vcpus(&vm, cpuid, plan.config.topology, &plan.placement, &shared)?;
        Ok(Machine {
            exit,
            uart,
            power_button: irq_line(&vm, layout::POWER_BUTTON_GSI)?,
            disks,
            vcpus,
            console: plan.config.console.clone(),
            time_limit: plan.config.time_limit,
            memory_bytes: plan.config.memory,
            built: Instant::now(),
            _vm: vm,
        })
    }
}

/// A thread that helps to build: where the host allows no more of them, an error and not a panic.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, StartError> {
    std::thread::Builder::new()
        .spawn_scoped(scope, work)
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

/// An event fd that KVM turns into an edge on `gsi`.
fn irq_line(vm: &VmFd, gsi: u32) -> Result<IrqLine, StartError> {
    let fd =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("make an event fd"))?;
    vm.register_irqfd(&fd, gsi).map_err(call("KVM_IRQFD"))?;
    Ok(IrqLine::new(fd))
}

fn power_sink(exit: &Arc<ExitBox>) -> PowerSink {
    let exit = exit.clone();
    Arc::new(move |request| {
        exit.post(match request {
            PowerRequest::PowerOff => Exit::PoweredOff,
            PowerRequest::Reset(how) => Exit::Reset(how),
            PowerRequest::Panicked => Exit::Panicked,
        });
    })
}

fn ports(uart: &Arc<Uart>, power: PowerSink) -> Result<Bus, StartError> {
    let mut bus = Bus::default();
    let devices: [(u16, u16, Arc<dyn BusDevice>); 5] = [
        (
            layout::I8042_PORT,
            layout::I8042_PORTS,
            Arc::new(I8042::new(power.clone())),
        ),
        (layout::COM1_PORT, layout::COM1_PORTS, uart.clone()),
        (
            layout::PVPANIC_PORT,
            1,
            Arc::new(PvPanic::new(power.clone())),
        ),
        (
            layout::POWER_PORT,
            layout::POWER_PORTS,
            Arc::new(AcpiPower::new(power.clone())),
        ),
        (layout::CF9_PORT, 1, Arc::new(PciReset::new(power))),
    ];
    for (first, count, device) in devices {
        bus.insert(first.into(), count.into(), device)
            .map_err(|overlap| StartError::Tables(overlap.to_string()))?;
    }
    Ok(bus)
}

fn add_disk(
    vm: &VmFd,
    disk: PlannedDisk,
    memory: &Arc<GuestMemoryMmap>,
    mmio: &mut Bus,
) -> Result<BlockIo, StartError> {
    let base = u64::from(disk.slot.base);
    let interrupt = Arc::new(Interrupt::new(irq_line(vm, disk.slot.gsi)?));
    let block = Block::new(
        Box::new(disk.image),
        disk.config.read_only,
        &disk.serial,
        memory.clone(),
        interrupt,
    )
    .map_err(host("make an event fd"))?;
    // A write of 0, the queue's number, to QueueNotify wakes the worker without an exit.
    vm.register_ioevent(
        block.kick_fd(),
        &IoEventAddress::Mmio(base.saturating_add(QUEUE_NOTIFY)),
        0u32,
    )
    .map_err(call("KVM_IOEVENTFD"))?;
    let io = BlockIo {
        kick: block
            .kick_fd()
            .try_clone()
            .map_err(host("copy an event fd"))?,
        worker: block.worker().clone(),
    };
    let transport = MmioTransport::new(Arc::new(block), memory.clone());
    mmio.insert(base, disk.slot.len.into(), Arc::new(transport))
        .map_err(|overlap| StartError::Tables(overlap.to_string()))?;
    Ok(io)
}

/// Kernel, initrd and everything that the boot protocol wants in memory.
fn load(
    plan: &Plan,
    slots: &[acpi::VirtioMmio],
    memory: &GuestMemoryMmap,
) -> Result<(), StartError> {
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
    write_tables(plan, slots, memory, initrd_at)
}

fn write_tables(
    plan: &Plan,
    slots: &[acpi::VirtioMmio],
    memory: &GuestMemoryMmap,
    initrd: Option<(u64, u64)>,
) -> Result<(), StartError> {
    let tables = |error: vm_memory::GuestMemoryError| StartError::Tables(error.to_string());
    acpi::write(
        memory,
        &acpi::Platform {
            topology: plan.config.topology,
            virtio: slots,
        },
    )
    .map_err(|error| StartError::Tables(error.to_string()))?;
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
    memory
        .write_obj(RESET_FLAG_UNTOUCHED, GuestAddress(layout::RESET_FLAG))
        .map_err(tables)
}

fn add_vcpus(
    vm: &VmFd,
    (supported, tsc_deadline): (&CpuId, bool),
    topology: crate::arch::x86_64::topology::Topology,
    placement: &crate::boot::Placement,
    shared: &Arc<Shared>,
) -> Result<Vec<(Vcpu, Arc<Counters>)>, StartError> {
    let mut template = Vec::new();
    let mut vcpus = Vec::new();
    for index in 0..topology.cpus() {
        let fd = vm
            .create_vcpu(topology.apic_id(index).into())
            .map_err(call("KVM_CREATE_VCPU"))?;
        if template.is_empty() {
            template = cpuid::template(
                supported,
                cpuid::Facts {
                    topology,
                    tsc_khz: fd.get_tsc_khz().ok().filter(|khz| *khz > 0),
                    tsc_deadline,
                },
            );
        }
        let entries = cpuid::for_vcpu(&template, topology, index);
        let entries = CpuId::from_entries(&entries)
            .map_err(|error| StartError::Tables(format!("CPUID: {error:?}")))?;
        fd.set_cpuid2(&entries).map_err(call("KVM_SET_CPUID2"))?;
        set_state(&fd, index, placement)?;
        let counters = Arc::new(Counters::default());
        vcpus.push((
            Vcpu::new(index, fd, shared.clone(), counters.clone()),
            counters,
        ));
    }
    Ok(vcpus)
}

fn set_state(
    fd: &VcpuFd,
    index: u32,
    placement: &crate::boot::Placement,
) -> Result<(), StartError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
        entry(MSR_MISC_ENABLE, FAST_STRINGS),
    ])
    .map_err(|error| StartError::Tables(format!("MSRs: {error:?}")))?;
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
    let (rsi, rbx) = match placement.protocol {
        Protocol::Pvh => (0, layout::PVH_START_INFO),
        Protocol::Linux64 | Protocol::Linux32 => (layout::ZERO_PAGE, 0),
    };
    let mode = placement.protocol.mode();
    let mut sregs = fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    registers::special(&mut sregs, mode);
    fd.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
    fd.set_regs(&registers::general(registers::Entry {
        mode,
        rip: placement.entry,
        rsi,
        rbx,
    }))
    .map_err(call("KVM_SET_REGS"))
}
