//! See `bantam_targets::ports`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::ports::run(data));
