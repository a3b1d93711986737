//! The user's terminal: raw mode that always ends, and the escape keys.
//!
//! - [`raw`]: puts the terminal into raw mode and takes it back, whatever ends the process;
//! - [`keys`]: finds Ctrl-a sequences in what is typed.

pub mod keys;
pub mod raw;
