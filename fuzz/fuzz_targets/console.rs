//! See `bantam_targets::console`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::console::run(data));
