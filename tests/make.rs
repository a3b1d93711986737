//! The Makefile and the scripts below resources/: what they list, install, wait for and build.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::trials::{Test, exit_after, trials_of};
use common::{Outcome, bantam, has_program, make, root, run_with};

fn main() {
    let no_make = (!has_program("make")).then(|| "make is not installed".to_owned());
    let guest = complaint(script("resources/setup").args(["--check", "guest"]));
    let lab = complaint(script("resources/setup").args(["--check", "lab"])).or_else(|| {
        complaint(script("resources/guest/build.sh").args(["--fresh", "lab-stock"])).map(|_| {
            "the lab of Debian's kernel is not there: resources/guest/build.sh lab-stock".to_owned()
        })
    });
    let tests: [Test; 8] = [
        ("make_help_lists_each_target", no_make.clone(), help),
        (
            "make_build_names_what_is_missing_and_installs_nothing",
            no_make.clone(),
            build_installs_nothing,
        ),
        (
            "the_start_row_needs_no_kernel_and_compiles_none",
            no_make.clone(),
            bench_start,
        ),
        (
            "a_build_does_not_wait_for_one_of_something_else",
            guest.clone(),
            no_wait,
        ),
        (
            "a_build_waits_for_one_of_the_same_and_says_for_whom",
            guest,
            wait,
        ),
        (
            "progress_ends_with_a_script_that_is_killed",
            None,
            progress_ends,
        ),
        (
            "progress_moves_on_a_terminal_and_leaves_no_line",
            (!has_program("script")).then(|| "script is not installed".to_owned()),
            progress_on_terminal,
        ),
        ("the_lab_starts_from_debians_kernel", lab, lab_of_debian),
    ];
    exit_after(trials_of(tests));
}

fn script(path: &str) -> Command {
    let mut command = Command::new("bash");
    command.arg(root().join(path)).current_dir(root());
    command
}

/// What a command says when it fails.
fn complaint(command: &mut Command) -> Option<String> {
    let out = command.output().unwrap();
    (!out.status.success()).then(|| String::from_utf8_lossy(&out.stderr).trim().to_owned())
}

fn run(command: Command) -> Outcome {
    run_with(command, b"", Duration::from_secs(120))
}

fn help() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: Vec<&str> = makefile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            (!rest.starts_with('=') && !name.contains(' ')).then_some(name)
        })
        .collect();
    assert!(targets.contains(&"bench-check"), "{targets:?}");
    let outcome = run(make(&["help"]));
    for target in targets {
        let listed = outcome.stdout.lines().any(|line| {
            line.split_once(' ')
                .is_some_and(|(name, what)| name == target && !what.trim().is_empty())
        });
        assert!(listed, "{target} is not in {}", outcome.stdout);
    }
}

/// A folder with every program of this machine but `without`; `apt-get` and `sudo` leave a mark.
fn programs_without(without: &[&str], folder: &Path) -> std::path::PathBuf {
    let (bin, mark) = (folder.join("bin"), folder.join("installed"));
    std::fs::create_dir(&bin).unwrap();
    for entry in std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .filter_map(|dir| std::fs::read_dir(dir).ok())
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        if without.iter().all(|program| name != *program) {
            // The first one of a name wins, as in PATH.
            let _ = symlink(entry.path(), bin.join(name));
        }
    }
    for name in ["apt-get", "sudo"] {
        let path = bin.join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(
            &path,
            format!("#!/bin/sh\necho \"$@\" >>{}\n", mark.display()),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    mark
}

fn build_installs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mark = programs_without(&["cc", "gcc"], folder.path());
    let mut command = make(&["build"]);
    command.env("PATH", folder.path().join("bin"));
    let outcome = run(command);
    assert_ne!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stderr.contains("missing: gcc"), "{outcome:?}");
    assert!(
        outcome.stderr.contains("resources/setup build"),
        "{outcome:?}"
    );
    assert!(!mark.exists(), "{}", std::fs::read_to_string(mark).unwrap());
}

fn bench_start() {
    let kernels = |only: &str| {
        let outcome = run(make(&["--dry-run", "bench", only]));
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        assert!(outcome.stdout.contains("cargo bench"), "{outcome:?}");
        outcome.stdout.contains("guest/build.sh")
    };
    assert!(!kernels("ONLY=start"));
    assert!(!kernels("ONLY=density,start"));
    assert!(kernels("ONLY=start,boot"));
    assert!(kernels("ONLY="));
}

