//! Each VMM is asked for the machine that is meant, in words that it takes; and what it cannot do, or
//! fails to do, has a reason in plain words.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::common::{run_with, trials};
use crate::engine::{Effort, Question, interleave};
use crate::result::Clock;
use crate::rows::{boot, start};
use crate::vmm::{self, DiskKind, Machine, Named, Vmm};

pub fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 8] = [
        ("firecracker_is_asked_for_the_machine", firecracker_is_asked),
        (
            "cloud_hypervisor_is_asked_for_the_machine",
            cloud_hypervisor_is_asked,
        ),
        ("kvmtool_is_asked_for_the_machine", kvmtool_is_asked),
        ("what_a_vmm_cannot_do_is_said", what_a_vmm_cannot_do_is_said),
        (
            "stand_ins_reject_what_the_programs_reject",
            stand_ins_reject,
        ),
        ("a_vmm_that_is_not_there_is_left_out", absent_is_left_out),
        ("a_vmm_that_cannot_run_is_left_out", broken_is_left_out),
        (
            "a_failed_boot_has_a_reason_in_plain_words",
            failed_boot_has_a_reason,
        ),
    ];
    trials::trials(None, tests)
}

/// A folder in which this program has the names of the VMMs.
struct Installed {
    folder: tempfile::TempDir,
}

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["firecracker", "cloud-hypervisor", "lkvm"] {
            let this = std::env::current_exe().unwrap();
            symlink(this, folder.path().join(name)).unwrap();
        }
        Installed { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The adapter of `name` with the stand-in that is called `program`.
    fn vmm(&self, name: &str, program: &str) -> Vmm {
        let named = [(name.to_owned(), Some(self.path(program)))];
        let (present, absent) = assemble(&named);
        let vmm = present.into_iter().find(|vmm| vmm.name() == name);
        vmm.unwrap_or_else(|| panic!("{name} is not there: {absent:?}"))
    }

    /// A file that starts as a bzImage does.
    fn bzimage(&self) -> PathBuf {
        let path = self.path("bzImage");
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(&path, image).unwrap();
        path
    }
}

/// Without Bantam and the floor: only who was named, and QEMU where it is.
pub fn assemble(named: &[Named]) -> (Vec<Vmm>, Vec<String>) {
    let nobody = Path::new("/nonexistent");
    vmm::assemble(nobody, nobody, named).unwrap()
}

fn machine(kernel: &Path, bzimage: bool) -> Machine {
    Machine {
        bzimage,
        initrd: Some("/boot/an initrd".into()),
        // Quotation marks and backslashes are somebody's path or word one day.
        cmdline: r#"console=ttyS0 word="a \ b" quiet"#.into(),
        cpus: 3,
        memory_mib: 384,
        disks: vec!["/images/one".into(), "/images/two".into()],
        ..start::machine(kernel)
    }
}

/// What the stand-in says that it was asked for.
fn asked(vmm: &Vmm, machine: &Machine) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let command = vmm.command(machine, folder.path()).unwrap();
    let outcome = run_with(command, b"", Duration::from_secs(20));
    assert_eq!(outcome.code(), 0, "{}", outcome.stderr);
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// What it should say; `word` is the adapter's own for the kernel.
fn meant(machine: &Machine, word: &str, direct: bool, format: &str) -> Value {
    let disks: Vec<Value> = machine
        .disks
        .iter()
        .map(|path| {
            json!({"path": path, "direct": direct, "writable": true, "flushes": true, "format": format})
        })
        .collect();
    let cmdline = [machine.cmdline.as_str(), word].join(" ");
    json!({
        "kernel": machine.kernel,
        "initrd": machine.initrd,
        "cmdline": cmdline.trim(),
        "cpus": machine.cpus,
        "memory": machine.memory_mib,
        "disks": disks,
    })
}

fn firecracker_is_asked() {
    let installed = Installed::new();
    let vmm = installed.vmm("firecracker", "firecracker");
    assert_eq!(vmm.version.as_deref(), Some("Firecracker v1.16.0"));
    let full = machine(Path::new("/boot/a \"kernel\""), false);
    assert_eq!(asked(&vmm, &full), meant(&full, "pci=off", false, "raw"));
    let bare = start::machine(Path::new("/guests/start.elf"));
    assert_eq!(asked(&vmm, &bare), meant(&bare, "pci=off", false, "raw"));
}

