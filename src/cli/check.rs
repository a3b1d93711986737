//! `bantam check`: is this host able?

use clap::Args;
use kvm_ioctls::Kvm;
use serde::Serialize;

use crate::error::{ExitStatus, Help};
use crate::machine::host::{self, Backend, KvmError};

/// Options of `bantam check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Capability {
    name: &'static str,
    purpose: &'static str,
    available: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    able: bool,
    device: &'static str,
    user: String,
    accessible: bool,
    group: Option<String>,
    api_version: Option<i32>,
    backend: Backend,
    meaning: &'static str,
    max_cpus: Option<usize>,
    capabilities: Vec<Capability>,
    error: Option<String>,
    help: Option<String>,
}

/// Prints what this host can do.
pub fn check(args: &CheckArgs) -> ExitStatus {
    let report = examine();
    let printed = match args.json {
        true => super::print_json(&report),
        false => super::print_text(&describe(&report)),
    };
    match printed {
        Ok(_) if report.able => ExitStatus::Success,
        _ => ExitStatus::Unable,
    }
}

fn examine() -> Report {
    let opened = Kvm::new();
    let kvm = opened.as_ref().ok();
    let capabilities: Vec<_> = kvm
        .map(|kvm| {
            host::NEEDED
                .iter()
                .map(|(cap, name, purpose)| Capability {
                    name,
                    purpose,
                    available: kvm.check_extension(*cap),
                })
                .collect()
        })
        .unwrap_or_default();
    let problem: Option<KvmError> = host::open().err();
    let backend = host::backend();
    Report {
        able: problem.is_none(),
        device: host::KVM_DEVICE,
        user: host::user_name(),
        accessible: host::may_open(),
        group: host::device_group(),
        api_version: kvm.map(Kvm::get_api_version),
        backend,
        meaning: backend.meaning(),
        max_cpus: kvm.map(Kvm::get_max_vcpus),
        capabilities,
        help: problem.as_ref().map(Help::help),
        error: problem.map(|error| error.to_string()),
    }
}

fn describe(report: &Report) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(format!("{name:<12}{value}"));
    let access = if report.accessible {
        "may open it"
    } else {
        "may not open it"
    };
    line(report.device, format!("user {} {access}", report.user));
    if let Some(version) = report.api_version {
        line("api", version.to_string());
    }
    line("backend", report.meaning.to_owned());
    if let Some(max) = report.max_cpus {
        line("cpus", format!("at most {max} per machine"));
    }
    for capability in &report.capabilities {
        let mark = if capability.available { "yes" } else { "NO" };
        line(
            mark,
            format!("{} ({})", capability.name, capability.purpose),
        );
    }
    match (&report.error, &report.help) {
        (Some(error), Some(help)) => {
            lines.push(format!("error: {error}"));
            lines.push(format!("help: {help}"));
        }
        _ if report.backend == Backend::Pvm => lines.push(
            "This host runs small guests and PVM-aware kernels; for a stock kernel use one with VMX or SVM."
                .into(),
        ),
        _ => lines.push("This host can run guests.".into()),
    }
    lines.join("\n") + "\n"
}
