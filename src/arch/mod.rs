//! What belongs to a processor architecture: one folder each, re-exported under common names.

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "Bantam runs on x86_64 hosts; another architecture needs a folder beside arch/x86_64"
);

pub mod x86_64;
