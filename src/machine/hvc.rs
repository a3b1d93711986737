//! Whether a machine has a virtio console beside its serial port, and what its command line says of it.
//!
//! It is for a user at a terminal, as its use is that the guest's terminal has the size of the user's. And it
//! is for kernels that have the driver built in: systemd and others start a login on each console that there is
//! when they start, and the user sees one device alone. A driver that comes later, as a module, would take
//! the screen away from a login that is on the serial port. Where either is not so, nothing is different from a
//! machine without it: pipes and files see what they have always seen.

use crate::boot::cmdline::{self, Added};
use crate::boot::{Kernel, Placement, drivers};
use crate::config::{BootFrom, Console, Port, VmConfig};
use crate::console;

/// The rest of the machine.
pub struct Around<'a> {
    /// The kernel, unpacked if that can be.
    pub kernel: &'a Kernel,
    /// Where it goes.
    pub placement: &'a Placement,
    /// There is no page of registers left on the board.
    pub full: bool,
}

impl Around<'_> {
    fn has_driver(&self, config: &VmConfig) -> bool {
        let image = match &config.boot {
            BootFrom::Kernel(path) => Some(path.as_path()),
            // What is beside an ISO belongs to no kernel in it.
            BootFrom::Iso(_) => None,
        };
        drivers::built_in(self.kernel, self.placement, image, &drivers::CONSOLE)
    }
}

/// The command line, and whether there is a virtio console.
pub fn decide(
    config: &VmConfig,
    append: &[String],
    root: Option<&str>,
    around: &Around<'_>,
) -> (String, bool) {
    let compose = |hvc0| cmdline::compose(config.cmdline.as_deref(), append, Added { root, hvc0 });
    let on_terminal = match &config.console {
        Console::Stdio(Port::Virtio) => return (compose(true), true),
        // The last place on the board is for what the user has asked for.
        _ if around.full => false,
        Console::Stdio(Port::Auto) => console::is_terminal(),
        Console::Pty => true,
        Console::Stdio(Port::Serial) | Console::File { .. } | Console::None => false,
    };
    let plain = compose(false);
    // With words of their own, users say whether they want it, and know their kernels.
    let named = on_terminal && cmdline::ends_at_hvc0(&plain);
    let with = compose(true);
    let wanted = on_terminal && cmdline::ends_at_hvc0(&with);
    match wanted && (named || around.has_driver(config)) {
        true => (with, true),
        false => (plain, false),
    }
}
