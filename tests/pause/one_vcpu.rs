//! One vCPU without a machine around it, parked at a moment that only its devices can choose.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bantam::board::BusDevice;
use bantam::board::bus::Bus;
use bantam::machine::Exit;
use bantam::machine::ending::ExitBox;
use bantam::machine::ending::reset::ResetFlag;
use bantam::machine::vcpu::step::Vcpu;
use bantam::machine::vcpu::{Mailboxes, Shared, kick};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A device that takes its time: it says that it is asked, and answers with what it is given.
struct Slow(SyncSender<()>, Mutex<Receiver<u8>>);

impl BusDevice for Slow {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        self.0.send(()).unwrap();
        data.fill(self.1.lock().unwrap().recv().unwrap());
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

fn slow() -> (Arc<Slow>, Receiver<()>, SyncSender<u8>) {
    let (asked, is_asked) = sync_channel(1);
    let (answer, get_answer) = sync_channel(1);
    (Arc::new(Slow(asked, get_answer.into())), is_asked, answer)
}

/// KVM puts what a device has answered into the register only with the next KVM_RUN. A vCPU that parks before
/// that would be seen within the instruction, and be saved there.
pub fn answered() {
    const PORT: u64 = 0x300;
    const PAGE: u64 = 0xa0000;
    #[rustfmt::skip]
    let code = [
        0xba, 0x00, 0x03, // mov dx, 0x300
        0xec,             // in al, dx
        0xb8, 0x00, 0xa0, // mov ax, 0xa000
        0x8e, 0xd8,       // mov ds, ax
        0xa0, 0x00, 0x00, // mov al, [0]
        0xeb, 0xfe,       // jmp $
    ];
    kick::install_handler().unwrap();
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let ranges = [(GuestAddress(0), 0x10000)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    memory.write_slice(&code, GuestAddress(0x1000)).unwrap();
    let region = kvm_userspace_memory_region {
        memory_size: 0x10000,
        userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        ..Default::default()
    };
    // SAFETY: the memory outlives the vCPU, whose thread is joined below.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let mut sregs = fd.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).unwrap();
    let mut regs = fd.get_regs().unwrap();
    regs.rip = 0x1000;
    fd.set_regs(&regs).unwrap();

    let (on_port, port_asked, port_answer) = slow();
    let (on_page, page_asked, page_answer) = slow();
    let (mut pio, mut mmio) = (Bus::default(), Bus::default());
    pio.insert(PORT, 1, on_port).unwrap();
    mmio.insert(PAGE, 4096, on_page).unwrap();
    let exit = Arc::new(ExitBox::new().unwrap());
    let mailboxes = Arc::new(Mailboxes::new(1).unwrap());
    let alarmed = mailboxes.clone();
    exit.set_alarm(move || alarmed.alarm());
    let shared = Arc::new(Shared {
        pio,
        mmio,
        memory: memory.clone(),
        reset: Arc::new(ResetFlag::new(memory, false, || false)),
        exit: exit.clone(),
    });
    let mailbox = mailboxes.iter().next().unwrap().clone();
    let vcpu = Vcpu::new(0, fd, shared, mailbox);
    let thread = std::thread::spawn(move || vcpu.run());

    const SOON: Duration = Duration::from_secs(20);
    for (asked, answer, byte, behind) in [
        (port_asked, port_answer, 0x5a, 0x1004),
        (page_asked, page_answer, 0x77, 0x100c),
    ] {
        asked.recv_timeout(SOON).unwrap();
        mailboxes.park();
        answer.send(byte).unwrap();
        let end = Instant::now() + SOON;
        while !mailboxes.all_parked() {
            assert!(Instant::now() < end, "it does not park");
        }
        let state = mailboxes.states(SOON).remove(0);
        let general = state.registers.expect("it answers").general;
        assert_eq!(general.rip, behind, "the instruction has been executed");
        assert_eq!(general.rax as u8, byte);
        assert!(state.parked);
        mailboxes.unpark();
    }
    exit.post(Exit::Quit);
    thread.join().unwrap();
}
