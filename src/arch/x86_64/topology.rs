//! Sockets, cores and threads, and the APIC ids that say which is which.
//!
//! ```text
//!   APIC id:  │ socket │ core (core_bits) │ thread (thread_bits) │
//! ```
//!
//! Each field is as wide as its count needs, so with counts that are no powers of two the ids have
//! gaps (Intel SDM volume 3, 10.9 "Programming considerations for hardware multi-threading").

use std::fmt;

/// Shape of the machine: `sockets * cores * threads` vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
}

impl Topology {
    /// One socket with `cpus` cores of one thread.
    pub fn flat(cpus: u32) -> Self {
        Topology {
            sockets: 1,
            cores: cpus,
            threads: 1,
        }
    }

    /// Number of vCPUs.
    pub fn cpus(&self) -> u32 {
        self.per_socket().saturating_mul(self.sockets)
    }

    /// vCPUs of a socket.
    pub fn per_socket(&self) -> u32 {
        self.cores.saturating_mul(self.threads)
    }

    /// Bits of an APIC id that number the thread.
    pub fn thread_bits(&self) -> u32 {
        bits_for(self.threads)
    }

    /// Bits of an APIC id below the socket.
    pub fn socket_shift(&self) -> u32 {
        self.thread_bits().saturating_add(bits_for(self.cores))
    }

    /// APIC id of the vCPU with this index.
    pub fn apic_id(&self, index: u32) -> u32 {
        let thread = index.checked_rem(self.threads).unwrap_or(0);
        let core = index
            .checked_div(self.threads)
            .and_then(|i| i.checked_rem(self.cores))
            .unwrap_or(0);
        let socket = index.checked_div(self.per_socket()).unwrap_or(0);
        socket.checked_shl(self.socket_shift()).unwrap_or(u32::MAX)
            | core.checked_shl(self.thread_bits()).unwrap_or(u32::MAX)
            | thread
    }

    /// APIC ids in the order of the vCPUs' indices.
    pub fn apic_ids(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.cpus()).map(|index| self.apic_id(index))
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: u32| if n == 1 { "" } else { "s" };
        write!(
            f,
            "{} ({} socket{}, {} core{}, {} thread{})",
            self.cpus(),
            self.sockets,
            plural(self.sockets),
            self.cores,
            plural(self.cores),
            self.threads,
            plural(self.threads)
        )
    }
}

/// Bits that number `count` things.
fn bits_for(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_powers_of_two_have_no_gaps() {
        let t = Topology {
            sockets: 2,
            cores: 2,
            threads: 2,
        };
        assert_eq!(t.apic_ids().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn three_cores_leave_a_gap() {
        let t = Topology {
            sockets: 2,
            cores: 3,
            threads: 1,
        };
        assert_eq!(t.apic_ids().collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6]);
    }

    #[test]
    fn ids_are_distinct() {
        for t in [(1, 254, 1), (5, 5, 2), (3, 7, 3)] {
            let t = Topology {
                sockets: t.0,
                cores: t.1,
                threads: t.2,
            };
            let mut ids: Vec<_> = t.apic_ids().collect();
            ids.dedup();
            assert_eq!(ids.len() as u32, t.cpus());
        }
    }
}
