//! A VMM's process: started in a group of its own, watched, and always ended.

use std::collections::{HashMap, VecDeque};
use std::fmt::{Display, Formatter};
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host;

/// What a process may say on standard error before it is cut.
const COMPLAINT_BYTES: usize = 300;

/// How a reason begins that is the VMM's own.
pub const STUCK: &str = "did not finish";

/// A VMM that has not done what was waited for. Pages name the reason; what it printed, which may be
/// a crash of many lines, stays in the results file.
#[derive(Debug, Clone)]
pub struct Failed {
    /// In plain words, for a reader of the page.
    pub why: String,
    /// The program's own words.
    pub said: String,
}

impl Display for Failed {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.why, self.said)
    }
}

impl std::error::Error for Failed {}

/// A running VMM. Dropping it kills its process group.
pub struct Process {
    child: Child,
    stdout: ChildStdout,
    stderr: PathBuf,
    started: Instant,
    /// What has been read and not been asked for yet.
    ahead: VecDeque<u8>,
    _folder: tempfile::TempDir,
}

impl Process {
    /// Starts what `command` makes of a scratch folder.
    pub fn start(command: impl FnOnce(&std::path::Path) -> Result<Command>) -> Result<Self> {
        let folder = tempfile::tempdir_in(scratch()).context("no scratch folder")?;
        let mut command = command(folder.path())?;
        let stderr = folder.path().join("stderr");
        let complaints =
            fs::File::create(&stderr).with_context(|| format!("{}", stderr.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(complaints)
            .process_group(0);
        let program = command.get_program().to_owned();
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Process {
            child,
            stdout,
            stderr,
            started,
            ahead: VecDeque::new(),
            _folder: folder,
        })
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads its output until `wanted` is among it; when that was, and the bytes before.
    pub fn wait_for(&mut self, wanted: &[u8], limit: Duration) -> Result<(Instant, Vec<u8>)> {
        let mut seen = Vec::new();
        let found = self.read_until(limit, |_, byte| {
            seen.push(byte);
            seen.ends_with(wanted)
        })?;
        Ok((found, seen))
    }

    /// Hands each byte of the output, and when it came, to `done`, until that says so.
    pub fn read_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(Instant, u8) -> bool,
    ) -> Result<Instant> {
        let end = Instant::now() + limit;
        let mut buffer = [0; 4096];
        loop {
            let now = Instant::now();
            while let Some(byte) = self.ahead.pop_front() {
                if done(now, byte) {
                    return Ok(now);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd {
                fd: self.stdout.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one valid pollfd, for the call.
            let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) };
            if ready == 0 {
                let why = format!("{STUCK}: nothing came within {} s", limit.as_secs());
                return Err(self.failed(why, "still running"));
            }
            let count = self
                .stdout
                .read(&mut buffer)
                .context("cannot read its output")?;
            if count == 0 {
                let status = self.child.wait().context("cannot wait for it")?;
                return Err(self.failed(format!("{STUCK}: it ended early"), &status.to_string()));
            }
            self.ahead.extend(buffer.iter().take(count));
        }
    }

    /// `state` is that of the process.
    fn failed(&self, why: String, state: &str) -> anyhow::Error {
        let said = match self.complaint() {
            complaint if complaint.is_empty() => state.to_owned(),
            complaint => format!("{state}: {complaint}"),
        };
        Failed { why, said }.into()
    }

    /// The beginning of what it has said on standard error.
    fn complaint(&self) -> String {
        let text = fs::read(&self.stderr).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.trim()
            .replace('\n', " | ")
            .chars()
            .take(COMPLAINT_BYTES)
            .collect()
    }

    /// CPU time that its threads have used so far, by thread, with the thread's name.
    pub fn cpu_time(&self) -> HashMap<u32, (String, Duration)> {
        let mut threads = HashMap::new();
        let tasks = format!("/proc/{}/task", self.pid());
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let Some(id) = task.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            // Nanoseconds on a processor are the first number.
            let spent = read("schedstat")
                .split(' ')
                .next()
                .and_then(|n| n.parse().ok());
            if let Some(spent) = spent {
                threads.insert(
                    id,
                    (read("comm").trim().to_owned(), Duration::from_nanos(spent)),
                );
            }
        }
        threads
    }

    /// Gives the threads whose names are `alone` the first of the harness's processors, and the
    /// process's others the rest, so that no VMM is measured with a worse place than another. The
    /// kernel's own threads and interrupts stay where they are. Nothing on a host with one processor.
    pub fn pin(&self, alone: impl Fn(&str) -> bool) -> Result<()> {
        let Some((first, rest)) = host::processors().and_then(|all| all.split_first()) else {
            return Ok(());
        };
        let rest: Vec<String> = rest.iter().map(u32::to_string).collect();
        if rest.is_empty() {
            return Ok(());
        }
        let threads = self.cpu_time();
        if !threads.values().any(|(name, _)| alone(name)) {
            bail!("no thread of its is known as a vCPU");
        }
        for (thread, (name, _)) in threads {
            let place = match alone(&name) {
                true => first.to_string(),
                false => rest.join(","),
            };
            let mut taskset = Command::new("taskset");
            taskset.args(["--cpu-list", "--pid", &place, &thread.to_string()]);
            let done = taskset.stdout(Stdio::null()).status().context("taskset")?;
            // A thread may have ended meanwhile, and io_uring's cannot be moved on every Linux.
            let fixed = name.starts_with("iou-");
            if !done.success() && !fixed && self.cpu_time().contains_key(&thread) {
                bail!("taskset cannot place the thread {name}");
            }
        }
        Ok(())
    }

    /// Proportional set size in bytes: of all, and of mappings as large as `guest_ram`.
    pub fn pss(&self, guest_ram: u64) -> Result<Pss> {
        let path = format!("/proc/{}/smaps", self.pid());
        let smaps = fs::read_to_string(&path).with_context(|| path.clone())?;
        // Runs of anonymous mappings without a gap: advice on a part of guest RAM splits it.
        let mut runs: Vec<Run> = Vec::new();
        for line in smaps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let range = words.first().and_then(|first| first.split_once('-'));
            let hex = |text| u64::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) = range.map(|(a, b)| (hex(a), hex(b))) {
                let anonymous = words.len() == 5;
                match runs.last_mut() {
                    Some(run) if run.anonymous && anonymous && run.end == start => run.end = end,
                    _ => runs.push(Run {
                        start,
                        end,
                        anonymous,
                        pss: 0,
                    }),
                }
            } else if words.first() == Some(&"Pss:")
                && let Some(run) = runs.last_mut()
            {
                run.pss += words.get(1).and_then(|n| n.parse().ok()).unwrap_or(0) << 10;
            }
        }
        let is_ram = |run: &&Run| {
            let len = run.end.saturating_sub(run.start);
            len >= guest_ram && len < guest_ram.saturating_mul(2)
        };
        Ok(Pss {
            all: runs.iter().map(|run| run.pss).sum(),
            guest_ram: runs.iter().filter(is_ram).map(|run| run.pss).sum(),
        })
    }
}

struct Run {
    start: u64,
    end: u64,
    anonymous: bool,
    pss: u64,
}

/// Memory of a process.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pss {
    /// All of it.
    pub all: u64,
    /// What the guest has touched of its RAM.
    pub guest_ram: u64,
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: the group is the child's own, and the child has not been waited for: its number
        // cannot be another's.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// Where scratch files go: memory, where there is a folder for it.
pub fn scratch() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() {
        shm
    } else {
        std::env::temp_dir()
    }
}
