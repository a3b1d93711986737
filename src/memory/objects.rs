//! Objects in guest memory, as descriptors and headers are: small, and in one region of RAM nearly
//! always. vm-memory's own reads and writes take a range that may be in several, which is a third
//! of what a request of 4 KiB costs.

use vm_memory::VolatileMemory as _;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

/// What is at `addr`, read once; `None` unless all of it is RAM.
pub fn read<T: ByteValued>(memory: &GuestMemoryMmap, addr: GuestAddress) -> Option<T> {
    match memory.get_slice(addr, size_of::<T>()) {
        Ok(slice) => Some(slice.get_ref(0).ok()?.load()),
        Err(_) => memory.read_obj(addr).ok(),
    }
}

/// Puts `value` at `addr`; `None` unless all of that is RAM.
pub fn write<T: ByteValued>(memory: &GuestMemoryMmap, value: T, addr: GuestAddress) -> Option<()> {
    match memory.get_slice(addr, size_of::<T>()) {
        Ok(slice) => slice.get_ref(0).ok().map(|place| place.store(value)),
        Err(_) => memory.write_obj(value, addr).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_may_lie_across_regions_and_not_outside() {
        let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
        for at in [0, 1, 0xff8, 0xffc, 0x1000, 0x1ff8] {
            write(&memory, 0x0123_4567_89ab_cdef_u64 + at, GuestAddress(at)).unwrap();
            assert_eq!(
                read::<u64>(&memory, GuestAddress(at)),
                Some(0x0123_4567_89ab_cdef + at)
            );
        }
        for at in [0x1ff9, 0x2000, u64::MAX] {
            assert_eq!(read::<u64>(&memory, GuestAddress(at)), None);
            assert_eq!(write(&memory, 0u64, GuestAddress(at)), None);
        }
    }
}
