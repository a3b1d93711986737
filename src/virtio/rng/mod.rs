//! virtio-rng (virtio 1.2, 5.4): random bytes from the host.
//!
//! The driver offers buffers that the device may write, on its one queue; each is filled from getrandom(2) and
//! given back. It is the shortest device there is, and shows what a device has to bring: a [`Model`] for the
//! board, a [`VirtioDevice`] for its kind, a [`Handler`] for its chains.
//!
//! A guest could ask without end, so a request has a bound, and so has what is given in a second. The host's
//! generator does not run dry (random(7)); the bounds are for its processors.

use std::sync::Arc;

use vm_memory::{Bytes, GuestMemoryMmap};

use crate::board::{Names, SiteError};
use crate::virtio::chain::Chain;
use crate::virtio::device::{Handler, Host, Made, MadeQueue, Model, Room, Taken, VirtioDevice};
use crate::virtio::limit::Limiter;
use crate::virtio::ring::Broken;

/// Device type 4 (virtio 1.2, section 5).
const ENTROPY_DEVICE: u32 = 4;
/// Linux has one buffer in its queue at a time.
const QUEUE_SIZE: u16 = 8;
/// The most bytes that one request gets. A driver takes fewer than it has asked for (5.4.6.1); Linux asks for
/// 64 at most.
const MAX_REQUEST_BYTES: usize = 4096;
/// The most bytes in a second.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// A source of random bytes, as it is planned.
pub struct RngModel;

impl Model for RngModel {
    fn names(&self) -> Names {
        Names::Numbers("rng")
    }

    fn describe(&self, name: &str) -> String {
        format!("virtio-rng, {name}: random bytes from the host")
    }

    fn make(&self, _host: &Host) -> Result<Made, SiteError> {
        let requests = Requests {
            limiter: Limiter::new(None, Some(BYTES_PER_SECOND)),
        };
        Ok(Made {
            device: Arc::new(Rng),
            queues: vec![MadeQueue::simple(QUEUE_SIZE, requests).with_limit()],
            chars: None,
        })
    }
}

/// The device, which has neither features nor a configuration of its own.
struct Rng;

impl VirtioDevice for Rng {
    fn kind(&self) -> u32 {
        ENTROPY_DEVICE
    }
}

/// The requests of its queue.
struct Requests {
    limiter: Option<Limiter>,
}

impl Handler for Requests {
    fn room(&mut self) -> Room {
        Room::of(self.limiter.as_ref())
    }

    fn take(
        &mut self,
        _head: u16,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<Taken, Broken> {
        let mut bytes = [0; MAX_REQUEST_BYTES];
        let asked = chain.writable().iter().map(|(_, len)| *len as usize);
        let asked = asked.fold(0, usize::saturating_add).min(MAX_REQUEST_BYTES);
        let random = bytes.get_mut(..asked).unwrap_or_default();
        // Where the host has none, the driver gets none, and asks again.
        let mut rest: &[u8] = match getrandom::fill(random) {
            Ok(()) => random,
            Err(_) => &[],
        };
        let mut written = 0;
        for (address, len) in chain.writable() {
            let (part, after) = rest.split_at(rest.len().min(*len as usize));
            if memory.write_slice(part, *address).is_err() {
                break;
            }
            written = part.len().saturating_add(written);
            rest = after;
        }
        if let Some(limiter) = &self.limiter {
            limiter.take(written as u64);
        }
        Ok(Taken::done(written as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use vm_memory::GuestAddress;

    const TABLE: u64 = 0x1000;

    /// Has the device answer one chain of these buffers; how much it says to have written, and the memory.
    fn ask(buffers: &[(u64, u32)]) -> (u32, GuestMemoryMmap) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        for (n, (address, len)) in (0u16..).zip(buffers) {
            let more = usize::from(n) + 1 < buffers.len();
            let descriptor = Descriptor::new(*address, *len, 2 | u16::from(more), n + 1);
            let at = GuestAddress(TABLE + 16 * u64::from(n));
            memory
                .write_obj(RawDescriptor::from(descriptor), at)
                .unwrap();
        }
        let mut chain = Chain::default();
        chain.read(&memory, TABLE, 16, 0).unwrap();
        let mut requests = Requests { limiter: None };
        let taken = requests.take(0, &chain, &memory).unwrap();
        (taken.written.unwrap(), memory)
    }

    fn bytes(memory: &GuestMemoryMmap, at: u64) -> [u8; 32] {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn buffers_are_filled_in_order_and_not_beyond() {
        let (written, memory) = ask(&[(0x8000, 32), (0x9000, 0), (0xa000, 32)]);
        assert_eq!(written, 64);
        for at in [0x8000, 0xa000] {
            // By chance once in 2^256.
            assert_ne!(bytes(&memory, at), [0; 32]);
            assert_eq!(bytes(&memory, at + 32), [0; 32]);
        }
        assert_ne!(bytes(&memory, 0x8000), bytes(&memory, 0xa000));
    }

    #[test]
    fn a_request_has_a_bound_and_ends_where_ram_does() {
        assert_eq!(ask(&[(0x2000, u32::MAX)]).0, MAX_REQUEST_BYTES as u32);
        assert_eq!(ask(&[(0x8000, 16), (0xdead_0000, 16), (0x9000, 16)]).0, 16);
        assert_eq!(ask(&[(0x8000, 0)]).0, 0);
    }

    #[test]
    fn a_second_has_a_bound() {
        let mut requests = Requests {
            limiter: Limiter::new(None, Some(BYTES_PER_SECOND)),
        };
        assert_eq!(requests.room(), Room::Yes);
        if let Some(limiter) = &requests.limiter {
            limiter.take(BYTES_PER_SECOND);
        }
        assert!(matches!(requests.room(), Room::Later(_)));
    }
}
