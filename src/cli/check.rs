//! `bantam check`: is this host able?

use clap::Args;
use kvm_ioctls::Kvm;
use serde::Serialize;

use super::print;
use super::run::LAB;
use crate::error::{ExitStatus, help_for};
use crate::machine::host::{self, Backend, KvmError};
use crate::sandbox::offer::{self, Means};

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
    /// What the sandbox can be made of.
    sandbox: Vec<Means>,
    /// Which guests run here, which do not, and what to do about these.
    runs: &'static str,
    does_not_run: &'static str,
    advice: String,
    error: Option<String>,
    help: Option<String>,
}

/// Prints what this host can do.
pub fn check(args: &CheckArgs) -> ExitStatus {
    let report = examine();
    let printed = match args.json {
        true => print::json(&report),
        false => print::text(&describe(&report)),
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
    let (runs, does_not_run) = verdict(backend, problem.is_none());
    Report {
        runs,
        does_not_run,
        advice: advice(backend, problem.as_ref()),
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
        sandbox: offer::examine(),
        help: problem.as_ref().map(help_for),
        error: problem.map(|error| error.to_string()),
    }
}

/// What runs on this kind of host, and what does not.
fn verdict(backend: Backend, able: bool) -> (&'static str, &'static str) {
    match backend {
        _ if !able => ("nothing, as it stands", "every guest"),
        Backend::Pvm => (
            "Linux built with CONFIG_PVM_GUEST; small programs without an operating system",
            "every other Linux kernel, such as those that distributions ship",
        ),
        Backend::Vmx | Backend::Svm => (
            "x86_64 Linux kernels (bzImage, vmlinux) and PVH programs",
            "what needs firmware, a screen or PCI devices: Windows, BIOS and UEFI boot loaders",
        ),
        Backend::Unknown | Backend::None => (
            "unknown: it depends on what is behind KVM here",
            "what needs firmware, a screen or PCI devices",
        ),
    }
}

/// What to do.
fn advice(backend: Backend, problem: Option<&KvmError>) -> String {
    match (problem, backend) {
        (Some(problem), _) => help_for(problem),
        (None, Backend::Pvm) => format!(
            "for other kernels use a host with VMX or SVM, or the lab, from the source's folder: \
             {LAB} bantam run /boot/vmlinuz ..."
        ),
        (None, Backend::Unknown | Backend::None) => {
            "try one: bantam run /boot/vmlinuz --time-limit 1m".into()
        }
        (None, _) => "bantam run /boot/vmlinuz --initrd /boot/initrd.img".into(),
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
    for means in &report.sandbox {
        let mark = if means.available { "yes" } else { "no" };
        let detail = match means.detail.as_str() {
            "" => String::new(),
            detail => format!(": {detail}"),
        };
        line(
            mark,
            format!("sandbox: {} ({}){detail}", means.name, means.purpose),
        );
    }
    line("runs", report.runs.into());
    line("runs not", report.does_not_run.into());
    match &report.error {
        Some(error) => {
            lines.push(format!("error: {error}"));
            lines.push(format!("help: {}", report.advice));
        }
        None => line("next", report.advice.clone()),
    }
    lines.join("\n") + "\n"
}
