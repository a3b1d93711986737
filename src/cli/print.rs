//! What a subcommand answers, on standard output.

use std::io::Write;

use crate::error::{ExitStatus, Failure, escaped_json, escaped_lines};

/// Prints lines to standard output. What is in them from outside is escaped already; whatever was
/// forgotten does not reach a terminal.
pub fn text(text: &str) -> Result<ExitStatus, Failure> {
    bytes(escaped_lines(text).as_bytes())
}

/// Prints JSON to standard output.
pub fn json(value: &impl serde::Serialize) -> Result<ExitStatus, Failure> {
    // Strings, numbers and lists of them: cannot fail.
    let json = serde_json::to_string_pretty(value).unwrap_or_default();
    bytes(format!("{}\n", escaped_json(&json)).as_bytes())
}

/// Prints to standard output; a reader that has gone (`| head`) is no error.
pub fn bytes(bytes: &[u8]) -> Result<ExitStatus, Failure> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure {
            status: ExitStatus::Start,
            error: format!("cannot print: {}", crate::error::io_reason(&error)),
            help: "check what standard output is redirected to".into(),
        }),
        _ => Ok(ExitStatus::Success),
    }
}
