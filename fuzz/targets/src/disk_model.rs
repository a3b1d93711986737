//! A disk as a driver may expect it, and the RAM that it works in: what each request has to do to both.
//!
//! A request is taken byte by byte, each with its address, after virtio 1.2, 5.2.6.

use crate::world::RAM_END;

const SECTOR: u64 = 512;
/// What GET_ID returns.
pub const SERIAL: &str = "twenty-byte-serial-1";

/// Addresses and lengths.
pub type Pieces = Vec<(u64, u32)>;

/// A request as it lies in guest memory.
pub struct Laid {
    pub head: u16,
    pub kind: u32,
    pub sector: u64,
    pub readable: Pieces,
    pub writable: Pieces,
}

/// What is to become of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It cannot be answered.
    Broken,
    /// Status, and bytes that are new in guest memory with it.
    Status(u8, u32),
    /// I/O error; some bytes may have been written before it was found.
    Error,
}

/// What the model knows: RAM, disk.
pub struct Model {
    pub ram: Vec<u8>,
    pub disk: Vec<u8>,
    pub read_only: bool,
    pub discard: bool,
    /// Sectors whose content may have become zeros.
    pub discarded: Vec<std::ops::Range<usize>>,
}

/// Each byte's address. What would be beyond the end of all addresses is at the last one, where no RAM is.
pub fn bytes_of(pieces: &Pieces) -> Vec<u64> {
    let piece =
        |(at, len): &(u64, u32)| (0..u64::from(*len)).map(|i| at.saturating_add(i)).collect();
    pieces
        .iter()
        .flat_map(|range| -> Vec<u64> { piece(range) })
        .collect()
}

impl Model {
    fn read(&self, addresses: &[u64]) -> Option<Vec<u8>> {
        let byte = |at: &u64| self.ram.get(usize::try_from(*at).ok()?).copied();
        addresses.iter().map(byte).collect()
    }

    /// Where a range is, if all of it is on the disk.
    fn place(&self, sector: u64, bytes: u64) -> Option<std::ops::Range<usize>> {
        let from = u128::from(sector) * u128::from(SECTOR);
        let to = from + u128::from(bytes);
        let inside = bytes % SECTOR == 0 && to <= self.disk.len() as u128;
        inside.then_some(from as usize..to as usize)
    }

    /// What becomes of a request; RAM and disk are as they are then.
    pub fn request(&mut self, laid: &Laid) -> Outcome {
        let (readable, writable) = (bytes_of(&laid.readable), bytes_of(&laid.writable));
        let Some((&status, writable)) = writable.split_last() else {
            return Outcome::Broken;
        };
        let Some((header, readable)) = readable.split_at_checked(16) else {
            return Outcome::Broken;
        };
        if self.read(header).is_none() || status >= RAM_END {
            return Outcome::Broken;
        }
        let outcome = self.work(laid, readable, writable);
        let code = match outcome {
            Outcome::Status(code, _) => code,
            _ => 1,
        };
        self.ram[status as usize] = code;
        outcome
    }

    fn work(&mut self, laid: &Laid, readable: &[u64], writable: &[u64]) -> Outcome {
        const ERROR: Outcome = Outcome::Status(1, 1);
        match laid.kind {
            0 => {
                let Some(place) = self.place(laid.sector, writable.len() as u64) else {
                    return ERROR;
                };
                if self.read(writable).is_none() {
                    return ERROR;
                }
                for (at, byte) in writable.iter().zip(&self.disk[place]) {
                    self.ram[*at as usize] = *byte;
                }
                Outcome::Status(0, writable.len() as u32 + 1)
            }
            1 => {
                let place = self.place(laid.sector, readable.len() as u64);
                match (place, self.read(readable)) {
                    (Some(place), Some(bytes)) if !self.read_only => {
                        self.disk[place].copy_from_slice(&bytes);
                        Outcome::Status(0, 1)
                    }
                    _ => ERROR,
                }
            }
            4 => Outcome::Status(0, 1),
            8 => {
                let room = &writable[..writable.len().min(20)];
                if self.read(room).is_none() {
                    return Outcome::Error;
                }
                for (at, byte) in room.iter().zip(SERIAL.bytes()) {
                    self.ram[*at as usize] = byte;
                }
                let code = u8::from(room.len() < 20);
                Outcome::Status(code, room.len() as u32 + 1)
            }
            11 | 13 if self.discard && !self.read_only => self.range(laid.kind == 11, readable),
            _ => Outcome::Status(2, 1),
        }
    }

    /// One range of a DISCARD or WRITE_ZEROES.
    fn range(&mut self, discard: bool, readable: &[u64]) -> Outcome {
        const ERROR: Outcome = Outcome::Status(1, 1);
        let Some(bytes) = self.read(readable).filter(|bytes| bytes.len() == 16) else {
            return ERROR;
        };
        let number = |range: std::ops::Range<usize>| {
            let bytes = bytes[range].iter().rev();
            bytes.fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let (sector, sectors, flags) = (number(0..8), number(8..12), number(12..16));
        let known = u64::from(!discard);
        if flags & !known != 0 {
            return Outcome::Status(2, 1);
        }
        // A disk this small is below both maxima that are in the configuration space.
        let Some(place) = self.place(sector, sectors * SECTOR) else {
            return ERROR;
        };
        if discard {
            self.discarded.push(place);
        } else {
            self.disk[place].fill(0);
        }
        Outcome::Status(0, 1)
    }
}
