use super::*;
use vm_memory::Bytes;

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(
        GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 0x1000),
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x10000), 0x1000),
        ])
        .unwrap(),
    )
}

#[test]
fn ranges_outside_of_ram_are_refused_whole() {
    let mut buffers = IoBuffers::new(memory());
    assert!(!buffers.push(GuestAddress(0x1800), 0x1000));
    assert!(!buffers.push(GuestAddress(u64::MAX), 2));
    assert!(buffers.is_empty());
    assert!(buffers.segments.is_empty());
    assert!(
        buffers.push(GuestAddress(0x800), 0x1000),
        "two regions in a row"
    );
    assert_eq!(buffers.len(), 0x1000);
}

#[test]
fn short_transfers_are_continued_where_they_stopped() {
    let mut buffers = IoBuffers::new(memory());
    assert!(buffers.push(GuestAddress(0), 10));
    assert!(buffers.push(GuestAddress(0x10000), 10));
    let mut seen = Vec::new();
    buffers
        .drive(100, |segments, at| {
            let left: usize = segments.iter().map(|s| s.iov_len).sum();
            seen.push((at, left));
            left.min(7) as isize
        })
        .unwrap();
    assert_eq!(seen, [(100, 20), (107, 13), (114, 6)]);

    buffers.clear();
    assert!(buffers.push(GuestAddress(0), 10));
    buffers.advance(4);
    buffers
        .drive(100, |segments, at| {
            assert_eq!((at, segments[0].iov_len), (104, 6), "the rest alone");
            6
        })
        .unwrap();
}

#[test]
fn parts_are_the_bytes_in_order_wherever_they_are_cut() {
    let lens = [10u32, 5, 1, 20];
    for cuts in [
        vec![36],
        vec![10, 26],
        vec![3, 4, 20, 9],
        vec![15, 1, 19, 1],
    ] {
        let mut buffers = IoBuffers::new(memory());
        for (at, len) in lens.into_iter().enumerate() {
            assert!(buffers.push(GuestAddress(at as u64 * 0x100), len));
        }
        let bytes = |segments: &[libc::iovec]| -> Vec<usize> {
            let each = |s: &libc::iovec| (0..s.iov_len).map(|n| s.iov_base.addr() + n).collect();
            segments
                .iter()
                .flat_map(|s| -> Vec<usize> { each(s) })
                .collect()
        };
        let (all, mut seen) = (bytes(buffers.rest()), Vec::new());
        for cut in &cuts {
            let part = |part: &mut IoBuffers| {
                assert_eq!((part.len(), part.moved()), (*cut, 0));
                assert!(part.rest().iter().all(|s| s.iov_len > 0));
                seen.extend(bytes(part.rest()));
                part.drive(0, |segments, _| bytes(segments).len() as isize)
            };
            buffers.part(*cut, part).unwrap();
        }
        assert_eq!(seen, all, "{cuts:?}");
        assert_eq!((buffers.len(), buffers.moved()), (36, 36));
        assert!(buffers.rest().is_empty());
    }
}

/// A file that is a vector, and takes nothing but whole blocks of 512 bytes at addresses like that.
fn direct(file: &mut [u8], write: bool, most: usize) -> impl FnMut(&[libc::iovec], i64) -> isize {
    move |segments, at| {
        let [one] = segments else {
            panic!("{} segments", segments.len());
        };
        assert_eq!((one.iov_base.addr() | one.iov_len | at as usize) % 512, 0);
        let len = one.iov_len.min(most);
        let place = &mut file[at as usize..][..len];
        // SAFETY: what direct I/O does with a buffer of its own, which nobody else has.
        let bytes = unsafe { std::slice::from_raw_parts_mut(one.iov_base.cast::<u8>(), len) };
        match write {
            true => place.copy_from_slice(bytes),
            false => bytes.copy_from_slice(place),
        }
        len as isize
    }
}

#[test]
fn what_direct_io_cannot_use_goes_through_a_chunk_in_pieces() {
    const LEN: usize = 3 * CHUNK_BYTES + 1024;
    let regions = [(GuestAddress(0), LEN + 0x10000)];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
    let pool = BouncePool::new(1).unwrap();
    let text: Vec<u8> = (0..LEN).map(|n| (n % 251) as u8).collect();
    for most in [usize::MAX, 512, 4096 * 3] {
        for write in [true, false] {
            let (from, to) = (0x801u64, 0x804u64);
            let mut buffers = IoBuffers::new(memory.clone());
            assert!(buffers.push(GuestAddress(from), 3));
            assert!(buffers.push(GuestAddress(to), LEN as u32 - 3));
            let mut file = text.clone();
            match write {
                true => {
                    memory.write_slice(&text, GuestAddress(from)).unwrap();
                    file.fill(0);
                }
                false => memory
                    .write_slice(&vec![9; LEN + 8], GuestAddress(from))
                    .unwrap(),
            }
            buffers.align(512, write, Some(&pool)).unwrap();
            assert!(!pool.has_room(), "one request has it");
            let longest = buffers.rest().iter().map(|s| s.iov_len).max();
            assert_eq!(longest, Some(CHUNK_BYTES));
            buffers.drive(0, direct(&mut file, write, most)).unwrap();
            assert_eq!(buffers.moved(), LEN as u64);
            assert!(file == text, "written {write}, {most} at a time");
            let mut back = vec![0; LEN + 1];
            memory.read_slice(&mut back, GuestAddress(from)).unwrap();
            assert!(back[..LEN] == text, "written {write}, {most} at a time");
            assert!(write || back[LEN] == 9, "no more than was asked for");
            buffers.clear();
            assert!(pool.has_room(), "the next one can have it");
        }
    }
}

