//! The command line: clap types, one file per subcommand.
//!
//! What users of QEMU and docker type from habit gets an answer: [`habits`] is the table, `words`
//! finds them among the arguments.

mod args;
mod check;
mod habit_values;
pub mod habits;
mod image;
mod inspect;
mod print;
mod run;
mod words;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::{ExitStatus, Failure, escaped, more_address_space};
use crate::limits;
use crate::outlet::{say, stderr};

const AFTER_HELP: &str = "\
Exit codes:
  0  the guest powered off or rebooted, or Ctrl-a x was typed
  1  bantam check: this host cannot run guests
  2  the command line or the configuration file is wrong
  3  the machine could not be started
  4  the guest crashed (kernel panic, triple fault, KVM internal error)
  5  a signal ended the machine before the guest powered off
  6  the time limit ended the machine
  7  the sandbox stopped the program

Examples:
  bantam run /boot/vmlinuz --initrd /boot/initrd.img --append 'root=/dev/vda1' --disk debian.raw
  bantam run vmlinux --initrd initramfs.cpio.gz --cpus 4 --memory 2G
  bantam check";

/// A minimal KVM hypervisor: boots a stock Linux kernel from one command.
#[derive(Debug, Parser)]
#[command(name = "bantam", version, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a machine and stay until it ends
    Run(Box<args::RunArgs>),
    /// Tell whether this host can run guests, and what to do if not
    Check(check::CheckArgs),
    /// Tell what a kernel image is and what it needs
    Inspect(inspect::InspectArgs),
    /// Make, look at, convert and resize disk images
    Image(image::ImageArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one per subcommand into a folder
    Man {
        /// Where the pages go
        #[arg(long, value_name = "FOLDER")]
        into: Option<std::path::PathBuf>,
    },
}

/// Runs the command and returns the exit code; prints at most one error.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitStatus {
    let status = match dispatch(args) {
        Ok(status) => status,
        Err(failure) => {
            say(&format!("error: {}", escaped(&failure.error)));
            say(&format!("help: {}", escaped(&failure.help)));
            failure.status
        }
    };
    stderr::finish();
    status
}

fn dispatch(args: impl Iterator<Item = OsString>) -> Result<ExitStatus, Failure> {
    limits::room_for_words().map_err(|_| Failure {
        status: ExitStatus::Start,
        error: "there is no memory for reading the command line".into(),
        help: more_address_space(),
    })?;
    let command = Cli::command();
    let words = words::translate(&command, args)?;
    let parsed = command
        .try_get_matches_from(&words)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            say(&words::commands(&Cli::command(), &words));
            return Ok(ExitStatus::Usage);
        }
        Err(error) if error.use_stderr() => return Err(usage_failure(&error)),
        Err(help_or_version) => {
            // Nobody to tell where standard output is closed.
            let _ = help_or_version.print();
            return Ok(ExitStatus::Success);
        }
    };
    match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Check(args) => Ok(check::check(&args)),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Image(args) => image::image(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bantam", &mut script);
            print::bytes(&script)
        }
        Command::Man { into } => man(into.as_deref()),
    }
}

/// clap's message in our two lines.
fn usage_failure(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let missing: Vec<_> = text
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    let tip = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "))
        .map(str::to_owned);
    let mut message = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    if !missing.is_empty() {
        message = format!("{message} {}", missing.join(" "));
    }
    Failure {
        status: ExitStatus::Usage,
        error: message,
        help: tip.unwrap_or_else(|| "see 'bantam --help', or put --help behind the command".into()),
    }
}

fn man(into: Option<&std::path::Path>) -> Result<ExitStatus, Failure> {
    let failed = |error: std::io::Error| Failure {
        status: ExitStatus::Start,
        error: format!(
            "cannot write the manual pages: {}",
            crate::error::io_reason(&error)
        ),
        help: "name a folder that exists and is yours to write".into(),
    };
    let command = Cli::command();
    match into {
        Some(folder) => clap_mangen::generate_to(command, folder).map_err(failed)?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut page)
                .map_err(failed)?;
            return print::bytes(&page);
        }
    }
    Ok(ExitStatus::Success)
}
