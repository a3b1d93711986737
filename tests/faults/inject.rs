//! Which faults are tried, and what comes of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::calls::{Counts, KINDS, Which, error_name};
use crate::common::Numbers;
use crate::machines::{MACHINES, Machine, Run, Visitor};
use crate::tracer::{Answer, Call, Stops};
use crate::verdict::{self, Effect};

/// Occurrences of a call that each of its errors is tried at: the first, and some others.
const OTHERS: u64 = 1;
const OTHERS_OF_A_SOAK: u64 = 60;

/// Whether there is time for much more.
pub fn soak() -> bool {
    std::env::var_os("BANTAM_SOAK").is_some()
}

/// What is done with a machine meanwhile: a pause and on, by keys or by signals; the keys ask for its state as well, and
/// the guest is typed at.
fn look_in(visitor: &mut Visitor) {
    let moment = || std::thread::sleep(Duration::from_millis(3));
    if visitor.type_in(b"\x01c\x01p") {
        moment();
        visitor.type_in(b"\x01pkeys");
        return;
    }
    visitor.signal(libc::SIGUSR1);
    moment();
    visitor.signal(libc::SIGUSR2);
}

/// One fault.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub which: Which,
    pub answer: Answer,
    /// From 1.
    pub occurrence: u64,
}

impl Fault {
    fn name(&self, machine: &Machine) -> String {
        let what = match self.answer {
            Answer::Fails(errno) => error_name(errno),
            _ => "half",
        };
        format!(
            "{},{},{what},{}",
            machine.name,
            self.which.name(),
            self.occurrence
        )
    }
}

/// The program's own calls are those after the start of the C library's: Rust's runtime begins with poll(2), to see
/// whether the standard descriptors are open. What comes before is the dynamic linker, which the program that is
/// shipped has not.
#[derive(Default)]
struct Begun(bool);

impl Begun {
    fn by(&mut self, call: &Call) -> bool {
        self.0 |= call.number == libc::SYS_poll;
        self.0
    }
}

/// Counts the calls of a machine that nothing happens to.
fn counts(machine: &Machine) -> Counts {
    let mut counts = Counts::new();
    let mut begun = Begun::default();
    let run = machine.run(&Stops::All, look_in, |call| {
        if begun.by(&call) {
            *counts.entry(Which::of(&call)).or_default() += 1;
        }
        Answer::Made
    });
    assert_eq!(verdict::of(machine, &run, false), Ok(Effect::Unseen));
    assert!(counts.len() > 30, "{counts:?}");
    let unknown: Vec<_> = counts
        .keys()
        .filter(|which| which.kind().is_none())
        .collect();
    assert!(
        unknown.is_empty(),
        "nobody has said how these can fail: {unknown:?}"
    );
    counts
}

/// Runs the machine with one fault; whether that has come about, and whether it was standard error that failed.
pub fn with(machine: &Machine, fault: Fault) -> (Run, bool, bool) {
    let (mut begun, mut left) = (Begun::default(), fault.occurrence);
    let (mut hit, mut silenced) = (false, false);
    let stops = Stops::At(vec![libc::SYS_poll, fault.which.number]);
    let run = machine.run(&stops, look_in, |call| {
        if !begun.by(&call) || Which::of(&call) != fault.which || left == 0 {
            return Answer::Made;
        }
        left -= 1;
        if left > 0 {
            return Answer::Made;
        }
        hit = true;
        silenced = matches!(call.number, libc::SYS_write | libc::SYS_writev) && call.args[0] == 2;
        fault.answer
    });
    (run, hit, silenced)
}

fn faults(counts: &Counts) -> Vec<Fault> {
    let others = if soak() { OTHERS_OF_A_SOAK } else { OTHERS };
    let mut numbers = Numbers(0x9e37_79b9);
    let mut faults = Vec::new();
    for (which, count) in counts {
        let errors = which.errors().iter().map(|errno| Answer::Fails(*errno));
        let moves = which.moves();
        for answer in errors.chain(moves.then_some(Answer::Half)) {
            let mut occurrences = std::collections::BTreeSet::from([1]);
            for other in 0..others.min(count - 1) {
                occurrences.insert(match count - 1 <= others {
                    true => other + 2,
                    false => numbers.below(*count) + 1,
                });
            }
            let fault = |occurrence| Fault {
                which: *which,
                answer,
                occurrence,
            };
            faults.extend(occurrences.into_iter().map(fault));
        }
    }
    faults
}

/// Tries everything on a machine.
pub fn everything(machine: &Machine) {
    let mut counts = counts(machine);
    let first = &MACHINES[0];
    if machine.name != first.name && !soak() {
        // What the first machine does is tried there.
        let tried = self::counts(first);
        counts.retain(|which, _| !tried.contains_key(which));
    }
    let faults = faults(&counts);
    let next = AtomicUsize::new(0);
    let effects = Mutex::new(BTreeMap::<Effect, u32>::new());
    let missed = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let (run, hit, silenced) = with(machine, *fault);
                    missed.fetch_add(usize::from(!hit), Ordering::SeqCst);
                    match verdict::of(machine, &run, silenced) {
                        Ok(effect) => {
                            *effects.lock().unwrap().entry(effect).or_default() += 1;
                        }
                        Err(what) => {
                            wrong
                                .lock()
                                .unwrap()
                                .push(format!("{}: {what}", fault.name(machine)));
                        }
                    }
                }
            });
        }
    });
    let (wrong, missed) = (wrong.into_inner().unwrap(), missed.into_inner());
    println!(
        "{}: {} kinds of calls, {} faults, {missed} of them not reached: {:?}",
        machine.name,
        counts.len(),
        faults.len(),
        effects.into_inner().unwrap()
    );
    assert!(
        missed * 10 <= faults.len(),
        "too many faults do not come about"
    );
    assert!(
        wrong.is_empty(),
        "{} wrong\n{}",
        wrong.len(),
        wrong.join("\n========\n")
    );
}

/// The fault that BANTAM_FAULT names.
pub fn one(words: &str) {
    let words: Vec<_> = words.split(',').collect();
    let [machine, call, what, occurrence] = words[..] else {
        panic!("MACHINE,CALL,ERROR,OCCURRENCE");
    };
    let machine = MACHINES.iter().find(|one| one.name == machine).unwrap();
    let counts = counts(machine);
    let which = counts.keys().find(|which| which.name() == call).unwrap();
    let all = KINDS.iter().flat_map(|kind| kind.errors);
    let errno = all.copied().find(|errno| error_name(*errno) == what);
    let answer = errno.map_or(Answer::Half, Answer::Fails);
    let fault = Fault {
        which: *which,
        answer,
        occurrence: occurrence.parse().unwrap(),
    };
    let (run, hit, silenced) = with(machine, fault);
    println!("hit: {hit}\n{}\n{}", run.stdout, run.stderr);
    println!("{:?}", verdict::of(machine, &run, silenced));
}