#[test]
fn parts_of_a_request_go_through_a_chunk_as_well() {
    const LEN: usize = CHUNK_BYTES + 4096;
    let regions = [(GuestAddress(0), LEN + 0x10000)];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
    let pool = BouncePool::new(1).unwrap();
    let text: Vec<u8> = (0..LEN).map(|n| (n % 253) as u8).collect();
    for write in [true, false] {
        memory.write_slice(&text, GuestAddress(0x1001)).unwrap();
        let mut file = text.clone();
        match write {
            true => file.fill(0),
            false => memory
                .write_slice(&vec![0; LEN], GuestAddress(0x1001))
                .unwrap(),
        }
        let mut buffers = IoBuffers::new(memory.clone());
        assert!(buffers.push(GuestAddress(0x1001), 100));
        assert!(buffers.push(GuestAddress(0x1065), LEN as u32 - 100));
        buffers.align(512, write, Some(&pool)).unwrap();
        let mut at = 0;
        for len in [512, 4096, CHUNK_BYTES as u64 - 4096, 4096 - 512] {
            let from = at as u64;
            buffers
                .part(len, |part| {
                    part.drive(from, direct(&mut file, write, usize::MAX))
                })
                .unwrap();
            at += len as usize;
        }
        assert_eq!((at, buffers.moved()), (LEN, LEN as u64));
        assert!(buffers.rest().is_empty());
        let mut back = vec![0; LEN];
        memory.read_slice(&mut back, GuestAddress(0x1001)).unwrap();
        assert!(file == text && back == text, "written {write}");
    }
}

#[test]
fn without_a_chunk_there_is_an_error_and_with_good_addresses_none_is_needed() {
    let memory = memory();
    let pool = BouncePool::new(1).unwrap();
    let odd = || {
        let mut buffers = IoBuffers::new(memory.clone());
        assert!(buffers.push(GuestAddress(0x801), 512));
        buffers
    };
    let (mut first, mut second) = (odd(), odd());
    first.align(512, true, Some(&pool)).unwrap();
    assert!(second.align(512, true, Some(&pool)).is_err());
    assert!(odd().align(512, true, None).is_err());
    odd().align(1, true, None).unwrap();
    let mut good = IoBuffers::new(memory.clone());
    assert!(good.push(GuestAddress(0x800), 512));
    good.align(512, true, Some(&pool)).unwrap();
    assert!(good.bounce.is_none(), "already as it should be");
    drop(first);
    second.align(512, true, Some(&pool)).unwrap();
}

#[test]
fn a_list_that_was_long_does_not_stay_so() {
    let mut buffers = IoBuffers::new(memory());
    for count in [1280, 5, 33, 1280] {
        buffers.reserve(count);
        for _ in 0..count {
            assert!(buffers.push(GuestAddress(0), 1));
        }
        assert!(buffers.segments.capacity() <= count.max(KEPT_SEGMENTS));
        buffers.clear();
        assert!(buffers.segments.capacity() <= KEPT_SEGMENTS);
    }
}

#[test]
fn an_end_of_file_is_an_error_and_not_a_loop() {
    let mut buffers = IoBuffers::new(memory());
    assert!(buffers.push(GuestAddress(0), 10));
    let error = buffers.drive(0, |_, _| 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

/// Every byte of `segments`, by its address.
fn addresses(segments: &[libc::iovec]) -> Vec<usize> {
    let bytes = |s: &libc::iovec| (0..s.iov_len).map(|n| s.iov_base.addr() + n).collect();
    segments
        .iter()
        .flat_map(|s| -> Vec<usize> { bytes(s) })
        .collect()
}

proptest::proptest! {
    /// Any ranges, some of them in two regions; any cuts, and transfers that stop anywhere.
    #[test]
    fn each_byte_moves_once_and_in_its_place(
        ranges in proptest::collection::vec((0u64..0x1f00, 0u32..90), 1..8),
        mut cuts in proptest::collection::vec(0u64..60, 0..12),
        stops in proptest::collection::vec(1usize..50, 1..6),
    ) {
        let mut buffers = IoBuffers::new(memory());
        for (at, len) in ranges {
            proptest::prop_assert!(buffers.push(GuestAddress(at), len));
        }
        let all = addresses(buffers.rest());
        proptest::prop_assert_eq!(all.len() as u64, buffers.len());
        let (mut left, mut seen, mut stops) = (buffers.len(), Vec::<usize>::new(), stops.into_iter().cycle());
        cuts.push(u64::MAX);
        for cut in cuts {
            let len = cut.min(left);
            left -= len;
            let done = buffers.part(len, |part| {
                let wanted = part.len();
                let moved = part.drive(1 << 40, |segments, at| {
                    let bytes = addresses(segments);
                    assert_eq!(at as u64 - (1 << 40) + bytes.len() as u64, wanted);
                    let some = bytes.len().min(stops.next().unwrap());
                    seen.extend(&bytes[..some]);
                    some as isize
                });
                moved.map(|()| assert_eq!(part.moved(), wanted))
            });
            proptest::prop_assert!(done.is_ok());
        }
        proptest::prop_assert_eq!(seen, all);
        proptest::prop_assert_eq!(buffers.moved(), buffers.len());
    }
}
