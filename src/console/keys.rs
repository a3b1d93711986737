//! Escape keys, those of QEMU's `-nographic`: Ctrl-a, then a letter.

/// Ctrl-a.
const PREFIX: u8 = 0x01;

/// What `Ctrl-a h` shows.
pub const HELP: &str = "\
Ctrl-a x  end the machine
Ctrl-a c  show its state
Ctrl-a p  pause it, or have it go on
Ctrl-a h  this help
Ctrl-a a  send Ctrl-a to the guest";

/// What the user asks of the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End the machine.
    Quit,
    /// Show its state.
    State,
    /// Pause it, or have it go on.
    Pause,
    /// Show the keys.
    Help,
}

/// Watches what is typed.
#[derive(Debug, Default)]
pub struct Keys {
    prefix_seen: bool,
}

impl Keys {
    /// Takes one byte: `Ok` is for the guest (or nothing), `Err` is for us.
    pub fn filter(&mut self, byte: u8) -> Result<Option<u8>, Action> {
        if !self.prefix_seen {
            self.prefix_seen = byte == PREFIX;
            return Ok((!self.prefix_seen).then_some(byte));
        }
        self.prefix_seen = false;
        match byte {
            b'x' | b'X' => Err(Action::Quit),
            b'c' | b'C' => Err(Action::State),
            b'p' | b'P' => Err(Action::Pause),
            b'h' | b'H' | b'?' => Err(Action::Help),
            b'a' | b'A' | PREFIX => Ok(Some(PREFIX)),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_in(text: &[u8]) -> (Vec<u8>, Vec<Action>) {
        let mut keys = Keys::default();
        let (mut sent, mut actions) = (Vec::new(), Vec::new());
        for byte in text {
            match keys.filter(*byte) {
                Ok(byte) => sent.extend(byte),
                Err(action) => actions.push(action),
            }
        }
        (sent, actions)
    }

    #[test]
    fn sequences_act_and_the_rest_passes() {
        assert_eq!(
            type_in(b"ls\x01c\x01h -\x01pl\x01x"),
            (
                b"ls -l".to_vec(),
                vec![Action::State, Action::Help, Action::Pause, Action::Quit]
            )
        );
    }

    #[test]
    fn ctrl_a_can_be_sent() {
        assert_eq!(type_in(b"\x01a\x01\x01x"), (b"\x01\x01x".to_vec(), vec![]));
        assert_eq!(
            type_in(b"\x01A"),
            (b"\x01".to_vec(), vec![]),
            "as with the other letters"
        );
    }

    #[test]
    fn unknown_sequences_are_swallowed() {
        assert_eq!(type_in(b"\x01zq"), (b"q".to_vec(), vec![]));
    }
}
