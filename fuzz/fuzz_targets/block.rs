//! See `bantam_targets::block`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::block::run(data));
