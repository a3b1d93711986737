//! The machines that the host fails under: their words, their disks, who reads their output and types at them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::{bantam, guest};
use crate::tracer::{self, Answer, Call, End, Stops};

/// Much longer than any run; only what hangs is ended by it.
const HANGS: Duration = Duration::from_secs(300);
/// The same, for the machine to end itself: then it hears time, and says what it is.
const TIME_LIMIT: &str = "120s";
/// Of each disk.
pub const DISK_BYTES: u64 = 1 << 20;

/// Where a console's other end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    Pipes,
    Terminal,
    File,
    Pty,
}

/// What a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
    /// What is written to it is thrown away.
    Snapshot,
}

/// A machine. Its guest is `tests/guests/faults.rs`.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub name: &'static str,
    pub console: Console,
    /// Of each disk what it is, and the words behind its path.
    pub disks: &'static [(Format, &'static str)],
    pub words: &'static [&'static str],
    /// What the guest does, and how long it may.
    pub wish: &'static str,
    pub limit: &'static str,
}

pub const MACHINES: [Machine; 4] = [
    Machine {
        name: "every_device",
        console: Console::Pipes,
        disks: &[
            (Format::Raw, ""),
            (Format::Raw, ",io=threads,limit-iops=2000"),
            (Format::Raw, ",cache=direct,iothread"),
            (Format::Qcow2, ""),
            (Format::Snapshot, ",snapshot"),
        ],
        words: &["--rng", "--reclaim", "--cpus", "2", "--reboot"],
        wish: "faults-twice",
        limit: TIME_LIMIT,
    },
    Machine {
        name: "a_terminal",
        console: Console::Terminal,
        disks: &[(Format::Raw, ",cache=direct,io=threads")],
        words: &["--console", "serial"],
        wish: "faults",
        limit: TIME_LIMIT,
    },
    Machine {
        name: "a_console_file",
        console: Console::File,
        disks: &[(Format::Qcow2, ",iothread")],
        words: &["--memory-backing", "shared"],
        wish: "faults",
        limit: TIME_LIMIT,
    },
    Machine {
        name: "a_console_pty",
        console: Console::Pty,
        disks: &[(Format::Snapshot, ",snapshot,io=threads")],
        words: &["--console", "pty"],
        wish: "faults",
        limit: TIME_LIMIT,
    },
];

/// A run that has ended.
pub struct Run {
    pub end: End,
    pub stdout: String,
    pub stderr: String,
    /// The terminal was not given back as it was.
    pub terminal_changed: bool,
    pub folder: Folder,
}

/// The files of one run.
pub struct Folder {
    folder: tempfile::TempDir,
    pub images: Vec<(Format, PathBuf)>,
}

/// Folders that the program may think of by itself. They are empty, and to stay so.
const OTHERS: [(&str, &str); 4] = [
    ("TMPDIR", "tmp"),
    ("XDG_RUNTIME_DIR", "run"),
    ("XDG_CACHE_HOME", "cache"),
    ("HOME", "home"),
];

impl Folder {
    fn new(machine: &Machine) -> Self {
        // Not on a tmpfs, which has no direct I/O on older kernels.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for (_, name) in OTHERS {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let mut images = Vec::new();
        for (index, (format, _)) in machine.disks.iter().enumerate() {
            let extension = match format {
                Format::Qcow2 => "qcow2",
                _ => "raw",
            };
            let path = folder.path().join(format!("disk{index}.{extension}"));
            match format {
                Format::Qcow2 => drop(std::fs::copy(empty_qcow2(), &path).unwrap()),
                _ => File::create(&path).unwrap().set_len(DISK_BYTES).unwrap(),
            }
            images.push((*format, path));
        }
        Folder { folder, images }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where `--console file=` goes.
    pub fn console(&self) -> PathBuf {
        self.path().join("console")
    }

    /// Files that were not there before, and are not the console's.
    pub fn left_over(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let known = path == self.console() || self.images.iter().any(|(_, at)| *at == path);
                match path.is_dir() {
                    true => folders.push(path),
                    false if known => {}
                    false => found.push(path),
                }
            }
        }
        found
    }
}

