//! The `bantam` command: parse, dispatch, print one error, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(bantam::cli::main(std::env::args_os()) as u8)
}
