//! From a [`Plan`] to a running machine: the KVM calls, in order, each with the reason for its place.
//!
//! 1. guest RAM: a memory slot set after the interrupt controllers exist costs KVM more;
//! 2. TSS and identity map: VMX wants their addresses before the first vCPU;
//! 3. irqchip, PIT: before vCPUs, which get their local APICs from it;
//! 4. vCPUs, on their own thread; meanwhile, here, devices, each with its ioeventfd and irqfd;
//! 5. the word to run, last of all: no guest instruction before everything stands.
//!
//! Meanwhile a thread of its own brings kernel, initrd and boot tables into RAM, and the one that
//! will run the first vCPU makes them all ([`super::vcpus`]).

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::bus::Bus;
use super::error::{StartError, call, host};
use super::exit::{Exit, ExitBox};
use super::host;
use super::plan::{Plan, PlannedDisk};
use super::reset::{self, ResetFlag};
use super::vcpu::Shared;
use super::vcpus::{Start, VcpuMaker, Vcpus};
use crate::arch::x86_64::{acpi, layout, registers, reset_vector, smbios};
use crate::boot::{Protocol, Source, cmdline, linux, pvh};
use crate::devices::i8042::I8042;
use crate::devices::pci::PciPorts;
use crate::devices::power::{AcpiPower, PowerRequest, PowerSink};
use crate::devices::pvpanic::PvPanic;
use crate::devices::serial::Uart;
use crate::devices::{BusDevice, IrqLine};
use crate::limits;
use crate::storage::limit::Limiter;
use crate::virtio::block::{Block, Setup};
use crate::virtio::mmio::QUEUE_NOTIFY;
use crate::virtio::{Interrupt, MmioTransport};

/// Less than this is loaded before a thread for it would have started.
const WORTH_A_THREAD: u64 = 1 << 20;

/// A machine that is set up; [`Machine::run`](super::run) starts it.
pub struct Machine {
    pub(super) exit: Arc<ExitBox>,
    pub(super) uart: Arc<Uart>,
    pub(super) power_button: IrqLine,
    pub(super) disks: Vec<MachineDisk>,
    pub(super) vcpus: Vcpus,
    pub(super) shared: Arc<Shared>,
    pub(super) memory_bytes: u64,
    pub(super) built: Instant,
    // Dropped last: the vCPUs and event fds belong to it.
    _vm: Arc<VmFd>,
}

/// A disk of a machine.
pub(super) struct MachineDisk {
    pub(super) block: Arc<Block>,
    /// Each queue has a thread of its own.
    pub(super) io_thread: bool,
}

impl Machine {
    /// Makes the machine that `plan` describes, with `memory`, which is all zeros, as its RAM.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn build(plan: &Plan, memory: &Arc<GuestMemoryMmap>) -> Result<Self, StartError> {
        let kvm = Arc::new(host::open()?);
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
                protocol: plan.placement.protocol,
                entry: plan.placement.entry,
            },
        )?;
        let slots = plan.virtio_slots();
        // KVM waits for the kernel's housekeeping in some calls. What does not need the VM goes on
        // meanwhile.
        std::thread::scope(|scope| {
            let load = || load(plan, &slots, memory);
            let loading = if plan.bytes_to_load() < WORTH_A_THREAD {
                load()?;
                None
            } else {
                Some(spawn(scope, load)?)
            };
            let machine = Machine::assemble(&kvm, vcpus, plan, memory);
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
        let uart = Arc::new(
            Uart::new(irq_line(&vm, layout::COM1_GSI)?).map_err(host("make an event fd"))?,
        );
        let mut mmio = Bus::default();
        let mut disks = Vec::new();
        for disk in &plan.disks {
            disks.push(add_disk(&vm, disk, memory, &mut mmio)?);
        }
        let console = uart.clone();
        let reset = Arc::new(ResetFlag::new(
            memory.clone(),
            cmdline::panics_reset_warm(&plan.cmdline),
            move || console.told_of_panic(),
        ));
        let shared = Arc::new(Shared {
            pio: ports(&uart, power_sink(&exit, &reset))?,
            mmio,
            reset,
            memory: memory.clone(),
            exit: exit.clone(),
        });
        let vcpus = vcpus.made()?;
        Ok(Machine {
            exit,
            uart,
            power_button: irq_line(&vm, layout::POWER_BUTTON_GSI)?,
            disks,
            vcpus,
            shared,
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

/// An event fd that KVM turns into an edge on `gsi`.
fn irq_line(vm: &VmFd, gsi: u32) -> Result<IrqLine, StartError> {
    let fd =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("make an event fd"))?;
    vm.register_irqfd(&fd, gsi).map_err(call("KVM_IRQFD"))?;
    Ok(IrqLine::new(fd))
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
        (
            layout::PCI_PORT,
            layout::PCI_PORTS,
            Arc::new(PciPorts::new(power)),
        ),
    ];
    for (first, count, device) in devices {
        bus.insert(first.into(), count.into(), device)
            .map_err(|overlap| StartError::Defect(overlap.to_string()))?;
    }
    Ok(bus)
}

fn add_disk(
    vm: &VmFd,
    disk: &PlannedDisk,
    memory: &Arc<GuestMemoryMmap>,
    mmio: &mut Bus,
) -> Result<MachineDisk, StartError> {
    let base = u64::from(disk.slot.base);
    let interrupt = Arc::new(Interrupt::new(irq_line(vm, disk.slot.gsi)?));
    let config = &disk.config;
    let setup = Setup {
        image: disk.image.image.clone(),
        read_only: config.access.read_only,
        discard: config.discard,
        serial: disk.serial.clone(),
        queues: config.queues,
        io: config.io,
        limiter: Limiter::new(config.limit_requests, config.limit_bytes),
        // On a host's only processor nobody could do what is waited for.
        poll: match std::thread::available_parallelism() {
            Ok(processors) if processors.get() > 1 => config.poll,
            _ => Duration::ZERO,
        },
    };
    let block =
        Arc::new(Block::new(setup, memory.clone(), interrupt).map_err(host("make an event fd"))?);
    for (queue, number) in block.queues().iter().zip(0u32..) {
        // A write of the queue's number to QueueNotify wakes the worker without an exit.
        vm.register_ioevent(
            &queue.kick,
            &IoEventAddress::Mmio(base.saturating_add(QUEUE_NOTIFY)),
            number,
        )
        .map_err(call("KVM_IOEVENTFD"))?;
    }
    let transport = MmioTransport::new(block.clone(), memory.clone());
    mmio.insert(base, disk.slot.len.into(), Arc::new(transport))
        .map_err(|overlap| StartError::Defect(overlap.to_string()))?;
    Ok(MachineDisk {
        block,
        io_thread: config.io_thread,
    })
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
