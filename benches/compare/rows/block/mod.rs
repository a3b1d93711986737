//! What a disk gives: to a driver in ring 3 of a bare machine, to fio in Linux, and to fio on the
//! host without a machine, which is the limit.

mod bare;
mod fio;
mod linux;

pub use bare::bare;
pub use linux::{linux, make_root_disk};

/// One kind of load.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    write: bool,
    bytes: u32,
    depth: u32,
    sequential: bool,
    /// Requests in a sample on the host's clock.
    count: u32,
    /// Requests in a sample in the lab, whose processor is a hundred times slower.
    count_in_lab: u32,
}

impl Load {
    /// What its figures count, and how many of that a request is.
    fn unit(&self) -> (&'static str, f64) {
        if self.sequential {
            ("MiB/s", f64::from(self.bytes) / 1048576.0)
        } else {
            ("IOPS", 1.0)
        }
    }
}

const LOADS: [Load; 6] = [
    Load {
        name: "4 KiB random read, depth 1",
        write: false,
        bytes: 4096,
        depth: 1,
        sequential: false,
        count: 3000,
        count_in_lab: 300,
    },
    Load {
        name: "4 KiB random write, depth 1",
        write: true,
        bytes: 4096,
        depth: 1,
        sequential: false,
        count: 3000,
        count_in_lab: 300,
    },
    Load {
        name: "4 KiB random read, depth 32",
        write: false,
        bytes: 4096,
        depth: 32,
        sequential: false,
        count: 20_000,
        count_in_lab: 2000,
    },
    Load {
        name: "4 KiB random write, depth 32",
        write: true,
        bytes: 4096,
        depth: 32,
        sequential: false,
        count: 20_000,
        count_in_lab: 2000,
    },
    Load {
        name: "1 MiB sequential read",
        write: false,
        bytes: 1 << 20,
        depth: 4,
        sequential: true,
        count: 400,
        count_in_lab: 48,
    },
    Load {
        name: "1 MiB sequential write",
        write: true,
        bytes: 1 << 20,
        depth: 4,
        sequential: true,
        count: 400,
        count_in_lab: 48,
    },
];
