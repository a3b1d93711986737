//! What the tests share: the binary, a time limit for everything, and guests to run.

#![allow(dead_code)] // each test binary uses its part

pub mod bare;
pub mod guest;
pub mod lab;
pub mod linux;
pub mod mount;
pub mod pty;
pub mod trials;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// The binary under test: the one that cargo has built for the tests, or the one that BANTAM_BIN names.
pub fn bantam() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| std::env::var("BANTAM_BIN").unwrap_or(env!("CARGO_BIN_EXE_bantam").into()))
}

/// The project's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo and the resource scripts put what they build.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => root().join("target"),
    }
}

/// How a process ended and what it said.
#[derive(Debug)]
pub struct Outcome {
    /// The program and its words: a failed test says which of its machines it was.
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The exit code; a process that a signal ended has none, and fails the test here.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }
}

/// Runs `command` with `input` on stdin, and kills it after `limit`.
pub fn run_with(mut command: Command, input: &[u8], limit: Duration) -> Outcome {
    let named = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{named}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A child that does not read must not hold the test up; nor one that has gone away.
    let writer = thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let out = collect(child.stdout.take().unwrap());
    let err = collect(child.stderr.take().unwrap());
    let status = wait(&mut child, limit).unwrap_or_else(|| {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{named} did not end within {limit:?}");
    });
    let outcome = Outcome {
        command: named,
        status,
        stdout: out.join().unwrap(),
        stderr: err.join().unwrap(),
    };
    let _ = writer.join();
    outcome
}

/// The end of a child that ends by itself; `named` says which it was.
pub fn end_of(child: Child, named: &str) -> Outcome {
    let out = child.wait_with_output().unwrap();
    Outcome {
        command: named.to_owned(),
        status: out.status,
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

/// Sends a signal to a child that has not been waited for.
pub fn signal(child: &Child, signal: i32) {
    // SAFETY: the number is that of a child of ours until somebody has waited for it.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// What a process has in memory, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let words = line.unwrap().split_whitespace().nth(1);
    words.unwrap().parse().unwrap()
}

/// Starts a machine, and returns when its guest has said `line`.
pub fn at_work(mut command: Command, line: &str) -> Child {
    let mut vmm = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (mut text, mut byte) = (Vec::new(), [0]);
    let stdout = vmm.stdout.as_mut().unwrap();
    while !text.ends_with(line.as_bytes()) && stdout.read_exact(&mut byte).is_ok() {
        text.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.ends_with(line) && !text.contains("WRONG"),
        "{command:?}: {text}"
    );
    vmm
}

/// Waits for a child; `None` after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs `bantam` with these words, nothing on stdin.
pub fn run(args: &[&str]) -> Outcome {
    let mut command = Command::new(bantam());
    command.args(args);
    run_with(command, b"", Duration::from_secs(60))
}

/// Whether this process may use /dev/kvm; else why not.
pub fn kvm() -> Result<(), String> {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(|_| ())
        .map_err(|error| format!("/dev/kvm: {error}"))
}

/// Runs a program of the administrator's, which Debian keeps where ordinary users do not look, and
/// returns what it prints; or what it complains of.
pub fn admin(program: &str, words: &[&str]) -> Result<String, String> {
    let out = Command::new(program)
        .args(words)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
    }
}

/// A command as a user without rights. Only root can become one, by setpriv (util-linux).
pub fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(program)
        .current_dir("/")
        .env("HOME", "/");
    command
}

/// Why [`as_nobody`] cannot be tried here.
pub fn nobody_missing() -> Option<String> {
    if admin("id", &["-u"]).as_deref() != Ok("0") {
        return Some("only root can act as a user without rights".into());
    }
    (!has_program("setpriv")).then(|| "setpriv is not installed".into())
}

/// `make` in the project's folder, without what an outer make has told its children.
pub fn make(words: &[&str]) -> Command {
    let mut command = Command::new("make");
    command.args(words).current_dir(root());
    for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
        command.env_remove(variable);
    }
    command
}

/// A generator whose numbers are the same in each run (Marsaglia's xorshift64). The seed is not 0.
pub struct Numbers(pub u64);

impl Numbers {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Copies the binary under test. Another program does it: a child that another test starts meanwhile
/// would have our copy open for writing, and then it cannot be run.
pub fn copy_program(to: &Path) {
    let copied = Command::new("cp").args([Path::new(bantam()), to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp {to:?}");
}

/// The program under strace, by which a call of its to the kernel fails: `rule` says which, in strace's
/// words (`ioctl:error=EINVAL:when=3`), and `more` of which files.
pub fn with_failing(rule: &str, more: &[&str]) -> Command {
    let call = rule.split(':').next().unwrap();
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qq", "-o", "/dev/null"])
        .args(more)
        .args(["-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={rule}")])
        .arg(bantam());
    command
}

/// The program with a limit of the shell's (`-f 300`), whose words are still to come.
pub fn ulimit(limit: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit {limit}; exec \"$@\"");
    command.args(["-c", &script, "sh", bantam()]);
    command
}

/// Limits this process, and what it becomes.
pub fn set_limit(resource: libc::__rlimit_resource_t, value: u64) -> std::io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: reads the struct, which lives for the call.
    match unsafe { libc::setrlimit(resource, &raw const limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Whether a program is installed.
pub fn has_program(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir| dir.join(name).is_file())
}

/// A file in a fresh temporary folder.
pub struct TempFile {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl TempFile {
    pub fn new(name: &str, content: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        TempFile { _dir: dir, path }
    }

    /// The path of a file that is not there yet, in the build folder. That is no tmpfs: those have no
    /// direct I/O on older kernels.
    pub fn on_disk(name: &str) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join(name);
        TempFile { _dir: dir, path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn str(&self) -> &str {
        self.path.to_str().unwrap()
    }
}
