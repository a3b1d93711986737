//! See `bantam_targets::mmio`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::mmio::run(data));
