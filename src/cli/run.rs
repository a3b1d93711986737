//! `bantam run`.

use std::ffi::OsString;
use std::io::Write;

use super::args::RunArgs;
use super::print;
use crate::config::{ConfigError, VmConfig, file};
use crate::disk_image::target;
use crate::error::{ExitStatus, Failure, escaped, without_errno};
use crate::machine::{Exit, Plan, StartError, host, rehearsal, report, session, signals};
use crate::outlet::{say, stderr};
use crate::sandbox::{self, Mode, privileges};

/// The lab is a machine that QEMU emulates, with a real KVM inside (docs/lab.md).
pub(super) const LAB: &str = "resources/lab/lab --time-limit 600 --";

/// Runs a machine; the exit code says how it ended.
pub fn run(args: RunArgs) -> Result<ExitStatus, Failure> {
    start_log(args.verbose);
    // Before the first file is made: that of a snapshot, or of the cache.
    target::limits_are_errors();
    signals::hold_pauses_back();
    let usage = |error: ConfigError| Failure::new(ExitStatus::Usage, &error);
    let file = args.config.as_deref().map(file::read).transpose();
    let file = file.map_err(usage)?;
    let flags = args.layer;
    let below = file.as_ref().map(|file| file.layer.clone());
    let resolved = VmConfig::resolve(&flags.clone().over(below.unwrap_or_default()));
    let mut config = resolved.map_err(|error| match &file {
        Some(file) => usage(file.locate(error, &flags)),
        None => usage(error),
    })?;
    if config.sandbox.mode != Mode::Off {
        let in_file = file.iter().flat_map(|file| file.layer.all_texts());
        privileges::close_inherited(flags.all_texts().chain(in_file));
    }
    let chosen = match args.dry_run {
        true => config.sandbox.check(),
        false => sandbox::choose(&config.sandbox),
    };
    chosen.map_err(|error| Failure::new(ExitStatus::Start, &error))?;
    for disk in &mut config.disks {
        disk.access.look_only = args.dry_run;
    }
    let plan = Plan::new(config).map_err(|error| Failure::new(error.status(), &error))?;
    let start = |error: StartError| Failure::new(ExitStatus::Start, &error);
    if args.dry_run {
        print::text(&report::describe(&plan))?;
    }
    if host::is_pvm() && plan.kernel.is_lost_on_pvm() {
        return Err(start(StartError::LostOnPvm {
            path: plan.config.boot.path().clone(),
            command: in_the_lab(std::env::args_os()),
        }));
    }
    if args.dry_run {
        rehearsal::rehearse(&plan).map_err(start)?;
        return Ok(ExitStatus::Success);
    }
    let exit = session::run(plan).map_err(start)?;
    announce(&exit)
}

/// The command that runs these arguments, of which the first is our own name, in the lab.
fn in_the_lab(args: impl Iterator<Item = OsString>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+@%".contains(c);
    let started = args.filter(|arg| arg != "--dry-run");
    let words = started.map(|arg| {
        let text = arg.to_string_lossy();
        match !text.is_empty() && text.chars().all(plain) {
            true => text.into_owned(),
            false => format!("'{}'", text.replace('\'', r"'\''")),
        }
    });
    let words: Vec<_> = words.collect();
    format!("{LAB} {}", words.join(" "))
}

/// What is said about the end: nothing where the guest has ended as it should.
fn announce(exit: &Exit) -> Result<ExitStatus, Failure> {
    let status = exit.status();
    let failure = |error: String, help: &str| {
        Err(Failure {
            status,
            error,
            help: help.into(),
        })
    };
    match exit {
        Exit::PoweredOff => log::info!("the guest powered off"),
        Exit::Reset(how) => log::info!("the guest asked for a reset ({how})"),
        Exit::Quit => {
            // The cursor is wherever the guest has left it.
            say("\nbantam: terminated");
        }
        Exit::Signal(name) => {
            return failure(
                format!("ended by {name}; the guest did not power off"),
                "a guest powers off by itself when something in it handles the power button (systemd-logind, acpid)",
            );
        }
        Exit::TimeLimit => {
            return failure(
                "ended by the time limit".into(),
                "give it more with --time-limit, or leave it away",
            );
        }
        Exit::Panicked => {
            return failure(
                "the guest's kernel panicked".into(),
                "its last console lines say why",
            );
        }
        #[cfg(panic = "unwind")]
        Exit::Defect => {
            return failure(
                "a vCPU thread of bantam itself panicked".into(),
                "this is a defect of bantam: report it with the lines above",
            );
        }
        Exit::Crashed(crash) => {
            say(&format!("\n{crash}"));
            return failure(
                format!("vcpu{} crashed: {}", crash.vcpu, crash.explanation()),
                crash.help(),
            );
        }
    }
    Ok(status)
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let env = env_logger::Env::default().filter_or("BANTAM_LOG", level);
    // Fails only where a logger is set already: then that one stays.
    let _ = env_logger::Builder::from_env(env)
        .target(env_logger::Target::Pipe(Box::new(stderr::Log)))
        .format(|out, record| {
            writeln!(
                out,
                "bantam: {}: {}",
                record.level().as_str().to_lowercase(),
                escaped(without_errno(&record.args().to_string()))
            )
        })
        .try_init();
}
