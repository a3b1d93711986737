//! Tests that need a KVM on which stock kernels run, and where there is none: the lab.
//!
//! A host whose /dev/kvm is VMX or SVM runs the tests itself. Elsewhere the test program is run
//! again inside the lab (resources/lab/lab), an emulated machine with a real /dev/kvm. Where
//! neither can be, all are reported as ignored, with the reason.

use std::process::{Command, Stdio};

use bantam::machine::host::{Backend, backend};
use libtest_mimic::{Arguments, Trial};

use super::root;

const ATTEMPTS: u32 = 3;

/// Runs `trials` here, or in the lab; `missing` names what has to be built first. `trials` is
/// called with the reason for which all of them are ignored.
pub fn main(missing: Option<String>, trials: impl FnOnce(Option<&str>) -> Vec<Trial>) -> ! {
    let mut args = Arguments::from_args();
    let here = std::env::var_os("BANTAM_LAB").is_some()
        || (matches!(backend(), Backend::Vmx | Backend::Svm) && super::kvm().is_ok());
    if !here && missing.is_none() && !args.list {
        run_in_lab();
    }
    // More machines than processors at a time only wait for each other.
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    args.test_threads.get_or_insert(cpus.div_ceil(2));
    let ignored = if here {
        missing
    } else {
        missing.or(Some("the lab".into()))
    };
    let trials = trials(ignored.as_deref())
        .into_iter()
        .enumerate()
        .filter(|(index, _)| part().is_none_or(|part| index % 2 == part))
        .map(|(_, trial)| trial)
        .collect();
    libtest_mimic::run(&args, trials).exit()
}

/// Runs this program again in two labs side by side, each with every other test. One lab with two
/// processors would do as well, but emulated processors that virtualize at the same time are not
/// reliable (docs/lab.md).
///
/// A lab that stops (its emulated processor loses a timer interrupt now and then, and sleeps for
/// ever) has given no verdict, and is asked again. A test that fails is not.
fn run_in_lab() -> ! {
    println!(
        "this host's /dev/kvm is {:?}: running in the lab",
        backend()
    );
    let second = std::thread::spawn(|| lab(1, Stdio::piped));
    let (first, _, _) = lab(0, Stdio::inherit);
    let (second, out, err) = second.join().unwrap();
    print!("{}", String::from_utf8_lossy(&out));
    eprint!("{}", String::from_utf8_lossy(&err));
    std::process::exit(first.max(second));
}

/// Runs one half of the tests; exit code and, where they are piped, output and errors.
fn lab(part: usize, output: fn() -> Stdio) -> (i32, Vec<u8>, Vec<u8>) {
    // A half takes about two minutes on an idle machine.
    let limits = ["--cpus", "1", "--memory", "8192", "--time-limit", "600"];
    let mut attempt = 1;
    loop {
        let out = Command::new(root().join("resources/lab/lab"))
            .args(limits)
            .arg("--")
            .arg(std::env::current_exe().unwrap())
            .args(std::env::args_os().skip(1))
            .env("BANTAM_LAB_PART", part.to_string())
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .unwrap();
        let code = out.status.code().unwrap_or(101);
        // resources/lab/lab: 124 is its time limit, 125 an end without an exit status.
        if !matches!(code, 124 | 125) || attempt == ATTEMPTS {
            return (code, out.stdout, out.stderr);
        }
        println!("the lab stopped (exit status {code}): once more");
        attempt += 1;
    }
}

/// Which tests this process runs: all, or in the lab every other.
fn part() -> Option<usize> {
    std::env::var("BANTAM_LAB_PART").ok()?.parse().ok()
}