/// Another build that is making `name` in `target`, as far as the scripts can tell.
fn other_build(target: &Path, name: &str) -> File {
    let build = target.join("guest/build");
    std::fs::create_dir_all(&build).unwrap();
    let path = build.join(format!("{name}.lock"));
    std::fs::write(&path, format!("process 4711, which makes {name}\n")).unwrap();
    let lock = File::open(path).unwrap();
    // SAFETY: a call on a descriptor that is ours.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    lock
}

fn build(target: &Path, step: &str) -> Child {
    script("resources/guest/build.sh")
        .arg(step)
        .env("CARGO_TARGET_DIR", target)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn no_wait() {
    let target = tempfile::tempdir().unwrap();
    let _kernel = other_build(target.path(), "kernel");
    let _disk = other_build(target.path(), "rootdisk");
    let mut child = build(target.path(), "initramfs");
    let status = common::wait(&mut child, Duration::from_secs(60));
    assert!(status.expect("it does not wait").success());
    assert!(target.path().join("guest/initramfs.cpio.gz").exists());

    // What is there already needs nobody's leave.
    let _same = other_build(target.path(), "initramfs");
    let mut child = build(target.path(), "initramfs");
    let status = common::wait(&mut child, Duration::from_secs(60));
    assert!(status.expect("it does not wait").success());
}

fn wait() {
    let target = tempfile::tempdir().unwrap();
    let other = other_build(target.path(), "initramfs");
    let mut child = build(target.path(), "initramfs");
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(
        line.trim(),
        "guest: waiting for process 4711, which makes initramfs"
    );
    assert!(child.try_wait().unwrap().is_none());
    assert!(!target.path().join("guest/initramfs.cpio.gz").exists());
    drop(other);
    let status = common::wait(&mut child, Duration::from_secs(60));
    assert!(status.expect("it goes on").success());
    assert!(target.path().join("guest/initramfs.cpio.gz").exists());
}

/// A script that shows its progress, and then does `what`.
fn at_work(what: &str) -> String {
    format!(
        ". '{}' test; show_progress 'at work'; {what}",
        root().join("resources/progress").display()
    )
}

fn progress_ends() {
    // The wait is bash's own: no process is left that would hold the pipe open.
    let mut child = Command::new("bash")
        .args(["-c", &at_work("read -r -t 1000 -u \"$never\"")])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "test: at work\n");
    child.kill().unwrap();
    child.wait().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut rest = String::new();
        let _ = said.read_to_string(&mut rest);
        let _ = tell.send(rest);
    });
    let rest = told.recv_timeout(Duration::from_secs(60));
    assert_eq!(rest.expect("nobody holds the pipe any more"), "");
}

fn progress_on_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script");
    let work = "read -r -t 2.5 -u \"$never\"; hide_progress; say done";
    std::fs::write(&file, at_work(work)).unwrap();
    let mut command = Command::new("script");
    command
        .arg("-qec")
        .arg(format!("bash {}", file.display()))
        .arg("/dev/null");
    let outcome = run(command);
    assert!(
        outcome.stdout.contains("\rtest: at work, 0:0"),
        "{outcome:?}"
    );
    assert!(
        outcome.stdout.ends_with("\r\x1b[Ktest: done\r\n"),
        "{outcome:?}"
    );
}

/// Where nothing else is built, and while somebody compiles the lab's own kernel.
fn lab_of_debian() {
    let target = tempfile::tempdir().unwrap();
    let (here, there) = (common::target().join("guest"), target.path().join("guest"));
    let _kernel = other_build(target.path(), "kernel");
    symlink(
        std::path::absolute(here.join("lab-stock")).unwrap(),
        there.join("lab-stock"),
    )
    .unwrap();
    let key = "build/lab-stock.key";
    std::fs::copy(here.join(key), there.join(key)).unwrap();
    let commands = format!("uname -r; '{}' check; exit 7", bantam());
    let mut command = script("resources/lab/lab");
    command
        .args(["--time-limit", "100", "--"])
        .args(["sh", "-c", &commands])
        .env("CARGO_TARGET_DIR", target.path());
    let outcome = run(command);
    assert_eq!(outcome.code(), 7, "{outcome:?}");
    let kernel = outcome.stdout.lines().next().unwrap_or_default();
    assert!(kernel.ends_with("-amd64"), "{outcome:?}");
    assert!(
        outcome.stdout.contains("guests run at native speed"),
        "{outcome:?}"
    );
}
