//! What this host lacks for a command of the README.

use std::process::Command;

use bantam::machine::host::{Backend, backend};

use crate::common::{self, has_program, root};

/// Why this host cannot run a command; `None` also for one that is not known.
pub fn missing(command: &str) -> Option<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let needs =
        |program: &str| (!has_program(program)).then(|| format!("{program} is not installed"));
    match words[..] {
        ["make", "run", ..] => needs("make").or_else(no_guests).or_else(no_lab),
        ["make", "install" | "uninstall", ..] => needs("make"),
        ["apt-get", "install", ..] => words[2..]
            .iter()
            .find(|package| common::admin("dpkg", &["-s", package]).is_err())
            .map(|package| format!("{package} is not installed, and a test installs nothing")),
        ["mmdebstrap", ..] => needs("mmdebstrap").or_else(|| {
            (common::admin("id", &["-u"]).as_deref() != Ok("0"))
                .then(|| "only root makes a Debian".to_owned())
        }),
        ["bantam", "run", .., "--dry-run"] => no_guests(),
        ["bantam", "run", ..] => no_guests().or_else(no_lab),
        _ => None,
    }
}

/// The files that `make run` fetches and makes.
fn no_guests() -> Option<String> {
    fresh(&["stock", "rootdisk"]).err()
}

fn no_lab() -> Option<String> {
    if runs_linux() {
        return None;
    }
    fresh(&["lab"]).or_else(|_| fresh(&["lab-stock"])).err()
}

pub fn runs_linux() -> bool {
    matches!(backend(), Backend::Vmx | Backend::Svm) && common::kvm().is_ok()
}

fn fresh(steps: &[&str]) -> Result<(), String> {
    let status = Command::new(root().join("resources/guest/build.sh"))
        .arg("--fresh")
        .args(steps)
        .output()
        .unwrap()
        .status;
    match status.success() {
        true => Ok(()),
        false => Err(format!(
            "{} is missing or out of date: make guests",
            steps.join(", ")
        )),
    }
}
