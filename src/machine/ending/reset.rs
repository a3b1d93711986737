//! What a reset of the guest means: that it starts again, that its kernel has panicked, or that a
//! triple fault was on purpose.
//!
//! All three are read from the word at 0x472 of the BIOS data area, where an operating system says
//! how it wants to be started again. Linux writes it right before it resets the machine, by whatever
//! way (arch/x86/kernel/reboot.c, `native_machine_emergency_restart`):
//!
//! | word | who has written it |
//! |---|---|
//! | `UNTOUCHED` | Bantam, before the guest started: a triple fault now is a crash |
//! | 0 | a cold reset, Linux's default |
//! | 0x1234 | a warm one: a panic, where the command line says `reboot=panic_warm`, as the default does |
//!
//! So a panic is known as one without a driver for the pvpanic device, which most distributions
//! have as a module only. Where the command line does not say so, what the guest's kernel has
//! printed on the serial console last decides.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::Exit;
use crate::arch::x86_64::layout;

/// A value that no operating system writes.
const UNTOUCHED: u16 = 0xb047;
/// "Skip the memory test": a warm reset.
const WARM: u16 = 0x1234;

/// Puts `UNTOUCHED` into its place.
///
/// # Errors
/// When there is no RAM.
pub fn prepare(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_obj(UNTOUCHED, GuestAddress(layout::RESET_FLAG))
}

/// Tells resets apart.
pub struct ResetFlag {
    memory: Arc<GuestMemoryMmap>,
    panic_is_warm: bool,
    told_of_panic: Box<dyn Fn() -> bool + Send + Sync>,
}

impl ResetFlag {
    /// The flag in `memory`; with `panic_is_warm` a warm reset is a panic
    /// ([`panics_reset_warm`](crate::boot::cmdline::panics_reset_warm)). `told_of_panic` says whether
    /// the guest's console has told of one.
    pub fn new(
        memory: Arc<GuestMemoryMmap>,
        panic_is_warm: bool,
        told_of_panic: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        ResetFlag {
            memory,
            panic_is_warm,
            told_of_panic: Box::new(told_of_panic),
        }
    }

    fn word(&self) -> Option<u16> {
        self.memory.read_obj(GuestAddress(layout::RESET_FLAG)).ok()
    }

    /// The end that a reset by the way `how` is.
    pub fn exit(&self, how: &'static str) -> Exit {
        match self.word() {
            Some(WARM) if self.panic_is_warm => Exit::Panicked,
            _ if (self.told_of_panic)() => Exit::Panicked,
            _ => Exit::Reset(how),
        }
    }

    /// Whether the guest has said that it is going to reset the machine.
    pub fn announced(&self) -> bool {
        self.word().is_some_and(|word| word != UNTOUCHED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(panic_is_warm: bool, told: bool) -> (Arc<GuestMemoryMmap>, ResetFlag) {
        let ranges = [(GuestAddress(0), 0x1000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        prepare(&memory).unwrap();
        (
            memory.clone(),
            ResetFlag::new(memory, panic_is_warm, move || told),
        )
    }

    fn set(memory: &GuestMemoryMmap, word: u16) {
        memory
            .write_obj(word, GuestAddress(layout::RESET_FLAG))
            .unwrap();
    }

    #[test]
    fn a_warm_reset_is_a_panic_where_the_command_line_says_so() {
        let (memory, flag) = flag(true, false);
        assert!(!flag.announced());
        assert!(matches!(flag.exit("x"), Exit::Reset("x")));
        set(&memory, 0);
        assert!(flag.announced());
        assert!(matches!(flag.exit("x"), Exit::Reset("x")));
        set(&memory, WARM);
        assert!(flag.announced());
        assert!(matches!(flag.exit("x"), Exit::Panicked));
    }

    #[test]
    fn a_warm_reset_is_a_reset_elsewhere() {
        let (memory, flag) = flag(false, false);
        set(&memory, WARM);
        assert!(matches!(flag.exit("x"), Exit::Reset("x")));
    }

    #[test]
    fn a_panic_that_the_console_has_told_of_is_one() {
        let (memory, flag) = flag(false, true);
        set(&memory, 0);
        assert!(matches!(flag.exit("x"), Exit::Panicked));
    }
}
