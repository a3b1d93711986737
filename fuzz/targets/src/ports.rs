//! All ports of the machine, in and out, in every width: what the guest asks of its machine by them, and nothing else.
//!
//! The model knows the five ways by which a guest asks for a reset, a power off, or help in a panic, and a keyboard
//! controller to which no keyboard is connected.

use arbitrary::{Arbitrary, Unstructured};
use bantam::arch::x86_64::layout;
use bantam::board::{Part, PowerRequest};
use bantam::devices::{
    i8042::I8042Part, pci::PciPart, power::PowerPart, pvpanic::PvPanicPart, serial::Com1Part,
};

use crate::world::World;

#[derive(Arbitrary, Debug)]
struct Op {
    port: Port,
    write: bool,
    width: u8,
    value: u64,
}

#[derive(Arbitrary, Debug)]
enum Port {
    Any(u16),
    Keyboard(u8),
    Power(u8),
    Panic,
    Pci(u8),
    Serial(u8),
}

impl Port {
    fn number(&self) -> u16 {
        match self {
            Port::Any(port) => *port,
            Port::Keyboard(at) => layout::I8042_PORT + u16::from(at % 6),
            Port::Power(at) => layout::POWER_PORT + u16::from(at % 4),
            Port::Panic => layout::PVPANIC_PORT,
            Port::Pci(at) => layout::PCI_PORT + u16::from(at % 9),
            Port::Serial(at) => layout::COM1_PORT + u16::from(at % 9),
        }
    }
}

#[derive(Default)]
struct Keyboard {
    output: Option<u8>,
    config: u8,
    expects: bool,
}

impl Keyboard {
    fn command(&mut self, command: u8) {
        self.expects = command == 0x60;
        match command {
            0x20 => self.output = Some(self.config),
            0xaa => self.output = Some(0x55),
            0xa9 | 0xab => self.output = Some(1),
            // Switched on or off: nothing is said. A reset says nothing either.
            0xa7 | 0xa8 => {}
            0xfe => {}
            _ => self.output = None,
        }
    }
}

/// What a write asks for.
fn asked(port: u16, bytes: &[u8]) -> Option<PowerRequest> {
    let first = *bytes.first()?;
    match port {
        0x64 if first == 0xfe => Some(PowerRequest::Reset("keyboard controller")),
        0x505 if first & 1 != 0 => Some(PowerRequest::Panicked),
        // SLP_EN, and S5 in SLP_TYP (ACPI 6.5, 4.8.3.7).
        0x600 if first & 0x3c == 0x20 | 5 << 2 => Some(PowerRequest::PowerOff),
        0x602 if first == 1 => Some(PowerRequest::Reset("ACPI reset register")),
        0x602 if first == 2 => Some(PowerRequest::Reset("reset vector")),
        0xcf9 if bytes.len() == 1 && first & 4 != 0 => Some(PowerRequest::Reset("port 0xcf9")),
        _ => None,
    }
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let Ok(ops) = Vec::<Op>::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let parts: Vec<Box<dyn Part>> = vec![
        Box::new(I8042Part),
        Box::new(Com1Part),
        Box::new(PvPanicPart),
        Box::new(PowerPart),
        Box::new(PciPart),
    ];
    let world = World::new(parts);
    let mut keyboard = Keyboard::default();
    let mut requests = Vec::new();
    for op in ops.iter().take(500) {
        let port = op.port.number();
        let width = usize::from(op.width % 9);
        let first = op.value as u8;
        if op.write {
            let bytes = &op.value.to_le_bytes()[..width];
            world.ports.write(port.into(), bytes);
            requests.extend(asked(port, bytes));
            match port {
                0x64 if width > 0 => keyboard.command(first),
                0x60 if width > 0 && keyboard.expects => {
                    keyboard.expects = false;
                    keyboard.config = first;
                }
                _ => {}
            }
            continue;
        }
        let mut bytes = vec![0xee; width];
        world.ports.read(port.into(), &mut bytes);
        let wanted = match port {
            0x60 => keyboard.output.take(),
            // Output buffer full, and the system flag.
            0x64 => Some(4 | u8::from(keyboard.output.is_some())),
            0x505 => Some(1),
            0x600..=0x602 => Some(0),
            0xcfc..=0xcff => Some(0xff),
            0x61..=0x63 | 0x3f8..=0x3ff | 0xcf8..=0xcfb => None,
            _ => Some(0xff),
        };
        if let (Some(wanted), Some(read)) = (wanted, bytes.first()) {
            assert_eq!(*read, wanted, "port {port:#x}");
        }
    }
    assert_eq!(*world.asked.lock().expect("one thread"), requests);
}
