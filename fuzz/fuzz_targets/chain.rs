//! See `bantam_targets::chain`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::chain::run(data));
