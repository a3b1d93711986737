//! The floor: the shortest program on kvm-ioctls that boots a kernel, with no VMM around it.
//!
//! It is what `make bench` holds against Bantam and every other VMM: the KVM calls that cannot be
//! left out, in the order that costs least, one vCPU on the main thread, and a serial port that
//! does nothing but print. No checks, no disks, no input, no ACPI, no way to stop but to be killed.
//! It is also the shortest answer to "how does a VMM work?": read it from top to bottom.
//!
//!     floor KERNEL [CMDLINE [INITRD]]
//!
//! KERNEL is an ELF file that is entered in long mode by the Linux boot protocol. Without a command
//! line it is taken for a program of the bare machine, which needs neither interrupt controllers
//! nor CPUID.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::{env, error::Error, fs};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, ReadVolatile,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MEMORY: u64 = 256 << 20;
const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const PML4: u64 = 0x9000;
const CMDLINE: u64 = 0x2_0000;
const INITRD: u64 = 128 << 20;

fn main() -> Result<()> {
    let args: Vec<String> = env::args().collect();
    let kernel = args
        .get(1)
        .ok_or("usage: floor KERNEL [CMDLINE [INITRD]]")?;
    let linux = args.get(2);

    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
    let ram = memory.iter().next().ok_or("no memory")?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: ram.len(),
        userspace_addr: ram.as_ptr() as u64,
    };
    // SAFETY: the mapping lives until the process ends.
    unsafe { vm.set_user_memory_region(region)? };
    if linux.is_some() {
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
    }
    let mut vcpu = vm.create_vcpu(0)?;

    let entry = load_elf(&memory, kernel)?;
    if let Some(cmdline) = linux {
        write_zero_page(&memory, cmdline, args.get(3))?;
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        // "A hypervisor is there": only then does Linux look for KVM and its clock.
        for leaf in cpuid
            .as_mut_slice()
            .iter_mut()
            .filter(|leaf| leaf.function == 1)
        {
            leaf.ecx |= 1 << 31;
        }
        vcpu.set_cpuid2(&cpuid)?;
        // IA32_MTRR_DEF_TYPE: write-back, as firmware leaves it.
        vcpu.set_msrs(&Msrs::from_entries(&[kvm_msr_entry {
            index: 0x2ff,
            data: 1 << 11 | 6,
            ..Default::default()
        }])?)?;
    }
    enter_long_mode(&memory, &vcpu, entry)?;
    run(&mut vcpu)
}

/// Copies the PT_LOAD segments; the entry point. Fields by their offsets in `Elf64_Ehdr` and
/// `Elf64_Phdr`.
fn load_elf(memory: &GuestMemoryMmap, path: &str) -> Result<u64> {
    let file = fs::File::open(path)?;
    // SAFETY: a private mapping of a file that stays as it is while this program runs.
    let image = unsafe {
        let len = file.metadata()?.len() as usize;
        let at = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        );
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        std::slice::from_raw_parts(at.cast::<u8>(), len)
    };
    let short = || format!("{path} is cut short");
    let number = |at: usize, len: usize| -> Result<u64> {
        let bytes = image
            .get(at..)
            .and_then(|rest| rest.get(..len))
            .ok_or_else(short)?;
        Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    let (table, count) = (number(32, 8)? as usize, number(56, 2)? as usize);
    for header in (0..count).map(|i| table.saturating_add(56 * i)) {
        if number(header, 4)? == 1 {
            let (offset, len) = (
                number(header.saturating_add(8), 8)? as usize,
                number(header.saturating_add(32), 8)? as usize,
            );
            let mut bytes = image
                .get(offset..)
                .and_then(|rest| rest.get(..len))
                .ok_or_else(short)?;
            let to = GuestAddress(number(header.saturating_add(24), 8)?);
            bytes.read_exact_volatile(&mut memory.get_slice(to, len)?)?;
        }
    }
    number(24, 8)
}

/// Linux boot protocol, Documentation/arch/x86/zero-page.rst.
fn write_zero_page(memory: &GuestMemoryMmap, cmdline: &str, initrd: Option<&String>) -> Result<()> {
    let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at));
    put(CMDLINE, cmdline.as_bytes())?;
    put(ZERO_PAGE + 0x1fe, &0xaa55u16.to_le_bytes())?;
    put(ZERO_PAGE + 0x202, b"HdrS")?;
    put(ZERO_PAGE + 0x210, &[0xff])?; // type_of_loader
    put(ZERO_PAGE + 0x228, &(CMDLINE as u32).to_le_bytes())?;
    put(ZERO_PAGE + 0x238, &(cmdline.len() as u32).to_le_bytes())?;
    if let Some(path) = initrd {
        let bytes = fs::read(path)?;
        put(INITRD, &bytes)?;
        put(ZERO_PAGE + 0x218, &(INITRD as u32).to_le_bytes())?;
        put(ZERO_PAGE + 0x21c, &(bytes.len() as u32).to_le_bytes())?;
    }
    let e820 = [(0, 0x9_fc00), (1 << 20, MEMORY - (1 << 20))];
    put(ZERO_PAGE + 0x1e8, &[e820.len() as u8])?;
    for (i, (start, len)) in (0..).zip(e820) {
        let at = ZERO_PAGE + 0x2d0 + 20 * i;
        put(at, &u64::to_le_bytes(start))?;
        put(at + 8, &u64::to_le_bytes(len))?;
        put(at + 16, &1u32.to_le_bytes())?; // usable
    }
    Ok(())
}

/// The 64-bit entry: first GiB mapped one to one, RSI at the zero page.
fn enter_long_mode(memory: &GuestMemoryMmap, vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let table = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    table(PML4, PML4 + 0x1003)?;
    table(PML4 + 0x1000, PML4 + 0x2003)?;
    let pages: Vec<u8> = (0..512u64)
        .flat_map(|i| (i << 21 | 0x83).to_le_bytes())
        .collect();
    memory.write_slice(&pages, GuestAddress(PML4 + 0x2000))?;
    table(GDT + 0x10, 0x00af_9b00_0000_ffff)?;
    table(GDT + 0x18, 0x00cf_9300_0000_ffff)?;

    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x10,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 0x18,
        type_: 3,
        l: 0,
        db: 1,
        ..code
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = code;
    [sregs.ds, sregs.es, sregs.ss] = [data; 3];
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x1f);
    (sregs.cr0, sregs.cr3, sregs.cr4) = (0x8000_0011, PML4, 0x20); // PG ET PE, PAE
    sregs.efer = 0x500; // LME LMA
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: ZERO_PAGE,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(())
}

fn run(vcpu: &mut VcpuFd) -> Result<()> {
    let mut out = std::io::stdout();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(0x3f8, data) => {
                out.write_all(data)?;
                out.flush()?;
            }
            // The line status register: ready to send.
            VcpuExit::IoIn(0x3fd, data) => data.fill(0x60),
            // The clock chip: no update in progress. Linux would wait for that to end.
            VcpuExit::IoIn(0x71, data) => data.fill(0),
            VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(0xff),
            VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
            // Nothing can wake a program of the bare machine up.
            VcpuExit::Hlt => std::thread::park(),
            other => return Err(format!("{other:?}").into()),
        }
    }
}
