//! A block request, out of a descriptor chain (virtio 1.2, 5.2.6).
//!
//! ```text
//!   readable bytes:  type u32 │ reserved u32 │ sector u64 │ data of a write ...
//!   writable bytes:  data of a read ... │ status u8
//! ```
//!
//! How the driver cuts these bytes into descriptors is its own affair (2.7.4.1 "Message framing"):
//! the header may come in pieces, the status may share a descriptor with data. So the chain is
//! taken as two byte streams: the first 16 readable bytes are the header, the last writable byte
//! is the status, what is between is data.

use virtio_bindings::bindings::virtio_blk as blk;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory::objects;
use crate::storage::{SECTOR_BYTES, Work};
use crate::virtio::chain::{Chain, Range};

const HEADER_BYTES: usize = 16;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Work for the storage; its data is in the data ranges. A write is not durable by itself.
    Do(Work),
    /// Copy the serial number into the data ranges.
    GetId,
    /// Nothing is done; the status says why.
    Refuse(Status),
}

/// The status byte (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Not done, or not well.
    IoError = 1,
    /// The device does not know this request.
    Unsupported = 2,
}

/// The shape of the disk, as far as requests are checked against it.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// Length in bytes.
    pub len: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// DISCARD and WRITE_ZEROES are offered.
    pub discard: bool,
    /// Bytes of a logical block: what offsets and lengths are multiples of.
    pub block: u32,
}

/// The most sectors of one DISCARD: 2 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// The most sectors of one WRITE_ZEROES: 32 MiB, which some file systems have to write.
pub const MAX_ZERO_SECTORS: u32 = 1 << 16;
/// `struct virtio_blk_discard_write_zeroes`: sector u64, sectors u32, flags u32 (bit 0: unmap).
const RANGE_BYTES: u64 = 16;
const FLAG_UNMAP: u32 = 1;

/// One request. `data` keeps its allocation from one to the next.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub operation: Operation,
    /// Where the data is, in order, header and status cut off.
    pub data: Vec<Range>,
    /// Length of `data` in bytes.
    pub data_len: u64,
    /// Where the status byte goes.
    pub status: GuestAddress,
}

/// No status byte can be given: the chain has no room for one, or no header. There is no way to
/// answer that, so the ring counts as broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request has no room for a header and a status")]
pub struct Unanswerable;

impl Default for Request {
    fn default() -> Self {
        Request {
            operation: Operation::Do(Work::Flush),
            data: Vec::new(),
            data_len: 0,
            status: GuestAddress(0),
        }
    }
}

impl Request {
    /// Parses `chain`.
    ///
    /// # Errors
    /// [`Unanswerable`]; everything else that is wrong with a request becomes
    /// [`Operation::Refuse`].
    pub fn parse(
        &mut self,
        chain: &Chain,
        memory: &GuestMemoryMmap,
        disk: Geometry,
    ) -> Result<(), Unanswerable> {
        self.data.clear();
        let header = read_header(chain.readable(), memory).ok_or(Unanswerable)?;
        let (kind, _reserved, sector) = split_header(&header);
        self.status = last_byte(chain.writable()).ok_or(Unanswerable)?;
        match kind {
            blk::VIRTIO_BLK_T_OUT | blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                skip(chain.readable(), HEADER_BYTES as u64, &mut self.data);
            }
            _ => {
                self.data.extend_from_slice(chain.writable());
                drop_last_byte(&mut self.data);
            }
        }
        // A chain has at most 1024 ranges of 32-bit length, so this cannot overflow.
        self.data_len = self.data.iter().map(|(_, len)| u64::from(*len)).sum();
        self.operation = match kind {
            blk::VIRTIO_BLK_T_IN => match place(sector, self.data_len, disk) {
                Some(offset) => Operation::Do(Work::Read { offset }),
                None => Operation::Refuse(Status::IoError),
            },
            blk::VIRTIO_BLK_T_OUT => match place(sector, self.data_len, disk) {
                Some(offset) if !disk.read_only => Operation::Do(Work::Write {
                    offset,
                    durable: false,
                }),
                _ => Operation::Refuse(Status::IoError),
            },
            blk::VIRTIO_BLK_T_FLUSH => Operation::Do(Work::Flush),
            blk::VIRTIO_BLK_T_GET_ID => Operation::GetId,
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES if disk.discard => {
                self.range(kind == blk::VIRTIO_BLK_T_DISCARD, memory, disk)
            }
            _ => Operation::Refuse(Status::Unsupported),
        };
        Ok(())
    }

    /// A DISCARD or WRITE_ZEROES of the one range that is in the data (5.2.6.1, 5.2.6.2).
    fn range(&self, discard: bool, memory: &GuestMemoryMmap, disk: Geometry) -> Operation {
        let io_error = Operation::Refuse(Status::IoError);
        let bytes = match read_header(&self.data, memory) {
            // The driver was told to give one range at a time (max_discard_seg).
            Some(bytes) if self.data_len == RANGE_BYTES => bytes,
            _ => return io_error,
        };
        let value = u128::from_le_bytes(bytes);
        let (sector, sectors, flags) = (value as u64, (value >> 64) as u32, (value >> 96) as u32);
        let (max, known_flags) = match discard {
            true => (MAX_DISCARD_SECTORS, 0),
            false => (MAX_ZERO_SECTORS, FLAG_UNMAP),
        };
        if flags & !known_flags != 0 {
            return Operation::Refuse(Status::Unsupported);
        }
        let len = u64::from(sectors).saturating_mul(SECTOR_BYTES);
        match place(sector, len, disk) {
            Some(offset) if sectors <= max && !disk.read_only => match discard {
                true => Operation::Do(Work::Discard { offset, len }),
                false => Operation::Do(Work::Zero {
                    offset,
                    len,
                    unmap: flags & FLAG_UNMAP != 0,
                }),
            },
            _ => io_error,
        }
    }
}

