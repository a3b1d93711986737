//! See `bantam_targets::text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::text::run(data));