/// An empty image, made once and copied.
fn empty_qcow2() -> &'static Path {
    static MADE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let name = format!("faults-{}.qcow2", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let bytes = DISK_BYTES.to_string();
        let words = [
            "image",
            "create",
            "-f",
            "qcow2",
            path.to_str().unwrap(),
            &bytes,
        ];
        let made = crate::common::run(&words);
        assert_eq!(made.code(), 0, "{made:?}");
        path
    })
}

impl Machine {
    fn command(&self, folder: &Folder) -> Command {
        let wish = format!("do={}", self.wish);
        let mut command = Command::new(bantam());
        command
            .args(["run", guest::elf().to_str().unwrap(), "--append", &wish])
            .args(["--time-limit", self.limit])
            .args(self.words);
        for ((_, path), (_, options)) in folder.images.iter().zip(self.disks) {
            command.args(["--disk", &format!("{}{options}", path.display())]);
        }
        if self.console == Console::File {
            command
                .arg("--console")
                .arg(format!("file={}", folder.console().display()));
        }
        for (variable, name) in OTHERS {
            command.env(variable, folder.path().join(name));
        }
        command.env_remove("RUST_BACKTRACE").stderr(Stdio::piped());
        command
    }

    /// Starts the machine and follows it to its end. `visit` is called when its guest is at work, if that can be seen;
    /// `decide` says what becomes of each of its calls.
    pub fn run(
        &self,
        stops: &Stops,
        visit: impl FnOnce(&mut Visitor) + Send + 'static,
        decide: impl FnMut(Call) -> Answer,
    ) -> Run {
        self.run_in(|_| {}, stops, visit, decide)
    }

    /// The same with a `change` to its command.
    pub fn run_in(
        &self,
        change: impl FnOnce(&mut Command),
        stops: &Stops,
        visit: impl FnOnce(&mut Visitor) + Send + 'static,
        decide: impl FnMut(Call) -> Answer,
    ) -> Run {
        let folder = Folder::new(self);
        let mut command = self.command(&folder);
        change(&mut command);
        let (stderr, their_stderr) = std::io::pipe().unwrap();
        command.stderr(their_stderr);
        let (started, pid) = mpsc::channel();
        let mut visitor = Visitor {
            pid,
            known: None,
            keys: None,
        };
        let mut terminal = None;
        let mut visit = Some(visit);
        let out: Box<dyn Read + Send> = match self.console {
            Console::Terminal => {
                let (master, slave) = open_pty();
                let before = settings(&slave);
                let stdio = || Stdio::from(slave.try_clone().unwrap());
                command.stdin(stdio()).stdout(stdio());
                // SAFETY: both calls are async-signal-safe; they make the terminal the child's own.
                unsafe {
                    command.pre_exec(|| {
                        libc::setsid();
                        libc::ioctl(0, libc::TIOCSCTTY, 0);
                        Ok(())
                    });
                }
                visitor.keys = Some(master.try_clone().unwrap());
                terminal = Some((slave, before));
                Box::new(master)
            }
            _ => {
                let (out, their_out) = std::io::pipe().unwrap();
                let (input, mut our_input) = std::io::pipe().unwrap();
                command.stdin(input).stdout(their_out);
                our_input.write_all(b"piped in\n").unwrap();
                Box::new(out)
            }
        };
        // Where its output is elsewhere, somebody looks there.
        let said = Arc::new(Mutex::new(String::new()));
        let elsewhere = match self.console {
            Console::File => Some(Elsewhere::File(folder.console())),
            Console::Pty => Some(Elsewhere::Pty(said.clone())),
            _ => None,
        };
        if let Some(elsewhere) = elsewhere {
            let visit = visit.take();
            let mut visitor = std::mem::replace(&mut visitor, Visitor::nobody());
            std::thread::spawn(move || {
                elsewhere.wait_for(AT_WORK);
                visit.into_iter().for_each(|visit| visit(&mut visitor));
            });
        }
        let stdout = collect(out, move |text| {
            if text.contains(AT_WORK)
                && let Some(visit) = visit.take()
            {
                visit(&mut visitor);
            }
        });
        let stderr = collect(stderr, move |text| *said.lock().unwrap() = text.to_owned());
        let on_start = move |number| {
            let _ = started.send(number);
        };
        let end = tracer::run(command, stops, HANGS, on_start, decide).unwrap();
        let changed = |(slave, before): &(File, String)| settings(slave) != *before;
        let terminal_changed = terminal.as_ref().is_some_and(changed);
        // With the last slave the master's reader ends.
        drop(terminal);
        let mut stdout = stdout.join().unwrap();
        if self.console == Console::File {
            let bytes = std::fs::read(folder.console()).unwrap_or_default();
            stdout = String::from_utf8_lossy(&bytes).into_owned();
        }
        Run {
            end,
            stdout,
            stderr: stderr.join().unwrap(),
            terminal_changed,
            folder,
        }
    }
}