/// Where on the disk `len` bytes from `sector` on are; `None` unless all of them are there, in
/// whole blocks.
fn place(sector: u64, len: u64, disk: Geometry) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_BYTES)?;
    let end = offset.checked_add(len)?;
    let block = u64::from(disk.block);
    (end <= disk.len && len.is_multiple_of(block) && offset.is_multiple_of(block)).then_some(offset)
}

fn split_header(header: &[u8; HEADER_BYTES]) -> (u32, u32, u64) {
    let value = u128::from_le_bytes(*header);
    (value as u32, (value >> 32) as u32, (value >> 64) as u64)
}

fn read_header(ranges: &[Range], memory: &GuestMemoryMmap) -> Option<[u8; HEADER_BYTES]> {
    if let Some((addr, len)) = ranges.first()
        && *len as usize >= HEADER_BYTES
    {
        return objects::read(memory, *addr);
    }
    // Drivers may lay it out in any way (virtio 1.2, 2.7.4).
    let mut header = [0; HEADER_BYTES];
    let mut rest = header.as_mut_slice();
    for (addr, len) in ranges {
        let take = rest.len().min(*len as usize);
        let (part, after) = rest.split_at_mut_checked(take)?;
        // Where a range of which nothing is read lies is no matter: it may be empty, or data.
        if !part.is_empty() {
            memory.read_slice(part, *addr).ok()?;
        }
        rest = after;
    }
    rest.is_empty().then_some(header)
}

fn last_byte(ranges: &[Range]) -> Option<GuestAddress> {
    let (addr, len) = ranges.iter().rev().find(|(_, len)| *len > 0)?;
    Some(GuestAddress(
        addr.0.checked_add(u64::from(len.checked_sub(1)?))?,
    ))
}

fn drop_last_byte(ranges: &mut [Range]) {
    if let Some((_, len)) = ranges.iter_mut().rev().find(|(_, len)| *len > 0) {
        *len = len.saturating_sub(1);
    }
}

