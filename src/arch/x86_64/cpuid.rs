//! CPUID: what the host can virtualize, made true for each vCPU.
//!
//! KVM_GET_SUPPORTED_CPUID describes the host. Changed here are the leaves that say where a vCPU
//! stands among the others (its APIC id, cores, threads, caches shared) and the frequencies that
//! spare the guest a calibration loop; what a guest is not to have is taken out
//! (`cpuid_hidden.rs`). Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3,
//! appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::cpuid_hidden::hide;
use super::topology::Topology;

/// KVM's local APIC timer counts nanoseconds (KVM_CAP_X86_APIC_BUS_CYCLES_NS, default 1).
const APIC_BUS_HZ: u32 = 1_000_000_000;

const LEAF_MAX: u32 = 0x0;
const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TSC: u32 = 0x15;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_KVM: u32 = 0x4000_0000;
const LEAF_TIMING: u32 = 0x4000_0010;
const LEAF_EXTENDED_MAX: u32 = 0x8000_0000;
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const ECX_TOPOEXT: u32 = 1 << 22;
/// EBX of leaf 0: the first letters of AuthenticAMD and HygonGenuine.
const AMD_VENDORS: [u32; 2] = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")];

/// Topology levels of leaf 0xb, ECX bits 15:8.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The machine, as far as CPUID tells of it.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Where each vCPU stands.
    pub topology: Topology,
    /// The guest's TSC frequency, when KVM knows it.
    pub tsc_khz: Option<u32>,
    /// KVM_CAP_TSC_DEADLINE_TIMER.
    pub tsc_deadline: bool,
    /// Whether the guest may be a hypervisor itself.
    pub nested: bool,
}

/// The host's leaves with what is the same for all vCPUs of a machine filled in.
pub fn template(supported: &CpuId, facts: Facts) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|e| {
            !matches!(
                e.function,
                LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 | LEAF_AMD_TOPOLOGY_V2 | LEAF_TIMING
            )
        })
        .copied()
        .collect();
    hide(&mut entries, facts.nested);
    // Linux tells who shares a cache by APIC ids, so these count ids, gaps and all.
    let per_core = 1u32 << facts.topology.thread_bits().min(31);
    let per_socket = ids_per_socket(facts.topology);
    for entry in &mut entries {
        match entry.function {
            LEAF_MAX => entry.eax = entry.eax.max(LEAF_TOPOLOGY),
            LEAF_FEATURES => {
                entry.ecx |= ECX_HYPERVISOR;
                if facts.tsc_deadline {
                    entry.ecx |= ECX_TSC_DEADLINE;
                }
                // EBX 23:16: how many APIC ids a socket takes; only with HTT does it count.
                entry.ebx &= 0x0000_ffff;
                entry.edx &= !EDX_HTT;
                if per_socket > 1 {
                    entry.ebx |= per_socket.min(0xff) << 16;
                    entry.edx |= EDX_HTT;
                }
            }
            // EAX 25:14: threads that share the cache, 31:26: cores of the socket, both less 1.
            LEAF_CACHES if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 0b111;
                let sharing = if level < 3 { per_core } else { per_socket };
                let cores = per_socket / per_core;
                entry.eax =
                    entry.eax & 0x3fff | field(sharing, 0xfff) << 14 | field(cores, 0x3f) << 26;
            }
            LEAF_AMD_CACHES if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 0b111;
                let sharing = if level < 3 { per_core } else { per_socket };
                entry.eax = entry.eax & 0x3fff | field(sharing, 0xfff) << 14;
            }
            LEAF_TSC => {
                // TSC Hz = crystal Hz * EBX / EAX. The crystal also clocks the APIC timer, so
                // it is given as what KVM's APIC timer counts.
                (entry.eax, entry.ebx, entry.ecx) = match facts.tsc_khz {
                    Some(khz) => {
                        let (numerator, denominator) = tsc_ratio(khz);
                        (denominator, numerator, APIC_BUS_HZ)
                    }
                    None => (0, 0, 0),
                };
            }
            LEAF_KVM => entry.eax = entry.eax.max(LEAF_TIMING),
            // ECX 7:0: threads of the socket less 1, 15:12: bits of an APIC id below the socket.
            LEAF_AMD_SIZES => {
                entry.ecx = entry.ecx & !0xf0ff
                    | field(facts.topology.per_socket(), 0xff)
                    | facts.topology.socket_shift() << 12;
            }
            _ => {}
        }
    }
    // EAX: TSC kHz, EBX: APIC bus kHz; the convention of VMware that QEMU and others follow.
    if let Some(khz) = facts.tsc_khz {
        entries.push(kvm_cpuid_entry2 {
            function: LEAF_TIMING,
            eax: khz,
            ebx: APIC_BUS_HZ / 1000,
            ..Default::default()
        });
    }
    entries.extend(topology_leaf(LEAF_TOPOLOGY, facts.topology));
    if facts.topology.threads > 1 {
        announce_amd_threads(&mut entries);
    }
    entries
}

