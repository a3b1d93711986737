//! The console: bytes between the guest and the user's terminal, a pipe, or a file.
//!
//! ```text
//!   serial port ─▶ line.rs ─▶ output.rs ─▶ stdout, a pipe, a file, a pseudo-terminal
//!   serial port ◀─ line.rs ◀─ keys.rs (a terminal only) ◀─ stdin
//! ```
//!
//! - [`mod@line`]: the subscriber of the event loop that moves the bytes, with [`stall`] for a guest that
//!   does not read;
//! - [`output`]: an output that never blocks;
//! - [`endpoints`]: opens what the configuration names;
//! - [`raw`]: puts the terminal into raw mode and takes it back, whatever ends the process;
//! - [`keys`]: finds Ctrl-a sequences in what is typed.

pub mod endpoints;
pub mod error;
pub mod keys;
pub mod line;
pub mod output;
pub mod raw;
pub mod stall;

pub use error::ConsoleError;
pub use line::{Console, Line};