/// What the guest says when it has begun.
const AT_WORK: &str = "at work";

/// Where else a console can be.
enum Elsewhere {
    File(PathBuf),
    /// What the program has said: which pseudo-terminal it is.
    Pty(Arc<Mutex<String>>),
}

impl Elsewhere {
    /// Waits until the guest has said `word`; not for ever, as it may never come to that.
    fn wait_for(&self, word: &str) {
        let end = Instant::now() + Duration::from_secs(5);
        let (mut terminal, mut seen) = (None, String::new());
        while Instant::now() < end && !seen.contains(word) {
            std::thread::sleep(Duration::from_millis(2));
            match self {
                Elsewhere::File(path) => {
                    let bytes = std::fs::read(path).unwrap_or_default();
                    seen = String::from_utf8_lossy(&bytes).into_owned();
                }
                Elsewhere::Pty(said) => {
                    let said = said.lock().unwrap().clone();
                    let path = said.lines().find_map(|line| line.strip_prefix("console: "));
                    terminal = terminal.or_else(|| {
                        let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
                        let options = File::options().read(true).custom_flags(flags).open(path?);
                        options.ok()
                    });
                    let mut chunk = [0; 4096];
                    if let Some(Ok(count)) = terminal
                        .as_mut()
                        .map(|file: &mut File| file.read(&mut chunk))
                    {
                        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
                    }
                }
            }
        }
    }
}

/// Somebody at a running machine.
pub struct Visitor {
    pid: Receiver<libc::pid_t>,
    known: Option<libc::pid_t>,
    keys: Option<File>,
}

impl Visitor {
    fn nobody() -> Self {
        Visitor {
            pid: mpsc::channel().1,
            known: None,
            keys: None,
        }
    }

    /// Sends a signal. The machine cannot have ended long ago, so its number is still its own.
    pub fn signal(&mut self, signal: libc::c_int) {
        self.known = self.known.or_else(|| self.pid.recv().ok());
        if let Some(pid) = self.known {
            // SAFETY: takes numbers alone.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Types at its terminal; false where it has none.
    pub fn type_in(&mut self, keys: &[u8]) -> bool {
        match &mut self.keys {
            // The machine may be gone.
            Some(terminal) => {
                let _ = terminal.write_all(keys);
                true
            }
            None => false,
        }
    }
}

/// Reads to the end; `each` sees the text so far.
fn collect(
    mut from: impl Read + Send + 'static,
    mut each: impl FnMut(&str) + Send + 'static,
) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut text, mut chunk) = (String::new(), [0; 4096]);
        // EIO: the last slave of a pseudo-terminal is closed.
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            each(&text);
        }
        text
    })
}

fn open_pty() -> (File, File) {
    let (mut master, mut slave) = (0, 0);
    let name = std::ptr::null_mut();
    let (termios, size) = (std::ptr::null(), std::ptr::null());
    // SAFETY: openpty fills both descriptors, which are then ours; the rest may be null.
    unsafe {
        let opened = libc::openpty(&raw mut master, &raw mut slave, name, termios, size);
        assert_eq!(opened, 0);
        for fd in [master, slave] {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        let own = |fd| File::from(OwnedFd::from_raw_fd(fd));
        (own(master), own(slave))
    }
}

/// A terminal's settings, to be compared.
fn settings(terminal: &File) -> String {
    // SAFETY: tcgetattr fills the struct, or the test ends.
    let settings = unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &raw mut settings), 0);
        settings
    };
    format!(
        "{:x} {:x} {:x} {:x} {:?}",
        settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag, settings.c_cc
    )
}