/// AMD's way to tell of threads is leaf 0x8000001e, behind the feature TOPOEXT. Linux before 6.9
/// does not look at leaf 0xb without it, and would take threads for cores.
fn announce_amd_threads(entries: &mut Vec<kvm_cpuid_entry2>) {
    let amd = |e: &kvm_cpuid_entry2| e.function == LEAF_MAX && AMD_VENDORS.contains(&e.ebx);
    if !entries.iter().any(amd) {
        return;
    }
    for entry in &mut *entries {
        match entry.function {
            LEAF_EXTENDED_MAX => entry.eax = entry.eax.max(LEAF_AMD_TOPOLOGY),
            LEAF_EXTENDED_FEATURES => entry.ecx |= ECX_TOPOEXT,
            _ => {}
        }
    }
    if !entries.iter().any(|e| e.function == LEAF_AMD_TOPOLOGY) {
        entries.push(kvm_cpuid_entry2 {
            function: LEAF_AMD_TOPOLOGY,
            ..Default::default()
        });
    }
}

/// The leaves of one vCPU: `template` with its APIC id.
pub fn for_vcpu(
    template: &[kvm_cpuid_entry2],
    topology: Topology,
    index: u32,
) -> Vec<kvm_cpuid_entry2> {
    let id = topology.apic_id(index);
    let mut entries = template.to_vec();
    for entry in &mut entries {
        match entry.function {
            LEAF_FEATURES => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            LEAF_TOPOLOGY => entry.edx = id,
            // EAX: extended APIC id; EBX 7:0: core, 15:8: threads per core less 1; ECX: node.
            LEAF_AMD_TOPOLOGY => {
                entry.eax = id;
                entry.ebx =
                    id >> topology.thread_bits() & 0xff | field(topology.threads, 0xff) << 8;
                entry.ecx = id.checked_shr(topology.socket_shift()).unwrap_or(0);
            }
            _ => {}
        }
    }
    entries
}

/// Leaf 0xb: one sub-leaf per level, then one of level 0 that ends the list.
fn topology_leaf(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, level: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count & 0xffff,
        ecx: level << 8 | index,
        ..Default::default()
    };
    [
        level(0, topology.thread_bits(), topology.threads, LEVEL_SMT),
        level(
            1,
            topology.socket_shift(),
            topology.per_socket(),
            LEVEL_CORE,
        ),
        level(2, 0, 0, 0),
    ]
}

/// TSC frequency over the crystal's, in terms so small that Linux, which multiplies the crystal's
/// kHz by the numerator in 32 bits (native_calibrate_tsc), does not overflow. The error is far
/// below that of a quartz.
fn tsc_ratio(tsc_khz: u32) -> (u32, u32) {
    const CRYSTAL_KHZ: u64 = APIC_BUS_HZ as u64 / 1000;
    const MAX_NUMERATOR: u64 = u32::MAX as u64 / CRYSTAL_KHZ;
    let khz = u64::from(tsc_khz);
    let error = |(numerator, denominator): (u64, u64)| {
        (CRYSTAL_KHZ.saturating_mul(numerator) / denominator).abs_diff(khz)
    };
    let best = (1..=MAX_NUMERATOR)
        .map(|denominator| {
            let exact = khz
                .saturating_mul(denominator)
                .saturating_add(CRYSTAL_KHZ / 2);
            (exact / CRYSTAL_KHZ, denominator)
        })
        .take_while(|(numerator, _)| *numerator <= MAX_NUMERATOR)
        .filter(|(numerator, _)| *numerator > 0)
        .min_by_key(|pair| error(*pair))
        .unwrap_or((0, 0));
    // Both are at most MAX_NUMERATOR.
    (best.0 as u32, best.1 as u32)
}

/// `count - 1`, cut to a field's mask.
fn field(count: u32, mask: u32) -> u32 {
    count.saturating_sub(1).min(mask)
}

