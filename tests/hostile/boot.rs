//! One boot of the attacking guest: a group of attacks on one device, and what the VMM is like after them.
//!
//! ```text
//!   test                              VMM                      guest
//!   ────                              ───                      ─────
//!   start ──────────────────────────▶ ──────────────────────▶  attack, look at the others, reset, report; again
//!   read the second disk's file ◀──── ◀──────────────────────  "ok ...", "WRONG ...", at last "idle"
//!   processor time of its threads, and the most memory that it has had
//!   write a word into that file ────▶ ──────────────────────▶  power off
//! ```

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::common::bare::ring_word;
use crate::common::{TempFile, bantam, end_of, guest, run};

/// Where the guest puts its report on the second disk, and where it looks for a word (`tests/guests/attack/mod.rs`).
const REPORT: u64 = 1024 * 512;
const REPORT_BYTES: usize = 64 << 10;
const WORD: u64 = 2040 * 512;
/// Far longer than any group takes, of one round; the machine's own limit is half of it.
const LIMIT: Duration = Duration::from_secs(400);

/// What the VMM may have in memory: what README says of such a machine, some 20 MiB, the pages of the program itself,
/// and those that the guest has touched, which are some 10 MiB whatever it names.
const MEMORY_KIB: u64 = 48 << 10;

/// A device, or a queue of one, that is attacked.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Its page of registers, counted from the first device's.
    pub page: u32,
    pub queue: u32,
    /// The format of the first disk, and words behind its path.
    pub disk: (&'static str, &'static str),
    /// Somebody types without end.
    pub typing: bool,
}

/// A group of attacks on a target, which are made when somebody asks for the first time.
pub struct Boot {
    pub group: &'static str,
    pub target: Target,
    pub seed: u64,
    pub rounds: u64,
    seen: OnceLock<Result<Seen, String>>,
}

/// What has come of a boot.
pub struct Seen {
    /// The guest's report.
    pub report: String,
    /// What the VMM has said, for messages.
    pub said: String,
    /// The most memory that the VMM has had, in KiB.
    pub peak: u64,
    /// What its threads have used of the processors when there was nothing to do: per mille, in the quietest of
    /// several spans.
    pub busy: u64,
}

impl Boot {
    pub fn new(group: &'static str, target: Target, seed: u64, rounds: u64) -> Self {
        Boot {
            group,
            target,
            seed,
            rounds,
            seen: OnceLock::new(),
        }
    }

    /// Guest RAM in MiB. With more than 3 GiB it has two pieces with the devices in between.
    fn ram(&self) -> u64 {
        match self.group {
            "addresses" => 3200,
            _ => 64,
        }
    }

    fn cpus(&self) -> &'static str {
        match self.group {
            // A disk has at most as many queues as there are vCPUs.
            _ if self.target.disk.1.contains("queues=4") => "4",
            "several" | "interrupts" => "3",
            _ => "1",
        }
    }

    /// Makes the attacks, unless that is done.
    ///
    /// # Panics
    /// When the machine did not come to its end.
    pub fn seen(&self) -> &Seen {
        match self.seen.get_or_init(|| self.attack()) {
            Ok(seen) => seen,
            Err(error) => panic!("{error}"),
        }
    }

    fn limit(&self) -> Duration {
        LIMIT * (1 + self.rounds as u32 / 8)
    }

    /// The words of `bantam run`.
    fn words(&self, first: &TempFile, second: &TempFile) -> Vec<String> {
        let Target {
            page, queue, disk, ..
        } = self.target;
        let below = self.ram().min(3072) << 20;
        let guest_words = format!(
            "do=attack group={} on={page} queue={queue} ram={below} rounds={} seed={}{}",
            self.group,
            self.rounds,
            self.seed,
            ring_word()
        );
        let disks = [
            format!("{},format={}{}", first.str(), disk.0, disk.1),
            format!("{},format=raw", second.str()),
        ];
        let memory = format!("{}M", self.ram());
        let mut words = vec![guest::elf().to_str().unwrap(), "--append", &guest_words];
        words.extend(["--disk", &disks[0], "--disk", &disks[1]]);
        words.extend(["--rng", "--reclaim", "--console", "virtio"]);
        words.extend(["--cpus", self.cpus(), "--memory", &memory]);
        let limit = format!("{}s", self.limit().as_secs() / 2);
        words.extend(["--time-limit", &limit]);
        words.into_iter().map(String::from).collect()
    }

    fn attack(&self) -> Result<Seen, String> {
        let (first, second, report) = disks(self.target.disk.0);
        let mut command = Command::new(bantam());
        command.arg("run").args(self.words(&first, &second));
        let named = format!("{command:?}");
        let mut vmm = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{named}: {error}"))?;
        let mut stdin = vmm.stdin.take().unwrap();
        if self.target.typing {
            std::thread::spawn(move || while stdin.write_all(&[b'y'; 4096]).is_ok() {});
        }
        let pid = vmm.id();
        let end = std::thread::scope(|scope| {
            let watch = scope.spawn(|| watch(pid, &report));
            let end = end_in_time(vmm, &named, self.limit());
            (watch.join().unwrap(), end)
        });
        let (watched, outcome) = end;
        let outcome = outcome?;
        let text = read_report(&report);
        let said = format!("{named}\nreport:\n{text}\nsaid:\n{}", outcome.stderr);
        if outcome.status.code() != Some(0) || !text.ends_with("idle\n") {
            return Err(format!("ended with {}: {said}", outcome.status));
        }
        let (peak, busy) = watched.ok_or_else(|| format!("was not idle: {said}"))?;
        Ok(Seen {
            report: text,
            said,
            peak,
            busy,
        })
    }

    /// What the guest says of the attack that is to keep the promise `name`.
    pub fn holds(&self, name: &str) {
        let seen = self.seen();
        let kept = format!("ok {name}");
        let good = seen.report.lines().any(|line| line == kept);
        assert!(good, "'{name}' is not kept: {}", seen.said);
    }

    /// The VMM is quiet after all of it, and has never had more memory than its bound.
    pub fn is_quiet(&self) {
        let seen = self.seen();
        let bound = MEMORY_KIB;
        assert!(
            seen.peak <= bound,
            "{} KiB, and {bound} is the bound: {}",
            seen.peak,
            seen.said
        );
        let busy = seen.busy;
        assert!(
            busy < 500,
            "busy with nothing, {busy} per mille: {}",
            seen.said
        );
    }
}

