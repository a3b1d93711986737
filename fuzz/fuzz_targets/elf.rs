//! See `bantam_targets::kernel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bantam_targets::kernel::run_elf(data));
