//! See `bantam_targets::restore`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::restore::run(data));
