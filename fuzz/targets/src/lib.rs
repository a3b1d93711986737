//! What Bantam is fuzzed with.
//!
//! Each module is a target: a function `run` from the fuzzer's bytes to a check. The bytes are turned into something
//! with the structure that the code under test expects (by the crate `arbitrary`), the code is run on it, and, where
//! there is a right answer, a model that knows it is asked as well; a model is as plain as can be, and written after
//! the specification. A wrong answer is a panic, as are the overflows and bad indices that the compiler looks for; a
//! wild access of memory is found by AddressSanitizer, which `cargo fuzz` builds with.
//!
//! The functions know no fuzzer. `fuzz_targets/NAME.rs` gives each of them to libFuzzer, and `tests/corpora.rs` of the
//! main package runs each on the inputs that were kept in `corpus/NAME`.

pub mod block;
pub mod chain;
pub mod config;
pub mod console;
pub mod disk_model;
pub mod driver;
pub mod iso;
pub mod kernel;
pub mod mmio;
pub mod ports;
pub mod qcow2;
pub mod registers;
pub mod restore;
pub mod serial;
pub mod text;
pub mod world;

/// A target: its name, which is that of its folder of inputs, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const ALL: &[Target] = &[
    ("block", block::run),
    ("bzimage", kernel::run_bzimage),
    ("chain", chain::run),
    ("config", config::run),
    ("console", console::run),
    ("elf", kernel::run_elf),
    ("iso", iso::run),
    ("kernel", kernel::run),
    ("mmio", mmio::run),
    ("ports", ports::run),
    ("qcow2", qcow2::run),
    ("restore", restore::run),
    ("serial", serial::run),
    ("text", text::run),
    ("words", config::run_words),
];
