//! See `bantam_targets::serial`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::serial::run(data));