fn cloud_hypervisor_is_asked() {
    let installed = Installed::new();
    let vmm = installed.vmm("cloud-hypervisor", "cloud-hypervisor");
    assert_eq!(vmm.version.as_deref(), Some("cloud-hypervisor v53.0"));
    let kinds = [
        (DiskKind::Cached, false, "raw"),
        (DiskKind::Direct, true, "raw"),
        (DiskKind::Ram, true, "raw"),
        (DiskKind::Qcow2, false, "qcow2"),
    ];
    for (kind, direct, format) in kinds {
        for bzimage in [false, true] {
            let mut full = machine(Path::new("/boot/kernel"), bzimage);
            full.disk_kind = kind;
            assert_eq!(asked(&vmm, &full), meant(&full, "", direct, format));
        }
    }
    let bare = start::machine(Path::new("/guests/start.elf"));
    assert_eq!(asked(&vmm, &bare), meant(&bare, "", false, "raw"));
}

fn kvmtool_is_asked() {
    let installed = Installed::new();
    let vmm = installed.vmm("kvmtool", "lkvm");
    assert_eq!(vmm.version.as_deref(), Some("kvm tool 3.18.0"));
    for (kind, direct) in [(DiskKind::Cached, false), (DiskKind::Direct, true)] {
        let mut full = machine(&installed.bzimage(), true);
        full.disk_kind = kind;
        assert_eq!(asked(&vmm, &full), meant(&full, "", direct, "raw"));
    }
}

/// A machine that a VMM has no words for is not started as something else.
fn what_a_vmm_cannot_do_is_said() {
    let installed = Installed::new();
    let kernel = installed.bzimage();
    let mut eight = machine(&kernel, true);
    eight.disks = vec!["/images/one".into(); 8];
    let mut qcow2 = machine(&kernel, false);
    qcow2.disk_kind = DiskKind::Qcow2;
    let cases = [
        (
            "firecracker",
            "firecracker",
            machine(&kernel, true),
            "boots no bzImage",
        ),
        (
            "firecracker",
            "firecracker",
            qcow2,
            "has no disks of the kind \"qcow2\"",
        ),
        (
            "kvmtool",
            "lkvm",
            machine(&kernel, false),
            "boots no ELF kernel",
        ),
        ("kvmtool", "lkvm", eight, "takes no more than 4 disks"),
    ];
    for (name, program, machine, why) in cases {
        let error = installed
            .vmm(name, program)
            .command(&machine, Path::new("/tmp"));
        assert_eq!(error.unwrap_err().to_string(), why, "{name}");
    }
}

