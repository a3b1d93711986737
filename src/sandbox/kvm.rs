//! The numbers of KVM's calls, by which the table pins them.

use kvm_bindings::{
    kvm_cpuid2, kvm_ioeventfd, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_pit_config,
    kvm_regs, kvm_sregs, kvm_translation, kvm_userspace_memory_region,
};

/// KVM API, 4: the numbers of the calls, as the macros of linux/kvm.h make them.
pub(super) const KVM_RUN: u64 = io(0x80);
/// What a paused vCPU is asked for, and one that has crashed.
pub(super) const KVM_LOOK: &[u64] = &[
    io(0xad),                      // KVM_KVMCLOCK_CTRL
    ior::<kvm_regs>(0x81),         // KVM_GET_REGS
    ior::<kvm_sregs>(0x83),        // KVM_GET_SREGS
    ior::<kvm_mp_state>(0x98),     // KVM_GET_MP_STATE
    iowr::<kvm_translation>(0x85), // KVM_TRANSLATE
];
/// What makes a VM and its vCPUs.
pub(super) const KVM_SETUP: &[u64] = &[
    io(0x00),                                 // KVM_GET_API_VERSION
    io(0x01),                                 // KVM_CREATE_VM
    io(0x03),                                 // KVM_CHECK_EXTENSION
    io(0x04),                                 // KVM_GET_VCPU_MMAP_SIZE
    iowr::<kvm_cpuid2>(0x05),                 // KVM_GET_SUPPORTED_CPUID
    io(0x41),                                 // KVM_CREATE_VCPU
    iow::<kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
    io(0x47),                                 // KVM_SET_TSS_ADDR
    iow::<u64>(0x48),                         // KVM_SET_IDENTITY_MAP_ADDR
    io(0x60),                                 // KVM_CREATE_IRQCHIP
    iow::<kvm_irqfd>(0x76),                   // KVM_IRQFD
    iow::<kvm_pit_config>(0x77),              // KVM_CREATE_PIT2
    iow::<kvm_ioeventfd>(0x79),               // KVM_IOEVENTFD
    iow::<kvm_regs>(0x82),                    // KVM_SET_REGS
    iow::<kvm_sregs>(0x84),                   // KVM_SET_SREGS
    iow::<kvm_msrs>(0x89),                    // KVM_SET_MSRS
    ior::<kvm_lapic_state>(0x8e),             // KVM_GET_LAPIC
    iow::<kvm_lapic_state>(0x8f),             // KVM_SET_LAPIC
    iow::<kvm_cpuid2>(0x90),                  // KVM_SET_CPUID2
    io(0xa3),                                 // KVM_GET_TSC_KHZ
];

/// asm-generic/ioctl.h: two bits of direction, fourteen of length, eight each of type and number. KVM's type is 0xae.
const fn number(direction: u64, bytes: usize, number: u64) -> u64 {
    direction << 30 | (bytes as u64) << 16 | 0xae << 8 | number
}

const fn io(n: u64) -> u64 {
    number(0, 0, n)
}

const fn iow<T>(n: u64) -> u64 {
    number(1, size_of::<T>(), n)
}

const fn ior<T>(n: u64) -> u64 {
    number(2, size_of::<T>(), n)
}

const fn iowr<T>(n: u64) -> u64 {
    number(3, size_of::<T>(), n)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of linux/kvm.h on x86_64.
    #[test]
    fn the_numbers_of_kvm_are_right() {
        assert_eq!(KVM_RUN, 0xae80);
        assert_eq!(ior::<kvm_regs>(0x81), 0x8090_ae81);
        assert_eq!(iowr::<kvm_cpuid2>(0x05), 0xc008_ae05);
        assert_eq!(iow::<kvm_userspace_memory_region>(0x46), 0x4020_ae46);
        assert_eq!(iow::<kvm_ioeventfd>(0x79), 0x4040_ae79);
    }
}