/// The two disks, and the file that the report is in.
fn disks(format: &str) -> (TempFile, TempFile, File) {
    let (first, second) = (TempFile::on_disk("first"), TempFile::on_disk("second"));
    for (file, format) in [(&first, format), (&second, "raw")] {
        let made = run(&["image", "create", "-f", format, file.str(), "1M"]);
        assert_eq!(made.code(), 0, "{made:?}");
    }
    let report = File::options()
        .read(true)
        .write(true)
        .open(second.path())
        .unwrap();
    (first, second, report)
}

/// Attacks on a console whose terminal somebody else makes larger and smaller meanwhile.
pub struct OnATerminal {
    /// Of `bantam run`.
    pub words: Vec<String>,
    report: File,
    _disks: (TempFile, TempFile),
}

/// The attacks of several vCPUs, on the console's output.
pub fn on_a_terminal() -> OnATerminal {
    let boot = Boot::new("several", crate::CONSOLE, 1, 1);
    let (first, second, report) = disks("raw");
    OnATerminal {
        words: boot.words(&first, &second),
        report,
        _disks: (first, second),
    }
}

impl OnATerminal {
    /// Whether all attacks were made.
    pub fn is_idle(&self) -> bool {
        read_report(&self.report).ends_with("idle\n")
    }

    /// Has the guest end.
    pub fn tell(&self) {
        self.report.write_all_at(b"go", WORD).unwrap();
    }

    /// Each attack was without harm.
    pub fn holds_all(&self) {
        let report = read_report(&self.report);
        assert!(
            !report.contains("WRONG") && report.contains("ok "),
            "{report}"
        );
    }
}

fn read_report(file: &File) -> String {
    let mut bytes = vec![0; REPORT_BYTES];
    file.read_exact_at(&mut bytes, REPORT).unwrap();
    let len = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(REPORT_BYTES);
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

/// The end of the machine, which is killed if it does not come.
fn end_in_time(vmm: Child, named: &str, limit: Duration) -> Result<crate::common::Outcome, String> {
    let (pid, begin) = (vmm.id(), Instant::now());
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let alarm = std::thread::spawn(move || {
        if is_done.recv_timeout(limit).is_err() {
            // SAFETY: nobody has waited for it yet, or the other end of the channel would be gone.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
    });
    let outcome = end_of(vmm, named);
    let _ = done.send(());
    alarm.join().unwrap();
    match begin.elapsed() < limit {
        true => Ok(outcome),
        false => Err(format!("it has not ended within {limit:?}: {outcome:?}")),
    }
}

/// Waits until the guest is idle, looks at the VMM, and has the guest end. The most memory in KiB, and how busy
/// its threads are. `None` when it ends before that.
fn watch(pid: u32, report: &File) -> Option<(u64, u64)> {
    while !read_report(report).ends_with("idle\n") {
        threads_ticks(pid)?;
        std::thread::sleep(Duration::from_millis(5));
    }
    // What has been begun may still be going on at first; a thread that spins goes on with it.
    let mut busy = u64::MAX;
    for _ in 0..20 {
        let (begin, before) = (Instant::now(), threads_ticks(pid)?);
        std::thread::sleep(Duration::from_millis(200));
        let used = threads_ticks(pid)?.saturating_sub(before) * 10;
        busy = busy.min(used * 1000 / begin.elapsed().as_millis() as u64);
        if busy < 300 {
            break;
        }
    }
    let peak = peak_kib(pid)?;
    report.write_all_at(b"go", WORD).unwrap();
    Some((peak, busy))
}

/// What all threads but those of the vCPUs have used of the processors, in hundredths of a second.
pub fn threads_ticks(pid: u32) -> Option<u64> {
    ticks(pid, |name| !name.starts_with("vcpu"))
}

/// What all threads have used.
pub fn all_ticks(pid: u32) -> Option<u64> {
    ticks(pid, |_| true)
}

/// `None` when the process has ended.
fn ticks(pid: u32, counts: fn(&str) -> bool) -> Option<u64> {
    let mut ticks = None;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let Ok(stat) = std::fs::read_to_string(task.ok()?.path().join("stat")) else {
            continue;
        };
        // The name is in parentheses; the state is the first word behind it, user and system time are the 12th and
        // the 13th (proc_pid_stat(5)).
        let (name, rest) = stat.rsplit_once(')')?;
        let (_, name) = name.split_once('(')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        if counts(name) && *words.first()? != "Z" {
            let of = |at: usize| words.get(at)?.parse::<u64>().ok();
            ticks = Some(ticks.unwrap_or(0) + of(11)? + of(12)?);
        }
    }
    ticks
}

/// The most that a process has had in memory, in KiB.
pub fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