fn ids_per_socket(topology: Topology) -> u32 {
    1u32.checked_shl(topology.socket_shift())
        .unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let leaf = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx: 0xffff_ffff,
            ecx: 0,
            edx: 0xffff_ffff,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0, 0x7),
            leaf(1, 0, 0),
            leaf(4, 0, 1 | 1 << 5),
            leaf(4, 1, 3 | 3 << 5),
            leaf(4, 2, 0),
            leaf(0xb, 0, 99),
            leaf(0x15, 0, 0),
            leaf(0x4000_0000, 0, 0x4000_0001),
            leaf(0x8000_0008, 0, 0),
            leaf(0x8000_001e, 0, 0),
        ])
        .unwrap()
    }

    fn facts(sockets: u32, cores: u32, threads: u32) -> Facts {
        Facts {
            topology: Topology {
                sockets,
                cores,
                threads,
            },
            tsc_khz: Some(2_600_000),
            tsc_deadline: true,
            nested: false,
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = entries
            .iter()
            .filter(|e| e.function == function && e.index == index);
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "{function:#x} stands twice");
        entry
    }

    #[test]
    fn a_vcpu_knows_its_place() {
        let facts = facts(2, 3, 2);
        let cpu = for_vcpu(&template(&host(), facts), facts.topology, 9);
        let id = facts.topology.apic_id(9);
        assert_eq!(id, 8 | 1 << 1 | 1, "socket 1, core 1, thread 1");
        assert_eq!(find(&cpu, 1, 0).ebx >> 24, id);
        assert_eq!(find(&cpu, 1, 0).ebx >> 16 & 0xff, 8, "ids of a socket");
        let smt = find(&cpu, 0xb, 0);
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (1, 2, 0x100, id));
        let core = find(&cpu, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, id));
        assert_eq!(find(&cpu, 0xb, 2).ecx, 2, "the list ends");
        assert_eq!(find(&cpu, 0, 0).eax, 0xb, "leaf 0xb is announced");
    }

    #[test]
    fn caches_are_shared_as_the_topology_says() {
        let cpu = template(&host(), facts(1, 4, 2));
        assert_eq!(find(&cpu, 4, 0).eax >> 14 & 0xfff, 1, "L1: two threads");
        assert_eq!(find(&cpu, 4, 1).eax >> 14 & 0xfff, 7, "L3: the socket");
        assert_eq!(find(&cpu, 4, 0).eax >> 26, 3);
        assert_eq!(find(&cpu, 4, 2).eax, 0, "the end marker stays");
    }

    #[test]
    fn a_single_cpu_is_not_hyperthreaded() {
        let cpu = template(&host(), facts(1, 1, 1));
        assert_eq!(find(&cpu, 1, 0).edx & EDX_HTT, 0);
    }

    #[test]
    fn amd_leaves_agree() {
        let facts = facts(1, 4, 2);
        let cpu = for_vcpu(&template(&host(), facts), facts.topology, 5);
        assert_eq!(find(&cpu, 0x8000_0008, 0).ecx, 7 | 3 << 12);
        let e = find(&cpu, 0x8000_001e, 0);
        assert_eq!((e.eax, e.ebx, e.ecx), (5, 2 | 1 << 8, 0));
    }

    #[test]
    fn threads_are_announced_where_amd_has_no_leaf_for_them() {
        let entry = |function, ebx| kvm_cpuid_entry2 {
            function,
            ebx,
            ..Default::default()
        };
        let amd = u32::from_le_bytes(*b"Auth");
        let host = |vendor| {
            let leaves = [
                entry(0, vendor),
                entry(0x8000_0000, 0),
                entry(0x8000_0001, 0),
            ];
            CpuId::from_entries(&leaves).unwrap()
        };
        let cpu = for_vcpu(
            &template(&host(amd), facts(1, 1, 2)),
            facts(1, 1, 2).topology,
            1,
        );
        assert_eq!(find(&cpu, 0x8000_0000, 0).eax, 0x8000_001e);
        assert_eq!(find(&cpu, 0x8000_0001, 0).ecx, ECX_TOPOEXT);
        assert_eq!(find(&cpu, 0x8000_001e, 0).ebx, 1 << 8);
        for (vendor, threads) in [(amd, 1), (u32::from_le_bytes(*b"Genu"), 2)] {
            let cpu = template(&host(vendor), facts(1, 1, threads));
            assert_eq!(find(&cpu, 0x8000_0001, 0).ecx, 0);
            assert!(cpu.iter().all(|e| e.function != 0x8000_001e));
        }
    }

    #[test]
    fn frequencies_need_no_calibration() {
        let cpu = template(&host(), facts(1, 1, 1));
        let tsc = find(&cpu, 0x15, 0);
        // As Linux computes it, in 32 bits.
        let khz = (tsc.ecx / 1000).checked_mul(tsc.ebx).unwrap() / tsc.eax;
        assert_eq!(khz, 2_600_000);
        for khz in [800_000, 2_599_997, 3_999_999, 1_234_567] {
            let (numerator, denominator) = tsc_ratio(khz);
            let told = 1_000_000u32.checked_mul(numerator).unwrap() / denominator;
            assert!(told.abs_diff(khz) <= 200, "{khz}: {told}");
        }
        assert_eq!(tsc_ratio(0), (0, 0));
        assert_eq!(find(&cpu, 0x4000_0010, 0).eax, 2_600_000);
        assert_ne!(find(&cpu, 1, 0).ecx & ECX_TSC_DEADLINE, 0);
    }
}
