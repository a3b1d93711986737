//! Time that does not pass as it should: a machine that is stopped and goes on, clocks that jump.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{self, Numbers, TempFile, admin, bantam, bare, guest, root, run};
use crate::inject::soak;

/// SIGSTOP and SIGCONT of the whole program, at any moment for any time, while a guest has eight requests in flight and
/// looks at all that it reads.
pub fn keeps_its_data((format, options): (&'static str, &'static str)) {
    let stops = if soak() { 2000 } else { 100 };
    let image = TempFile::on_disk("disk");
    let made = run(&["image", "create", "-f", format, image.str(), "16M"]);
    assert_eq!(made.code(), 0, "{made:?}");
    let disk = format!("{},format={format}{options}", image.str());
    let wish = format!("churn{}", bare::ring_word());
    let mut command = bare::command(&wish, &["--cpus", "2", "--disk", &disk]);
    command.args(["--time-limit", "900s"]).stdin(Stdio::piped());
    let (mut vmm, mut keys) = crate::soak::at_work(command);
    let mut numbers = Numbers(77);
    for _ in 0..stops {
        common::signal(&vmm, libc::SIGSTOP);
        std::thread::sleep(Duration::from_micros(numbers.below(10_000)));
        common::signal(&vmm, libc::SIGCONT);
        std::thread::sleep(Duration::from_micros(numbers.below(10_000)));
        assert_eq!(vmm.try_wait().unwrap(), None, "it has ended by itself");
    }
    std::io::Write::write_all(&mut keys, b"q").unwrap();
    let outcome = common::end_of(vmm, &disk);
    bare::all_ok(&outcome, 3);
}

/// The time limit is counted on a clock that nobody sets: in a namespace where that clock, or the one since the boot, is
/// a year ahead, it is as long as ever.
pub fn another_clock() {
    let year = (365 * 86_400).to_string();
    let mut command = Command::new("unshare");
    command.args([
        "--time",
        "--monotonic",
        &year,
        "--boottime",
        &year,
        "--fork",
    ]);
    command.args([bantam(), "run", guest::elf().to_str().unwrap()]);
    command.args(["--append", "do=deaf", "--time-limit", "700ms"]);
    let begin = Instant::now();
    let outcome = common::run_with(command, b"", Duration::from_secs(30));
    assert_eq!(outcome.code(), 6, "{outcome:?}");
    assert!(begin.elapsed() >= Duration::from_millis(700), "{outcome:?}");
}

/// Why [`another_clock`] cannot be tried here.
pub fn namespace_missing() -> Option<String> {
    let made = admin("unshare", &["--time", "--monotonic", "1", "--fork", "true"]);
    made.err().map(|why| format!("no time namespace: {why}"))
}

/// The wall clock jumps ten years ahead and twenty back under a machine, on a host of its own: neither is the time limit
/// over early, nor does it never come.
pub fn wall_clock() {
    let script = format!(
        "{} run {} --append do=deaf --time-limit 4s &
        sleep 1; date -s 2040-01-01 >/dev/null; sleep 1; date -s 2010-01-01 >/dev/null
        sleep 1; kill -0 $! || echo early
        code=0; wait $! || code=$?
        echo \"code $code\"",
        bantam(),
        guest::elf().display()
    );
    let script = TempFile::new("script", script.as_bytes());
    for attempt in 1.. {
        let mut command = Command::new(root().join("resources/lab/lab"));
        command.args(["--time-limit", "300", "--", "bash", script.str()]);
        let outcome = common::run_with(command, b"", Duration::from_secs(320));
        // A lab that stops has given no verdict (`tests/common/lab.rs`).
        if matches!(outcome.code(), 124 | 125) && attempt < 3 {
            continue;
        }
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        assert!(outcome.stdout.contains("code 6"), "{outcome:?}");
        assert!(!outcome.stdout.contains("early"), "{outcome:?}");
        return;
    }
}

/// Why [`wall_clock`] cannot be tried here.
pub fn lab_missing() -> Option<String> {
    let there = common::has_program("qemu-system-x86_64") && common::target().join("lab").is_dir();
    (!there).then(|| "the lab is not built".into())
}
