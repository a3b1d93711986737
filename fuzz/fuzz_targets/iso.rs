//! See `bantam_targets::iso`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::iso::run(data));