/// A stand-in that took anything would prove nothing: what the adapters gave before, and other things
/// that the programs end with, are errors, and the reason names what was given.
fn stand_ins_reject() {
    let installed = Installed::new();
    let bzimage = installed.bzimage();
    let bzimage = bzimage.to_str().unwrap();
    let config = installed.path("config.json");
    let file = config.to_str().unwrap().to_owned();
    let json = |text: &str| fs::write(&config, text).unwrap();
    let refused = |program: &str, words: &[&str], reason: &str| {
        let mut command = Command::new(installed.path(program));
        command.args(words);
        let outcome = run_with(command, b"", Duration::from_secs(20));
        assert_eq!(outcome.code(), 1, "{program} {words:?}: {}", outcome.stdout);
        assert!(
            outcome.stderr.contains(reason),
            "{program} {words:?}: {}",
            outcome.stderr
        );
    };
    let start = [
        "--no-api",
        "--log-path",
        "/dev/null",
        "--config-file",
        &file,
    ];
    json(r#"{"boot-source":{"kernel_image_path":"/k","boot_args":"a "b""},"drives":[]}"#);
    refused("firecracker", &start, "Invalid JSON");
    json(
        r#"{"boot-source":{"kernel_image_path":"/k","boot_args":""},"drives":[],
        "machine-config":{"vcpu_count":1,"mem_size_mib":128,"ht_enabled":false}}"#,
    );
    refused(
        "firecracker",
        &start,
        "unknown field `ht_enabled` in machine-config",
    );
    refused("firecracker", &["--no-api"], "'config-file' required");
    refused("firecracker", &["--no-api", "--config", &file], "--config");
    refused(
        "firecracker",
        &["--no-api", "--config-file", &file],
        "log is on the console",
    );

    let start = [
        "--kernel",
        "/k",
        "--cpus",
        "boot=1",
        "--memory",
        "size=128M",
    ];
    let with = |more: &[&'static str]| {
        [&start[..], &["--serial", "tty", "--console", "off"], more].concat()
    };
    refused("cloud-hypervisor", &start, "--serial");
    refused(
        "cloud-hypervisor",
        &with(&["--disk", "path=/d"]),
        "path=/d: the image's type is guessed",
    );
    refused(
        "cloud-hypervisor",
        &with(&["--disk", "path=/d,cache=off"]),
        "unknown option: cache",
    );
    refused("cloud-hypervisor", &with(&["--initrd", "/i"]), "--initrd");
    refused(
        "cloud-hypervisor",
        &with(&["--kernel", "/k"]),
        "multiple times",
    );

    let start = [
        "run",
        "--cpus",
        "1",
        "--mem",
        "128",
        "--loglevel",
        "warning",
        "--kernel",
        bzimage,
    ];
    let with = |more: &[&'static str]| [&start[..], more].concat();
    refused("lkvm", &with(&[]), "--nodefaults is missing");
    refused("lkvm", &with(&["--nodefaults"]), "--network mode=none");
    refused(
        "lkvm",
        &with(&["--nodefaults", "--append", "x"]),
        "`append'",
    );
    refused("lkvm", &["run", "--kernel", "/dev/null"], "not a bzImage");
    refused("lkvm", &["boot"], "not a lkvm command");
}

/// Named and not found, it is a line for the user, not a failed run.
fn absent_is_left_out() {
    let named = [
        (
            "firecracker".to_owned(),
            Some("/nonexistent/firecracker".into()),
        ),
        ("cloud-hypervisor".to_owned(), None),
    ];
    let (present, absent) = assemble(&named);
    assert!(
        absent.contains(&"firecracker: /nonexistent/firecracker is not there".to_owned()),
        "{absent:?}"
    );
    if vmm::find_program("cloud-hypervisor").is_none() {
        let line = "cloud-hypervisor: not installed: there is no cloud-hypervisor on the PATH";
        assert!(absent.contains(&line.to_owned()), "{absent:?}");
    }
    assert!(present.iter().all(|vmm| vmm.name() != "firecracker"));
    // Nobody who was not named is missed.
    assert!(
        absent.iter().all(|line| !line.starts_with("kvmtool")),
        "{absent:?}"
    );
    let unknown = vmm::assemble(Path::new("/"), Path::new("/"), &[("xen".to_owned(), None)]);
    assert!(
        unknown
            .unwrap_err()
            .to_string()
            .contains("no adapter of that name")
    );
}

/// A file that is no program of this machine's, or that nobody may run.
fn broken_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    for (name, mode) in [("text", 0o755), ("closed", 0o644)] {
        let program = folder.path().join(name);
        fs::write(&program, "\u{7f}no program").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        let (present, absent) = assemble(&[("kvmtool".to_owned(), Some(program.clone()))]);
        assert!(present.iter().all(|vmm| vmm.name() != "kvmtool"));
        let start = format!("kvmtool: cannot start {}: ", program.display());
        assert!(
            absent.iter().any(|line| line.starts_with(&start)),
            "{absent:?}"
        );
    }
}

/// The reason stands on the page; what the guest and the VMM printed is kept apart from it.
fn failed_boot_has_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let killed = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b";
    let cases = [
        (killed, "did not boot: the guest's first program was killed"),
        (
            "Kernel panic - not syncing: VFS: Unable to mount root fs",
            "did not boot: the guest's kernel panicked",
        ),
        (
            "R14: 0000000000000000 </TASK> Kernel Offset: 0x26a00000",
            "did not boot: the guest's kernel panicked",
        ),
        ("Booting", "did not boot: it ended early"),
    ];
    for (console, reason) in cases {
        let program = folder.path().join("vmm");
        let script = format!("#!/bin/sh\necho '{console}'\necho 'warning: 4 CPUs' >&2\nexit 3\n");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (vmms, _) = assemble(&[("qemu-microvm".to_owned(), Some(program))]);
        let vmms: Vec<Vmm> = vmms
            .into_iter()
            .filter(|vmm| vmm.name() == "qemu-microvm")
            .collect();
        let question = Question {
            row: "boot",
            case: "the case".into(),
            unit: "ms",
            lower_is_better: true,
            clock: Clock::Wall,
            note: "",
        };
        let machine = start::machine(Path::new("/k"));
        let figure = interleave(question, &vmms, Effort::virtual_time(), |vmm| {
            Ok(boot::boot(vmm, &machine)?.init.as_secs_f64().into())
        });
        let [series] = figure.series.as_slice() else {
            panic!("{figure:?}")
        };
        assert_eq!(series.missing.as_deref(), Some(reason), "{console}");
        let said = series.said.as_deref().unwrap();
        for words in [console, "exit status: 3", "warning: 4 CPUs"] {
            assert!(said.contains(words), "{said}");
        }
    }
}
