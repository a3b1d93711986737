//! The machine the numbers are from.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use bantam::machine::host::{Backend, backend};

/// Whether this host's /dev/kvm runs an unmodified Linux.
pub fn runs_linux() -> bool {
    matches!(backend(), Backend::Vmx | Backend::Svm) && Path::new("/dev/kvm").exists()
}

/// Whose clock the lab has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lab {
    /// It counts instructions.
    Virtual,
    /// The host's, of an emulated processor.
    Emulated,
}

/// What the harness outside has set for the one in the lab.
const LAB_VARIABLE: &str = "BANTAM_BENCH_LAB";

/// Where this runs, if that is the lab.
pub fn lab() -> Option<Lab> {
    std::env::var_os("BANTAM_LAB")?;
    let clock = std::env::var(LAB_VARIABLE).ok()?;
    [Lab::Virtual, Lab::Emulated]
        .into_iter()
        .find(|lab| lab.word() == clock)
}

impl Lab {
    /// For the environment.
    pub fn variable(self) -> (&'static str, &'static str) {
        (LAB_VARIABLE, self.word())
    }

    fn word(self) -> &'static str {
        match self {
            Lab::Virtual => "virtual",
            Lab::Emulated => "emulated",
        }
    }
}

/// How the bare-metal guest gets to ring 3 on this host: KVM's emulator, which runs ring 0 under
/// PVM, knows only one of the two ways; processors of AMD only the other.
pub fn ring_word() -> &'static str {
    if backend() == Backend::Pvm {
        ""
    } else {
        " ring=iret"
    }
}

/// Processor, kernel, KVM, memory.
pub fn facts() -> BTreeMap<String, String> {
    let field = |file: &str, name: &str| -> Option<String> {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    [
        ("processor", field("/proc/cpuinfo", "model name")),
        ("processors", Some(cpus.to_string())),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("kernel", output(Command::new("uname").arg("-r"))),
        ("kvm", Some(format!("{:?}", backend()).to_lowercase())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect()
}

/// The processors that this process may use, by number.
pub fn processors() -> Option<&'static [u32]> {
    static ALL: std::sync::OnceLock<Option<Vec<u32>>> = std::sync::OnceLock::new();
    ALL.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let mut lines = status.lines();
        let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let mut all = Vec::new();
        for range in list.trim().split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            all.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
        }
        Some(all)
    })
    .as_deref()
}

/// Now, UTC.
pub fn date() -> String {
    output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])).unwrap_or_default()
}

/// The commit that was built.
pub fn commit(root: &Path) -> String {
    let git = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output();
    match git {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}

/// Ticks of the time-stamp counter in a second, which guests see as well.
pub fn tsc_hz_cached() -> f64 {
    static HZ: std::sync::OnceLock<f64> = std::sync::OnceLock::new();
    *HZ.get_or_init(tsc_hz)
}

fn tsc_hz() -> f64 {
    use std::time::{Duration, Instant};
    // SAFETY: every x86_64 processor has a time-stamp counter.
    let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, from) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_millis(50));
    (ticks() - from) as f64 / start.elapsed().as_secs_f64()
}

fn output(command: &mut Command) -> Option<String> {
    let out = command.output().ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
