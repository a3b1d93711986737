//! The console: bytes between the guest and the user's terminal, a pipe, or a file.
//!
//! ```text
//!   serial port ─▶ stage.rs ─▶ line.rs ─▶ Output ─▶ stdout, a pipe, a file, a pseudo-terminal
//!   or hvc0     ◀─ stage.rs ◀─ line.rs ◀─ keys.rs (a terminal only) ◀─ stdin
//! ```
//!
//! - [`mod@line`]: the subscriber of the event loop that moves the bytes, with [`stall`] for a guest that
//!   does not read;
//! - [`stage`]: which of the guest's devices is seen; [`repeats`]: what it prints again;
//! - [`endpoints`]: opens what the configuration names;
//! - [`raw`]: puts the terminal into raw mode and takes it back, whatever ends the process;
//! - [`size`]: asks a terminal for its size;
//! - [`keys`]: finds Ctrl-a sequences in what is typed.
//!
//! What output goes to, and why nobody waits for it, is in [`outlet`](crate::outlet).

pub mod endpoints;
pub mod error;
pub mod keys;
pub mod line;
pub mod raw;
pub mod repeats;
pub mod size;
pub mod stage;
pub mod stall;

pub use error::ConsoleError;
pub use line::{Console, Line};

/// Whether standard input and output are one terminal, or two, and the input is ours to read: a user sits there.
pub fn is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdout()) && raw::owns_terminal()
}