/// Appends to `to` what is left of `ranges` after their first `skip` bytes.
fn skip(ranges: &[Range], mut skip: u64, to: &mut Vec<Range>) {
    for (addr, len) in ranges {
        let cut = skip.min(u64::from(*len));
        skip = skip.saturating_sub(cut);
        let left = len.saturating_sub(cut as u32);
        if left > 0
            && let Some(addr) = addr.0.checked_add(cut)
        {
            to.push((GuestAddress(addr), left));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};

    const DISK: Geometry = Geometry {
        len: 8 * SECTOR_BYTES,
        read_only: false,
        discard: true,
        block: 512,
    };

    /// Lays `parts` out as a chain at 0x1000, with `header` at 0x100, and parses it.
    fn parse(
        kind: u32,
        sector: u64,
        parts: &[(u64, u32, bool)],
        disk: Geometry,
    ) -> Result<Request, Unanswerable> {
        parse_with(kind, sector, parts, disk, |_| {})
    }

    fn parse_with(
        kind: u32,
        sector: u64,
        parts: &[(u64, u32, bool)],
        disk: Geometry,
        prepare: impl FnOnce(&GuestMemoryMmap),
    ) -> Result<Request, Unanswerable> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20000)]).unwrap();
        memory.write_obj(kind, GuestAddress(0x100)).unwrap();
        memory.write_obj(sector, GuestAddress(0x108)).unwrap();
        for (i, (addr, len, writable)) in parts.iter().enumerate() {
            let next = u16::from(i + 1 < parts.len());
            let flags = next | u16::from(*writable) << 1;
            let desc = Descriptor::new(*addr, *len, flags, i as u16 + 1);
            memory
                .write_obj(
                    RawDescriptor::from(desc),
                    GuestAddress(0x1000 + 16 * i as u64),
                )
                .unwrap();
        }
        prepare(&memory);
        let mut chain = Chain::default();
        chain.read(&memory, 0x1000, 16, 0).unwrap();
        let mut request = Request::default();
        request.parse(&chain, &memory, disk).map(|()| request)
    }

    const HEADER: (u64, u32, bool) = (0x100, 16, false);
    const STATUS: (u64, u32, bool) = (0x200, 1, true);

    #[test]
    fn a_plain_read() {
        let r = parse(0, 2, &[HEADER, (0x4000, 1024, true), STATUS], DISK).unwrap();
        assert_eq!(r.operation, Operation::Do(Work::Read { offset: 1024 }));
        // The emptied status range stays as a range of length 0.
        assert_eq!(r.data[0], (GuestAddress(0x4000), 1024));
        assert_eq!((r.data_len, r.status), (1024, GuestAddress(0x200)));
    }

    #[test]
    fn a_write_in_odd_pieces() {
        let r = parse(
            1,
            0,
            &[
                (0x100, 7, false),
                (0x107, 9 + 500, false),
                (0x5000, 12, false),
                STATUS,
            ],
            DISK,
        )
        .unwrap();
        assert_eq!(
            r.operation,
            Operation::Do(Work::Write {
                offset: 0,
                durable: false
            })
        );
        assert_eq!(
            r.data,
            [(GuestAddress(0x110), 500), (GuestAddress(0x5000), 12)]
        );
    }

    #[test]
    fn data_that_is_not_in_ram_is_no_part_of_a_header_in_pieces() {
        let nowhere = 0xffff_0000;
        let pieces = [
            (nowhere, 0, false),
            (0x100, 7, false),
            (0x107, 9, false),
            (nowhere, 512, false),
            STATUS,
        ];
        let r = parse(1, 0, &pieces, DISK).unwrap();
        assert_eq!(r.data, [(GuestAddress(nowhere), 512)]);
        assert_eq!(r.status, GuestAddress(0x200));
    }

    #[test]
    fn status_may_share_a_descriptor_with_data() {
        let r = parse(0, 0, &[HEADER, (0x4000, 513, true)], DISK).unwrap();
        assert_eq!(r.data, [(GuestAddress(0x4000), 512)]);
        assert_eq!(r.status, GuestAddress(0x4200));
    }

    #[test]
    fn sectors_that_are_not_there_are_refused() {
        let refuse = Operation::Refuse(Status::IoError);
        for sector in [8, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1] {
            let r = parse(0, sector, &[HEADER, (0x4000, 512, true), STATUS], DISK).unwrap();
            assert_eq!(r.operation, refuse, "{sector:#x}");
        }
        let r = parse(0, 7, &[HEADER, (0x4000, 1024, true), STATUS], DISK).unwrap();
        assert_eq!(r.operation, refuse, "the second sector is past the end");
        let r = parse(0, 0, &[HEADER, (0x4000, 100, true), STATUS], DISK).unwrap();
        assert_eq!(r.operation, refuse, "not a whole sector");
    }

    #[test]
    fn a_read_only_disk_is_not_written() {
        let disk = Geometry {
            read_only: true,
            ..DISK
        };
        let r = parse(1, 0, &[HEADER, (0x4000, 512, false), STATUS], disk).unwrap();
        assert_eq!(r.operation, Operation::Refuse(Status::IoError));
    }

    #[test]
    fn ranges_to_discard_or_to_zero() {
        const DISCARD: u32 = 11;
        const ZERO: u32 = 13;
        let refuse = Operation::Refuse;
        let (offset, len) = (1024, 2048);
        let zero = |unmap| Operation::Do(Work::Zero { offset, len, unmap });
        let discard = Operation::Do(Work::Discard { offset, len });
        let read_only = Geometry {
            read_only: true,
            ..DISK
        };
        let not_offered = Geometry {
            discard: false,
            ..DISK
        };
        let blocks = Geometry {
            block: 4096,
            ..DISK
        };
        for (kind, sector, sectors, flags, len, disk, wanted) in [
            (DISCARD, 2u64, 4u32, 0u32, 16, DISK, discard),
            (ZERO, 2, 4, 0, 16, DISK, zero(false)),
            (ZERO, 2, 4, 1, 16, DISK, zero(true)),
            (DISCARD, 2, 4, 1, 16, DISK, refuse(Status::Unsupported)),
            (ZERO, 2, 4, 2, 16, DISK, refuse(Status::Unsupported)),
            (ZERO, 2, 4, 0, 15, DISK, refuse(Status::IoError)),
            (DISCARD, 2, 4, 0, 32, DISK, refuse(Status::IoError)),
            (DISCARD, 5, 4, 0, 16, DISK, refuse(Status::IoError)),
            (ZERO, u64::MAX, 1, 0, 16, DISK, refuse(Status::IoError)),
            (DISCARD, 0, u32::MAX, 0, 16, DISK, refuse(Status::IoError)),
            (DISCARD, 2, 4, 0, 16, read_only, refuse(Status::IoError)),
            (
                DISCARD,
                2,
                4,
                0,
                16,
                not_offered,
                refuse(Status::Unsupported),
            ),
            (ZERO, 2, 4, 0, 16, blocks, refuse(Status::IoError)),
        ] {
            let value = u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96;
            let memory_at = |memory: &GuestMemoryMmap| {
                memory.write_obj(value, GuestAddress(0x4000)).unwrap();
            };
            let r = parse_with(
                kind,
                0,
                &[HEADER, (0x4000, len, false), STATUS],
                disk,
                memory_at,
            )
            .unwrap();
            assert_eq!(
                r.operation, wanted,
                "{kind} {sector} {sectors} {flags} {len}"
            );
        }
    }

    #[test]
    fn unknown_types_are_unsupported() {
        let r = parse(77, 0, &[HEADER, STATUS], DISK).unwrap();
        assert_eq!(r.operation, Operation::Refuse(Status::Unsupported));
    }

    #[test]
    fn a_chain_without_room_for_an_answer_is_unanswerable() {
        assert!(parse(0, 0, &[HEADER], DISK).is_err());
        assert!(parse(0, 0, &[(0x100, 15, false), STATUS], DISK).is_err());
        assert!(parse(0, 0, &[HEADER, (0x200, 0, true)], DISK).is_err());
        assert!(parse(0, 0, &[(0xffff_0000, 16, false), STATUS], DISK).is_err());
        assert!(parse(0, 0, &[HEADER, (u64::MAX, 4, true)], DISK).is_err());
    }

    /// Numbers that are near the ends of what they can be, or of each other.
    fn near(bounds: Vec<u64>) -> impl proptest::strategy::Strategy<Value = u64> {
        use proptest::prelude::*;
        (proptest::sample::select(bounds), -3i64..4).prop_map(|(n, by)| n.wrapping_add_signed(by))
    }

    proptest::proptest! {
        /// Against arithmetic that cannot overflow.
        #[test]
        fn a_range_is_placed_if_and_only_if_it_is_on_the_disk_in_whole_blocks(
            sector in near(vec![0, 8, 1 << 53, 1 << 55, u64::MAX / 512, u64::MAX]),
            len in near(vec![0, 512, 4096, 8 * 512, 1 << 32, 1 << 63, u64::MAX]),
            disk_len in near(vec![0, 4096, 8 * 512, 1 << 63, u64::MAX]),
            block in proptest::sample::select(vec![512u32, 4096]),
        ) {
            let disk = Geometry { len: disk_len, block, ..DISK };
            let (from, bytes) = (u128::from(sector) * 512, u128::from(len));
            let block = u128::from(block);
            let there = from + bytes <= u128::from(disk_len) && from % block == 0 && bytes % block == 0;
            let wanted = there.then_some(from as u64);
            proptest::prop_assert_eq!(place(sector, len, disk), wanted);
        }

        #[test]
        fn what_is_accepted_lies_on_the_disk(
            kind in 0u32..10,
            sector in proptest::num::u64::ANY,
            small in 0u64..12,
            lens in proptest::collection::vec((0u64..0x30000, 0u32..3000, proptest::bool::ANY), 0..6),
        ) {
            let mut parts = vec![HEADER];
            parts.extend(lens.iter().filter(|p| !p.2));
            parts.extend(lens.iter().filter(|p| p.2));
            parts.push(STATUS);
            for sector in [sector, small] {
                let r = parse(kind, sector, &parts, DISK).unwrap();
                if let Operation::Do(Work::Read { offset } | Work::Write { offset, .. }) = r.operation {
                    proptest::prop_assert!(offset + r.data_len <= DISK.len);
                    proptest::prop_assert_eq!(r.data_len % SECTOR_BYTES, 0);
                }
            }
        }
    }
}
