//! `make install`, `make uninstall` and `cargo install`: what they put where, and that it works there.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::trials::{Test, exit_after, trials_of};
use common::{Outcome, as_nobody, bantam, has_program, root, run_with};

fn main() {
    let without =
        |program: &str| (!has_program(program)).then(|| format!("{program} is not installed"));
    let make = without("make");
    let tests: [Test; 7] = [
        (
            "what_is_installed_runs_and_uninstall_leaves_nothing",
            make.clone(),
            everything,
        ),
        (
            "every_command_has_a_manual_page_that_groff_reads",
            make.clone().or_else(|| without("groff")),
            manual,
        ),
        (
            "the_shells_complete_what_the_program_knows",
            make.clone(),
            completions,
        ),
        (
            "the_completions_for_zsh_and_fish_are_read_by_them",
            make.clone()
                .or_else(|| without("zsh"))
                .or_else(|| without("fish")),
            other_shells,
        ),
        (
            "a_folder_that_is_somebody_elses_is_refused_before_anything_is_built",
            make.clone().or_else(nobody),
            refused,
        ),
        (
            "a_program_that_is_not_there_is_one_clear_error",
            make,
            no_program,
        ),
        ("cargo_install_installs_the_program", None, by_cargo),
    ];
    exit_after(trials_of(tests));
}

fn make(words: &[&str]) -> Outcome {
    run_with(common::make(words), b"", Duration::from_secs(120))
}

/// The program installed below a fresh folder, with the usual PREFIX; and that folder.
fn installed() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (bin, destdir) = (
        format!("BIN={}", bantam()),
        format!("DESTDIR={}", folder.path().display()),
    );
    let outcome = make(&["install", &bin, &destdir]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let prefix = folder.path().join("usr/local");
    (folder, prefix)
}

/// All files below `folder`, as paths from there.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                found.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn everything() {
    let (folder, prefix) = installed();
    let found = files(&prefix);
    for name in [
        "bin/bantam",
        "share/man/man1/bantam.1",
        "share/man/man1/bantam-run.1",
        "share/bash-completion/completions/bantam",
        "share/zsh/site-functions/_bantam",
        "share/fish/vendor_completions.d/bantam.fish",
    ] {
        assert!(found.iter().any(|file| file == name), "{name}: {found:?}");
    }
    let mut command = Command::new(prefix.join("bin/bantam"));
    command.arg("--version");
    let outcome = run_with(command, b"", Duration::from_secs(10));
    assert_eq!(
        (outcome.code(), outcome.stdout.trim()),
        (0, concat!("bantam ", env!("CARGO_PKG_VERSION")))
    );

    // A file beside ours stays, whatever it is called.
    let neighbour = prefix.join("share/man/man1/bantamweight.1");
    std::fs::write(&neighbour, "somebody else's").unwrap();
    let destdir = format!("DESTDIR={}", folder.path().display());
    let outcome = make(&["uninstall", &destdir]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert_eq!(files(&prefix), ["share/man/man1/bantamweight.1"]);
}

/// The commands, and their own commands below them, by their help.
fn commands(before: &[&str]) -> Vec<Vec<String>> {
    let mut words = before.to_vec();
    words.push("--help");
    let help = common::run(&words).stdout;
    let mut found = Vec::new();
    let listed = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help");
    for name in listed {
        let path: Vec<&str> = before.iter().copied().chain([name]).collect();
        found.push(path.iter().map(|word| (*word).to_owned()).collect());
        found.extend(commands(&path));
    }
    found
}

