//! The loads that a disk is given.

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    pub write: bool,
    pub bytes: u32,
    pub depth: u32,
    pub sequential: bool,
    /// Requests in a sample on the host's clock.
    pub count: u32,
}

impl Load {
    const fn random(name: &'static str, write: bool, depth: u32, count: u32) -> Self {
        Load {
            name,
            write,
            bytes: 4096,
            depth,
            sequential: false,
            count,
        }
    }

    const fn sequential(name: &'static str, write: bool) -> Self {
        Load {
            name,
            write,
            bytes: 1 << 20,
            depth: 4,
            sequential: true,
            count: 400,
        }
    }

    /// The same with more requests.
    pub const fn times(self, times: u32) -> Self {
        Load {
            count: self.count.saturating_mul(times),
            ..self
        }
    }

    /// What its figures count, and how many of that a request is.
    pub fn unit(&self) -> (&'static str, f64) {
        if self.sequential {
            ("MiB/s", f64::from(self.bytes) / 1048576.0)
        } else {
            ("IOPS", 1.0)
        }
    }
}

pub const LOADS: [Load; 6] = [
    Load::random("4 KiB random read, depth 1", false, 1, 3000),
    Load::random("4 KiB random write, depth 1", true, 1, 3000),
    Load::random("4 KiB random read, depth 32", false, 32, 20_000),
    Load::random("4 KiB random write, depth 32", true, 32, 20_000),
    Load::sequential("1 MiB sequential read", false),
    Load::sequential("1 MiB sequential write", true),
];
