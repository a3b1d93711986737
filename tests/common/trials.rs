//! Tests of the binaries that have no libtest: each may say why it cannot be run here.

use libtest_mimic::{Arguments, Failed, Trial};

/// A name, why it cannot be run here, and the test.
pub type Test = (&'static str, Option<String>, fn());

/// A test of a binary without libtest; with `missing`, the reason, it is reported as ignored.
pub fn trial(
    name: impl Into<String>,
    missing: Option<&str>,
    test: impl FnOnce() + Send + 'static,
) -> Trial {
    let trial = Trial::test(name, move || {
        test();
        Ok::<(), Failed>(())
    });
    match missing {
        Some(why) => trial.with_ignored_flag(true).with_kind(why),
        None => trial,
    }
}

/// Tests that all need the same; `missing` says what of it is not there.
pub fn trials<const N: usize>(
    missing: Option<&str>,
    tests: [(&'static str, fn()); N],
) -> Vec<Trial> {
    let trial = |(name, test): (&str, fn())| trial(name, missing, test);
    tests.map(trial).into()
}

/// Tests of which each has its own needs.
pub fn trials_of<const N: usize>(tests: [Test; N]) -> Vec<Trial> {
    let trial = |(name, missing, test): Test| trial(name, missing.as_deref(), test);
    tests.map(trial).into()
}

/// A test for each of `cases`, by names of their own: a failure says which machine it was.
pub fn each<C: Send + 'static>(
    name: &str,
    cases: impl IntoIterator<Item = (&'static str, C)>,
    missing: Option<&str>,
    test: fn(C),
) -> Vec<Trial> {
    cases
        .into_iter()
        .map(|(case, value)| trial(format!("{name}_{case}"), missing, move || test(value)))
        .collect()
}

/// Runs the tests that the command line of this program asks for.
pub fn exit_after(trials: Vec<Trial>) -> ! {
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}
