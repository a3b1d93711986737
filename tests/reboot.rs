//! `--reboot`: a reset starts the machine again, in the same process and on the same terminal.

mod common;

use std::time::Duration;

use common::pty::Session;
use common::trials::{each, exit_after, trials};
use common::{Outcome, guest, resident_kib, run};

fn main() {
    let missing = common::kvm().err();
    let missing = missing.as_deref();
    let tests: [(&str, fn()); 7] = [
        ("each_life_has_empty_memory_and_the_same_terminal", lives),
        (
            "each_life_has_empty_memory_that_is_shared_too",
            lives_shared,
        ),
        ("without_it_a_reset_is_the_end", ends),
        ("ctrl_a_x_ends_a_guest_that_resets_without_end", quit),
        ("the_time_limit_is_for_all_lives_together", time_limit),
        ("sigterm_ends_a_guest_that_resets_without_end", sigterm),
        ("lives_do_not_add_up", growth),
    ];
    let mut trials = trials(missing, tests);
    let crashes = [
        ("a_triple_fault", "triple-fault"),
        ("a_panic", "panic"),
        ("a_warm_reset_of_a_panic", "warm-reset"),
    ];
    trials.extend(each("nothing_starts_again_after", crashes, missing, crash));
    exit_after(trials);
}

fn machine(wish: &str, args: &[&str]) -> Vec<String> {
    let append = format!("do={wish}");
    let kernel = guest::elf().to_str().unwrap();
    [&[kernel, "--append", &append], args]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
}

fn on_terminal(wish: &str, args: &[&str]) -> Session {
    let words = machine(wish, args);
    Session::start(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn to_its_end(wish: &str, args: &[&str]) -> Outcome {
    let words = machine(wish, args);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run(&[&["run"], words.as_slice()].concat())
}

fn lives() {
    let mut session = on_terminal("lives", &["--reboot", "--time-limit", "60s"]);
    for life in 0..3 {
        session.expect("memory 0x0.");
        session.forget();
        assert!(session.is_raw(), "life {life}");
        session.send(b"ab");
        session.expect("ab");
        session.send(b"r");
    }
    session.expect("memory 0x0.");
    session.send(b"q");
    assert_eq!(session.finish().code(), Some(0));
}

fn lives_shared() {
    let shared = [
        "--reboot",
        "--memory-backing",
        "shared",
        "--time-limit",
        "60s",
    ];
    let mut session = on_terminal("lives", &shared);
    session.expect("memory 0x0.");
    session.forget();
    session.send(b"r");
    session.expect("memory 0x0.");
    session.send(b"\x01x");
    assert_eq!(session.finish().code(), Some(0));
}

fn ends() {
    let outcome = to_its_end("acpi-reset", &["-v"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stderr.contains("asked for a reset"), "{outcome:?}");
    assert!(!outcome.stderr.contains("starting again"), "{outcome:?}");
}

fn quit() {
    let mut session = on_terminal("acpi-reset", &["--reboot", "-v", "--time-limit", "60s"]);
    for _ in 0..3 {
        session.expect("starting again");
        session.forget();
    }
    session.send(b"\x01x");
    assert_eq!(session.finish().code(), Some(0));
}

fn time_limit() {
    let outcome = to_its_end("acpi-reset", &["--reboot", "-v", "--time-limit", "1s"]);
    assert_eq!(outcome.code(), 6, "{outcome:?}");
    assert!(
        outcome.stderr.matches("starting again").count() > 3,
        "{outcome:?}"
    );
}

fn sigterm() {
    let mut session = on_terminal("acpi-reset", &["--reboot", "-v", "--time-limit", "60s"]);
    session.expect("starting again");
    common::signal(&session.child, libc::SIGTERM);
    let code = session.finish().code();
    assert!(matches!(code, Some(0 | 5)), "{code:?}");
}

fn crash(wish: &str) {
    let outcome = to_its_end(wish, &["--reboot", "-v", "--time-limit", "30s"]);
    assert_eq!(outcome.code(), 4, "{outcome:?}");
    assert!(!outcome.stderr.contains("starting again"), "{outcome:?}");
}

/// Descriptors, threads and memory of a process that has seen many lives are those of the first.
fn growth() {
    let mut session = on_terminal("acpi-reset", &["--reboot", "-v", "--time-limit", "60s"]);
    let id = session.child.id();
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/{id}/{what}"))
            .unwrap()
            .count()
    };
    let most = |session: &mut Session| {
        let (mut fds, mut threads, mut memory) = (0, 0, 0);
        for _ in 0..20 {
            session.expect("starting again");
            session.forget();
            std::thread::sleep(Duration::from_millis(3));
            fds = fds.max(count("fd"));
            threads = threads.max(count("task"));
            memory = memory.max(resident_kib(id));
        }
        (fds, threads, memory)
    };
    let first = most(&mut session);
    for _ in 0..5 {
        most(&mut session);
    }
    let last = most(&mut session);
    assert!(last.0 <= first.0 + 2, "descriptors: {first:?}, {last:?}");
    assert!(last.1 <= first.1 + 1, "threads: {first:?}, {last:?}");
    assert!(last.2 <= first.2 + 2048, "KiB: {first:?}, {last:?}");
    session.send(b"\x01x");
    assert_eq!(session.finish().code(), Some(0));
}
