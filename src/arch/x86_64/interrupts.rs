//! The local APIC's two pins, as a PC's firmware leaves them.

use kvm_bindings::kvm_lapic_state;

/// Local vector table entries, byte offsets into the register page (Intel SDM 3A, 12.4.1).
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;

const DELIVERY_NMI: u32 = 0b100 << 8;
const DELIVERY_EXTINT: u32 = 0b111 << 8;

/// LINT0 takes interrupts from the PIC (ExtINT), LINT1 takes NMIs: "virtual wire mode"
/// (MultiProcessor Specification 1.4, 3.6.2.2), where an operating system without ACPI starts.
pub fn virtual_wire(lapic: &mut kvm_lapic_state) {
    set(lapic, APIC_LVT_LINT0, DELIVERY_EXTINT);
    set(lapic, APIC_LVT_LINT1, DELIVERY_NMI);
}

fn set(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in lapic.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *register = byte as libc::c_char;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_are_wired() {
        let mut lapic = kvm_lapic_state::default();
        virtual_wire(&mut lapic);
        assert_eq!(lapic.regs[APIC_LVT_LINT0 + 1], 0b111);
        assert_eq!(lapic.regs[APIC_LVT_LINT1 + 1], 0b100);
    }
}
