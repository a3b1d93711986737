//! See `bantam_targets::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::config::run_words(data));