fn manual() {
    let (_folder, prefix) = installed();
    let pages = prefix.join("share/man/man1");
    let commands = commands(&[]);
    assert!(commands.len() > 5, "{commands:?}");
    for command in commands {
        let page = pages.join(format!("bantam-{}.1", command.join("-")));
        let mut groff = Command::new("groff");
        // Plain text: nothing struck over.
        groff.args(["-man", "-Tascii", "-ww", "-P-cbou"]).arg(&page);
        let outcome = run_with(groff, b"", Duration::from_secs(20));
        assert_eq!(outcome.code(), 0, "{page:?}: {outcome:?}");
        assert_eq!(outcome.stderr, "", "{page:?}");
        let title = format!("\nNAME\n       bantam-{}", command.join("-"));
        assert!(outcome.stdout.contains(&title), "{page:?}");
    }
}

fn completions() {
    let (_folder, prefix) = installed();
    // What bash does at the Tab key: it calls the function that is registered for the program.
    let script = r#"
        set -e
        source "$1/share/bash-completion/completions/bantam"
        function=$(complete -p bantam | sed 's/.*-F \([^ ]*\).*/\1/')
        tab() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); "$function" bantam "${@: -1}" "${@: -2:1}"; echo "${COMPREPLY[*]}"; }
        tab bantam ch
        tab bantam run --mem
        tab bantam image res
    "#;
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", script, "bash"]).arg(&prefix);
    let outcome = run_with(command, b"", Duration::from_secs(20));
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{outcome:?}");
    assert_eq!(lines[0], "check");
    assert!(lines[1].split(' ').any(|word| word == "--memory"));
    assert_eq!(lines[2], "resize");
}

fn other_shells() {
    let (_folder, prefix) = installed();
    for (shell, file) in [
        ("zsh", "share/zsh/site-functions/_bantam"),
        ("fish", "share/fish/vendor_completions.d/bantam.fish"),
    ] {
        let mut command = Command::new(shell);
        command.arg("-n").arg(prefix.join(file));
        let outcome = run_with(command, b"", Duration::from_secs(20));
        assert_eq!(outcome.code(), 0, "{shell}: {outcome:?}");
    }
}

/// Why a user who may write to nothing here cannot be tried.
fn nobody() -> Option<String> {
    if let Some(why) = common::nobody_missing() {
        return Some(why);
    }
    let mut command = as_nobody(Path::new("test"));
    command.arg("-r").arg(root().join("resources/install"));
    let outcome = run_with(command, b"", Duration::from_secs(10));
    (!outcome.status.success()).then(|| "other users cannot read the project's folder".into())
}

fn refused() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = format!("PREFIX={}/deep/inside", folder.path().display());
    let mut command = as_nobody(Path::new("make"));
    command.arg("-C").arg(root()).args(["install", &prefix]);
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let outcome = run_with(command, b"", Duration::from_secs(20));
    assert_ne!(outcome.code(), 0, "{outcome:?}");
    let said = format!("you may not write to {}", folder.path().display());
    assert!(outcome.stderr.contains(&said), "{outcome:?}");
    assert!(outcome.stderr.contains("sudo make install"), "{outcome:?}");
    assert!(!outcome.stdout.contains("cargo"), "{outcome:?}");
}

fn no_program() {
    let folder = tempfile::tempdir().unwrap();
    let destdir = format!("DESTDIR={}", folder.path().display());
    let outcome = make(&["install", "BIN=/nowhere/bantam", &destdir]);
    assert_ne!(outcome.code(), 0, "{outcome:?}");
    assert!(
        outcome.stderr.contains("/nowhere/bantam is not there"),
        "{outcome:?}"
    );
    assert!(files(folder.path()).is_empty());
}

/// As a debug build, most of which is there already.
fn by_cargo() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command
        .args(["install", "--path", ".", "--debug", "--locked", "--root"])
        .arg(folder.path())
        .current_dir(root());
    let outcome = run_with(command, b"", Duration::from_secs(600));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let program = folder.path().join("bin/bantam");
    let mut command = Command::new(&program);
    command.arg("--version");
    let outcome = run_with(command, b"", Duration::from_secs(10));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert_eq!(
        std::fs::read_dir(folder.path().join("bin"))
            .unwrap()
            .count(),
        1,
        "no example or bench is installed beside it"
    );
}
