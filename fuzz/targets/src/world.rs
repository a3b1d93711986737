//! A machine without KVM: guest RAM, parts of the machine on their buses, and an event loop that runs when it is
//! told to.
//!
//! The parts are built by the very code that builds them for a guest; only the wires are others. An access of the
//! guest is a call on a bus, a kick arrives in [`World::run`], and an interrupt is a counter in an event fd.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex};

use bantam::board::site::{Built, Site, SiteError, Wires};
use bantam::board::{Board, Bus, CharDevice, Lifecycle, Part, PowerRequest, Pump, Turn};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Guest RAM ends here. It is in two regions, as a machine's is, so that a buffer may lie in both.
pub const RAM_END: u64 = 0x2_0000;
/// The second region begins here, right behind the first.
pub const RAM_MIDDLE: u64 = 0x1_0000;

/// No queue of a device that is left alone by its guest needs more turns than this.
const MAX_TURNS: usize = 10_000;

/// Interrupt lines that a test reads; doorbells that nobody rings, as each write arrives at the device.
#[derive(Default)]
struct TestWires(RefCell<Vec<(u32, EventFd)>>);

impl Wires for TestWires {
    fn interrupt(&self, fd: &EventFd, gsi: u32) -> Result<(), SiteError> {
        let line = fd
            .try_clone()
            .map_err(SiteError::host("copy an event fd"))?;
        self.0.borrow_mut().push((gsi, line));
        Ok(())
    }

    fn doorbell(&self, _fd: &EventFd, _address: u64, _value: u32) -> Result<(), SiteError> {
        Ok(())
    }
}

/// See the [module](self).
pub struct World {
    /// Guest RAM.
    pub memory: Arc<GuestMemoryMmap>,
    /// Devices on ports.
    pub ports: Bus,
    /// Devices on pages of registers.
    pub pages: Bus,
    /// First address and name of each page of registers, in the order of the parts.
    pub places: Vec<(u64, String)>,
    /// All devices, in the order of the parts.
    pub devices: Vec<Built>,
    /// Their queues.
    pub pumps: Vec<Arc<dyn Pump>>,
    /// What a console is tied to.
    pub chars: Vec<Arc<dyn CharDevice>>,
    /// What the guest has asked of its machine.
    pub asked: Arc<Mutex<Vec<PowerRequest>>>,
    /// GSI and event fd of each line.
    pub lines: Vec<(u32, EventFd)>,
}

impl World {
    /// A machine of these parts.
    pub fn new(parts: Vec<Box<dyn Part>>) -> World {
        let regions = [
            (GuestAddress(0), RAM_MIDDLE as usize),
            (GuestAddress(RAM_MIDDLE), (RAM_END - RAM_MIDDLE) as usize),
        ];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).expect("guest RAM"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let sink = asked.clone();
        let wires = TestWires::default();
        let power = Arc::new(move |request| sink.lock().expect("one thread").push(request));
        let board = Board::of(parts).expect("few parts");
        let mut site = Site::new(&memory, power, &wires, Arc::default());
        let mut places = Vec::new();
        for placed in board.parts() {
            placed
                .part
                .build(&placed.place, &mut site)
                .expect("few descriptors");
            places.push((placed.place.range.bounds().0, placed.place.name.clone()));
        }
        let Site {
            ports,
            pages,
            devices,
            pumps,
            chars,
            ..
        } = site;
        World {
            ports,
            pages,
            places,
            devices,
            pumps,
            chars,
            asked,
            lines: wires.0.into_inner(),
            memory,
        }
    }

    /// The event loop, until nothing is left to do.
    pub fn run(&self) {
        for _ in 0..MAX_TURNS {
            let mut idle = true;
            for pump in &self.pumps {
                let kicked = pump.kick().read().is_ok();
                let event = pump.event().is_some_and(|event| event.read().is_ok());
                if kicked || event {
                    idle = false;
                    // A limit asks for time, which does not pass here.
                    if pump.run(false) == Turn::More {
                        pump.kick().write(1).expect("room for a kick");
                    }
                }
            }
            if idle {
                return;
            }
        }
        panic!("a queue has work without end");
    }

    /// A 32-bit register.
    pub fn get(&self, address: u64) -> u32 {
        let mut bytes = [0xee; 4];
        self.pages.read(address, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a 32-bit register.
    pub fn set(&self, address: u64, value: u32) {
        self.pages.write(address, &value.to_le_bytes());
    }

    /// The device of this number.
    pub fn device(&self, number: usize) -> &dyn Lifecycle {
        &*self.devices[number].device
    }

    /// All of guest RAM.
    pub fn ram(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM_END as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(0))
            .expect("RAM");
        bytes
    }

    /// Puts bytes into guest RAM; what is behind its end is left away.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        let room = RAM_END.saturating_sub(at).min(bytes.len() as u64) as usize;
        let bytes = &bytes[..room];
        if !bytes.is_empty() {
            self.memory
                .write_slice(bytes, GuestAddress(at))
                .expect("RAM");
        }
    }

    /// Bytes out of guest RAM.
    pub fn peek<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("RAM");
        bytes
    }
}

/// A file in memory with this content.
pub fn file_of(bytes: &[u8]) -> std::fs::File {
    use std::os::unix::fs::FileExt;
    // SAFETY: the name is a C string for the call; the new descriptor has no other owner.
    let file = unsafe {
        let fd = libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        std::fs::File::from_raw_fd(fd)
    };
    file.write_all_at(bytes, 0).expect("memory");
    file
}

/// A path to an open file, as long as it is open.
pub fn path_of(file: &std::fs::File) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
