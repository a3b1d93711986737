//! Words that QEMU has as well mean what they mean there.

use std::process::Command;
use std::time::Duration;

use crate::common::{TempFile, run, run_with};
use crate::{QEMU, kernel};

/// QEMU's -no-reboot: a guest that resets the machine ends it, whatever else was asked for.
pub fn no_reboot() {
    let config = TempFile::new("vm.toml", b"reboot = true\n");
    let resets = |more: &[&str]| {
        let args = [
            "run",
            kernel(),
            "--append",
            "do=kbd-reset",
            "--time-limit",
            "2s",
        ];
        run(&[&args[..], &["--config", config.str()], more].concat())
    };
    const TIME_LIMIT: i32 = 6;
    assert_eq!(resets(&[]).code(), TIME_LIMIT, "it starts again and again");
    for word in ["-no-reboot", "--no-reboot"] {
        assert_eq!(resets(&[word]).code(), 0, "{word}");
        assert_eq!(resets(&["--reboot", word]).code(), 0, "{word}");
    }
    assert_eq!(resets(&["-no-reboot", "--reboot"]).code(), TIME_LIMIT);
}

/// The same words for QEMU, which is asked by its monitor what they mean, and for ours.
pub fn sizes() {
    for (smp, memory) in [
        ("4", "300"),
        ("8,sockets=2,cores=2,threads=2", "size=300"),
        ("8,sockets=2", "1G"),
        ("cpus=4,threads=2", "512M"),
        ("sockets=2,cores=2", "2048"),
    ] {
        let mut command = Command::new(QEMU);
        command.args([
            "-M",
            "pc",
            "-accel",
            "tcg",
            "-S",
            "-nodefaults",
            "-display",
            "none",
        ]);
        command.args(["-monitor", "stdio", "-smp", smp, "-m", memory]);
        let questions = b"info memory_size_summary\ninfo hotpluggable-cpus\nquit\n";
        let theirs = run_with(command, questions, Duration::from_secs(60));
        let distinct = |what: &str| {
            let lines = theirs.stdout.lines().map(str::trim);
            let ids = lines.filter(|line| line.starts_with(what));
            ids.collect::<std::collections::BTreeSet<_>>().len()
        };
        let plural = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let ids = ["socket", "core", "thread"].map(|id| (distinct(&format!("{id}-id:")), id));
        let [sockets, cores, threads] = ids.map(|(count, what)| plural(count, what));
        let bytes = theirs.stdout.lines().find_map(|line| {
            let text = line.trim().strip_prefix("base memory: ")?;
            text.parse::<u64>().ok()
        });
        let bytes = bytes.unwrap_or_else(|| panic!("{theirs:?}"));
        let ours = run(&["run", kernel(), "-smp", smp, "-m", memory, "--dry-run"]);
        assert_eq!(ours.code(), 0, "{ours:?}");
        for line in [
            format!("({sockets}, {cores}, {threads})\n"),
            format!("memory    {} MiB\n", bytes >> 20),
        ] {
            assert!(
                ours.stdout.contains(&line),
                "{smp} {memory}: no '{line}' in {ours:?}"
            );
        }
    }
}
