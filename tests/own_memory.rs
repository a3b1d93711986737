//! What of a machine's memory other processes of the same user, and core dumps, get to see or to change.

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use common::trials::{each, exit_after, trial};
use common::{TempFile, bantam, bare, guest};

fn main() {
    let missing = common::kvm().err();
    let missing = missing.as_deref();
    let mut trials = vec![
        trial(
            "another_process_of_the_user_cannot_shorten_guest_memory",
            missing,
            shorten,
        ),
        trial(
            "no_file_that_somebody_could_shorten_is_mapped",
            missing,
            mapped_files,
        ),
    ];
    let dumps = [
        ("by_default", (&[][..], false)),
        (
            "of_a_memfd_by_default",
            (&["--memory-backing=shared"][..], false),
        ),
        ("with_core", (&["--core"][..], true)),
        (
            "of_a_memfd_with_core",
            (&["--memory-backing=shared", "--core"][..], true),
        ),
    ];
    let no_core = no_core();
    trials.extend(each(
        "a_core_dump_has_guest_memory_only_on_request",
        dumps,
        missing.or(no_core.as_deref()),
        core_dump,
    ));
    exit_after(trials);
}

/// Ends a machine that its test has done with.
fn end(mut vmm: Child) {
    let _ = vmm.kill();
    let _ = vmm.wait();
}

fn shorten() {
    let command = bare::command("secret", &["--memory=5G", "--memory-backing=shared"]);
    let mut vmm = common::at_work(command, "at work\n");
    let folder = format!("/proc/{}/fd", vmm.id());
    let mut found = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        if !target.to_string_lossy().starts_with("/memfd:bantam-ram") {
            continue;
        }
        found += 1;
        let file = std::fs::File::options().read(true).write(true).open(&path);
        let file = file.unwrap();
        // What it is there for: others may look at it, and change it.
        let mut word = [0; 8];
        file.read_exact_at(&mut word, 0x100_0000).unwrap();
        file.write_all_at(&word, 0x100_0000).unwrap();
        let len = file.metadata().unwrap().len();
        for other in [0, len / 2, len + 4096] {
            let error = file.set_len(other).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{other} of {len}");
        }
    }
    assert_eq!(found, 2, "below and above the hole of 32-bit devices");
    assert!(vmm.try_wait().unwrap().is_none(), "it runs on");
    end(vmm);
}

fn mapped_files() {
    let (raw, under, initrd) = (
        TempFile::new("disk.img", &vec![0; 1 << 20]),
        TempFile::new("under.img", &vec![0; 1 << 20]),
        TempFile::new("initrd", &vec![b'i'; 1 << 20]),
    );
    let folder = tempfile::tempdir().unwrap();
    let qcow2 = folder.path().join("disk.qcow2");
    let made = common::run(&["image", "create", qcow2.to_str().unwrap(), "1G"]);
    assert_eq!(made.code(), 0, "{made:?}");
    let mut command = bare::command("secret", &["--initrd", initrd.str()]);
    command.args(["--disk", raw.str(), "--disk", qcow2.to_str().unwrap()]);
    command.args(["--disk", &format!("{},snapshot", under.str())]);
    command.args(["--memory-backing=shared", "--rng", "--reclaim"]);
    let vmm = common::at_work(command, "at work\n");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", vmm.id())).unwrap();
    let program = std::fs::read_link(format!("/proc/{}/exe", vmm.id())).unwrap();
    let mut seen = (false, false);
    for line in maps.lines() {
        // Addresses, rights, offset, device, inode, name.
        let Some(name) = line.splitn(6, ' ').nth(5).map(str::trim_start) else {
            continue;
        };
        if !name.starts_with('/') {
            continue;
        }
        let is_program = Path::new(name) == program;
        let is_library = name.contains(".so") && !name.contains("disk");
        // What it shares with the process that reads an image has no file, and a name all the same.
        if name == "/dev/zero (deleted)" {
            continue;
        }
        let is_ram = name.starts_with("/memfd:bantam-ram");
        seen = (seen.0 || is_program, seen.1 || is_ram);
        assert!(is_program || is_library || is_ram, "{line}");
    }
    assert_eq!(seen, (true, true), "{maps}");
    assert!(guest::elf().exists());
    end(vmm);
}

/// Why no core dump can be had here.
fn no_core() -> Option<String> {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.starts_with(['|', '/']) || pattern.contains('%') {
        return Some(format!(
            "core dumps go elsewhere (core_pattern {})",
            pattern.trim()
        ));
    }
    None
}

fn core_dump((words, wanted): (&'static [&'static str], bool)) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -c unlimited && exec \"$@\"", "sh", bantam()])
        .args(["run", guest::elf().to_str().unwrap()])
        .args(["--append", "do=secret", "--memory=64M", "--time-limit=60s"])
        .args(words)
        // Landlock lets the kernel write no file in its name either.
        .args(["--sandbox", "off"])
        .current_dir(folder.path());
    let mut vmm = common::at_work(command, "at work\n");
    common::signal(&vmm, libc::SIGABRT);
    let status = common::wait(&mut vmm, Duration::from_secs(60)).expect("an end");
    assert!(
        std::os::unix::process::ExitStatusExt::core_dumped(&status),
        "{status}"
    );
    let dump = std::fs::read_dir(folder.path()).unwrap();
    let dump: PathBuf = dump.map(|entry| entry.unwrap().path()).next().unwrap();
    let bytes = std::fs::read(&dump).unwrap();
    assert!(bytes.starts_with(b"\x7fELF"), "{} bytes", bytes.len());
    let secret = 0x7465_7263_6573_2061_u64.to_le_bytes();
    let words = bytes.as_chunks().0.iter();
    let seen = words.filter(|word| **word == secret).count();
    match wanted {
        true => assert_eq!(seen.min(1 << 17), 1 << 17, "all of it"),
        false => assert!(seen < 16, "{seen} words of the guest's"),
    }
}
