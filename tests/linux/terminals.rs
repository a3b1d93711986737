//! A shell in the guest, at a terminal, a pipe, or nothing.

use super::*;

/// A shell of the test kernel that answers on a terminal.
fn shell() -> Session {
    let (kernel, initrd) = (path("vmlinux"), path("initramfs.cpio.gz"));
    let words = [&kernel, "--initrd", &initrd, "--append", "quiet"];
    let mut session = Session::start(&[&words[..], &["--time-limit", LIMIT]].concat());
    session.patience = Duration::from_secs(60);
    session.expect(":/# ");
    session.send(b"echo $((6*7)).\r");
    session.expect("42.");
    session
}

pub fn shell_quit() {
    let mut session = shell();
    session.send(b"\x01x");
    assert_eq!(session.finish().code(), Some(0), "{}", session.seen());
}

/// Job control: Ctrl-c ends what runs in the guest, not the machine.
pub fn shell_jobs() {
    let mut session = shell();
    session.send(b"sleep 1000\r");
    std::thread::sleep(Duration::from_secs(1));
    session.send(b"\x03");
    session.send(b"echo after=$?.\r");
    session.expect("after=130.");
    session.send(b"poweroff\r");
    assert_eq!(session.finish().code(), Some(0), "{}", session.seen());
}

pub fn piped_shell() {
    let mut command = Command::new(bantam());
    command.args([
        "run",
        &path("vmlinux"),
        "--initrd",
        &path("initramfs.cpio.gz"),
    ]);
    command.args(["--append", "quiet", "--time-limit", LIMIT]);
    let outcome = run_with(
        command,
        b"echo $((6*7)).\npoweroff\n",
        Duration::from_secs(200),
    );
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    contains(&outcome.stdout, &["42."]);
}

pub fn closed_stdin() {
    let out = script("echo still here", &[]);
    contains(&out, &["still here"]);
}
