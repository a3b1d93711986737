//! What KVM offers and a guest here does not get: abilities of the processor with which a guest could
//! do nothing useful, and that would show it more of the host's KVM than it needs.
//!
//! KVM_GET_SUPPORTED_CPUID names all that KVM could virtualize for some VMM. What of it a machine uses is for the VMM
//! to choose: each line of [`HIDDEN`] is code of the host's kernel that a guest cannot reach. KVM refuses the
//! instructions and MSRs of a feature that is not in a vCPU's CPUID (KVM API, KVM_SET_CPUID2), so this is more than a
//! matter of what is shown. A host whose CPUID is virtual itself may show the guest its own, as PVM does.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.

use kvm_bindings::kvm_cpuid_entry2;

/// A register of a leaf's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// One bit of EBX.
    Ebx(u32),
    /// One bit of ECX.
    Ecx(u32),
    /// The leaf with all of its sub-leaves.
    Leaf,
}

/// What is hidden: leaf, what of it, whether a nested hypervisor needs it. The sub-leaf is 0 where it is bits.
const HIDDEN: &[(u32, Of, bool)] = &[
    // VMX and SVM: a hypervisor in the guest. Nested virtualization is the largest piece of KVM that a
    // guest can reach.
    (0x1, Of::Ecx(5), true),
    (0x8000_0001, Of::Ecx(2), true),
    (0x8000_000a, Of::Leaf, true),
    // SGX, SGX_LC and the enclaves' sizes: they need memory of a kind that no machine here has.
    (0x7, Of::Ebx(2), false),
    (0x7, Of::Ecx(30), false),
    (0x12, Of::Leaf, false),
    // SEV and SME: encrypted memory, which the VMM would have to set up.
    (0x8000_001f, Of::Leaf, false),
    // Tracing into buffers of the processor's own (Intel PT).
    (0x7, Of::Ebx(25), false),
    (0x14, Of::Leaf, false),
];

/// Takes out of `entries` what is hidden; `nested` leaves in what a hypervisor in the guest needs.
pub fn hide(entries: &mut Vec<kvm_cpuid_entry2>, nested: bool) {
    let hidden = HIDDEN.iter().filter(|(_, _, needed)| !(nested && *needed));
    for (leaf, what, _) in hidden {
        let bits = entries
            .iter_mut()
            .filter(|e| e.function == *leaf && e.index == 0);
        match what {
            Of::Ebx(bit) => bits.for_each(|e| e.ebx &= !(1 << bit)),
            Of::Ecx(bit) => bits.for_each(|e| e.ecx &= !(1 << bit)),
            Of::Leaf => entries.retain(|e| e.function != *leaf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Vec<kvm_cpuid_entry2> {
        [0x1, 0x7, 0x12, 0x14, 0x8000_0001, 0x8000_000a, 0x8000_001f]
            .map(|function| kvm_cpuid_entry2 {
                function,
                ebx: !0,
                ecx: !0,
                edx: !0,
                ..Default::default()
            })
            .to_vec()
    }

    fn leaves(entries: &[kvm_cpuid_entry2]) -> Vec<u32> {
        entries.iter().map(|e| e.function).collect()
    }

    #[test]
    fn a_guest_has_no_hypervisor_of_its_own_unless_it_is_asked_for() {
        let (mut plain, mut nested) = (everything(), everything());
        hide(&mut plain, false);
        hide(&mut nested, true);
        let ecx = |entries: &[kvm_cpuid_entry2], leaf| {
            entries.iter().find(|e| e.function == leaf).unwrap().ecx
        };
        assert_eq!((ecx(&plain, 1), ecx(&nested, 1)), (!(1 << 5), !0));
        assert_eq!(
            (ecx(&plain, 0x8000_0001), ecx(&nested, 0x8000_0001)),
            (!(1 << 2), !0)
        );
        assert_eq!(leaves(&plain), [0x1, 0x7, 0x8000_0001]);
        assert_eq!(leaves(&nested), [0x1, 0x7, 0x8000_0001, 0x8000_000a]);
    }

    #[test]
    fn what_the_machine_cannot_give_is_not_promised() {
        for nested in [false, true] {
            let mut entries = everything();
            hide(&mut entries, nested);
            let leaf = entries.iter().find(|e| e.function == 0x7).unwrap();
            assert_eq!(leaf.ebx, !(1 << 2 | 1 << 25));
            assert_eq!(leaf.ecx, !(1 << 30));
            assert_eq!(leaf.edx, !0, "the rest stays");
        }
    }
}
