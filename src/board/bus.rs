//! An address and the device behind it.
//!
//! Two of these make a machine: one for ports, one for guest physical addresses. They are filled
//! before the first vCPU runs and never change, so a look-up takes no lock.

use std::sync::Arc;

use super::device::BusDevice;

struct Slot {
    start: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by their address ranges, sorted.
#[derive(Default)]
pub struct Bus {
    slots: Vec<Slot>,
}

/// Two devices want the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("two devices overlap at {0:#x}")]
pub struct Overlap(u64);

impl Bus {
    /// Puts `device` at `start..start + len`.
    ///
    /// # Errors
    /// When another device is there.
    pub fn insert(
        &mut self,
        start: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Overlap> {
        let at = self.slots.partition_point(|slot| slot.start < start);
        let end = start.saturating_add(len);
        let overlaps =
            |slot: &Slot| slot.start < end && start < slot.start.saturating_add(slot.len);
        let before = at.checked_sub(1).and_then(|i| self.slots.get(i));
        if before.is_some_and(overlaps) || self.slots.get(at).is_some_and(overlaps) {
            return Err(Overlap(start));
        }
        self.slots.insert(at, Slot { start, len, device });
        Ok(())
    }

    fn find(&self, address: u64) -> Option<(&dyn BusDevice, u64)> {
        let at = self.slots.partition_point(|slot| slot.start <= address);
        let slot = self.slots.get(at.checked_sub(1)?)?;
        let offset = address.checked_sub(slot.start)?;
        (offset < slot.len).then_some((&*slot.device, offset))
    }

    /// The guest reads at `address`; where nothing is, it finds all ones, as on a bus that
    /// nobody drives.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes at `address`; where nothing is, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut byte = [0];
        bus.read(address, &mut byte);
        byte[0]
    }

    #[test]
    fn addresses_find_their_device() {
        let mut bus = Bus::default();
        bus.insert(0x20, 8, Arc::new(Echo)).unwrap();
        bus.insert(0x10, 8, Arc::new(Echo)).unwrap();
        bus.insert(u64::MAX - 7, 7, Arc::new(Echo)).unwrap();
        assert_eq!(read(&bus, 0x0f), 0xff);
        assert_eq!(read(&bus, 0x10), 0);
        assert_eq!(read(&bus, 0x17), 7);
        assert_eq!(read(&bus, 0x18), 0xff);
        assert_eq!(read(&bus, 0x27), 7);
        assert_eq!(read(&bus, u64::MAX), 0xff);
        bus.write(0x18, &[1]);
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x10, 8, Arc::new(Echo)).unwrap();
        for (start, len) in [(0x10, 1), (0x0f, 2), (0x17, 5), (0, 0x100)] {
            assert!(
                bus.insert(start, len, Arc::new(Echo)).is_err(),
                "{start:#x}"
            );
        }
        bus.insert(0x18, 1, Arc::new(Echo)).unwrap();
    }
}
