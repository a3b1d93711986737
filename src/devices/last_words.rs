//! What a guest's kernel has said last on its console: that it has panicked, or that it restarts.
//!
//! A kernel that panics prints "Kernel panic - not syncing: ..." and, with `panic=` on its command
//! line, resets the machine; one that is told to reboot prints "Restarting system" right before it
//! does the same (Linux, kernel/panic.c and kernel/reboot.c). Where nothing else tells the two resets
//! apart, this does.

/// Its first byte is nowhere else in it, so a search that fails begins anew at once.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// The same holds for this one.
const RESTART: &[u8] = b"Restarting system";

/// Reads along, one byte at a time.
#[derive(Debug, Default)]
pub struct LastWords {
    /// How many bytes of each text the output ends with.
    panic: usize,
    restart: usize,
    panicked: bool,
}

impl LastWords {
    /// The guest prints `byte`.
    pub fn saw(&mut self, byte: u8) {
        if step(&mut self.panic, PANIC, byte) {
            self.panicked = true;
        }
        if step(&mut self.restart, RESTART, byte) {
            self.panicked = false;
        }
    }

    /// Whether a panic is the last that was told.
    pub fn panicked(&self) -> bool {
        self.panicked
    }
}

/// True when `byte` completes `text`.
fn step(seen: &mut usize, text: &[u8], byte: u8) -> bool {
    *seen = match text.get(*seen) {
        Some(next) if *next == byte => seen.saturating_add(1),
        _ => usize::from(text.first() == Some(&byte)),
    };
    *seen == text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> bool {
        let mut words = LastWords::default();
        text.bytes().for_each(|byte| words.saw(byte));
        words.panicked()
    }

    #[test]
    fn the_last_of_the_two_counts() {
        assert!(!after("all is well"));
        assert!(after(
            "[ 1.0] Kernel panic - not syncing: sysrq\r\n[ 1.1] Rebooting in 1 seconds.."
        ));
        assert!(after("KKernel panic - not syncing"));
        assert!(!after("Kernel panic - not synching"));
        assert!(!after(
            "log: Kernel panic - not syncing: old\n# reboot\nreboot: Restarting system\n"
        ));
        assert!(after(
            "Restarting system\nKernel panic - not syncing: in a driver's shutdown"
        ));
    }

    #[test]
    fn the_first_byte_of_a_text_is_nowhere_else_in_it() {
        for text in [PANIC, RESTART] {
            assert!(!text[1..].contains(&text[0]));
        }
    }
}
