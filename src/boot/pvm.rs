//! Which kernels are of no use where KVM is PVM: Linux that is not built for it.
//!
//! PVM runs the guest's kernel in ring 3. A kernel built with CONFIG_PVM_GUEST finds that out by a
//! pair of instructions that PVM's host recognises (Linux patches "PVM", asm/pvm_para.h), which are
//! therefore somewhere in its code; other kernels lose themselves in instructions that KVM would have
//! to emulate one by one, and cannot.

use super::inspect::banner;
use super::kconfig::find;
use super::kernel::{Kernel, KernelFormat};
use super::payload;

/// `invlpg 0xffffffffff4d5650` and `cpuid`: PVM_SYNTHETIC_CPUID.
const SYNTHETIC_CPUID: &[u8] = b"\x0f\x01\x3c\x25\x50\x56\x4d\xff\x0f\xa2";

impl Kernel {
    /// Whether it is certainly Linux, and certainly not built for PVM.
    pub fn is_lost_on_pvm(&self) -> bool {
        let vmlinux = match &self.format {
            KernelFormat::Elf(_) => {
                let all = self.source.len().min(payload::MAX_UNPACKED);
                self.source.read_up_to(0, all as usize)
            }
            KernelFormat::BzImage(image) => match payload::unpack(&self.source, image) {
                Ok(vmlinux) => vmlinux,
                // What cannot be looked at is not judged.
                Err(_) => return false,
            },
        };
        banner(&vmlinux).is_some() && find(&vmlinux, SYNTHETIC_CPUID).is_none()
    }
}
