//! Kernel images with any bytes changed: read or refused, and what is accepted fits.

mod common;

use bantam::boot::{Kernel, ProtocolChoice, inspect};
use common::{TempFile, guest};
use proptest::prelude::*;

const MEMORY: u64 = 64 << 20;

/// Opens, places and inspects; an accepted image lies in RAM, out of bytes that the file has. Returns by
/// how many protocols it can be entered.
fn try_image(bytes: &[u8]) -> usize {
    let file = TempFile::new("image", bytes);
    let Ok(kernel) = Kernel::open(file.path()) else {
        return 0;
    };
    let mut entries = 0;
    for choice in [
        ProtocolChoice::Auto,
        ProtocolChoice::Linux,
        ProtocolChoice::Pvh,
    ] {
        let Ok(placement) = kernel.place(choice, MEMORY) else {
            continue;
        };
        entries += 1;
        assert!(placement.end <= MEMORY);
        for segment in &placement.segments {
            assert!(segment.address >= 1 << 20);
            assert!(segment.address + segment.memory_len <= placement.end);
            assert!(segment.file_len <= segment.memory_len);
            assert!(segment.offset + segment.file_len <= bytes.len() as u64);
        }
    }
    let _ = inspect::inspect(&kernel).text();
    entries
}

fn changed(good: &[u8], changes: &[(usize, u8)], len: usize) -> Vec<u8> {
    let mut image = good.to_vec();
    for (at, value) in changes {
        let at = at % image.len();
        image[at] = *value;
    }
    image.truncate(len % (image.len() * 2));
    image
}

/// Without this, the tests below would pass if no image were ever accepted.
#[test]
fn images_that_are_not_changed_are_accepted() {
    let elf = std::fs::read(guest::elf()).unwrap();
    assert_eq!(
        try_image(&elf),
        3,
        "an ELF file with a PVH note, by each protocol"
    );
    assert_eq!(
        try_image(&guest::bzimage(true)),
        2,
        "a bzImage is never entered by PVH"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn elf(changes in prop::collection::vec((0usize..200, 0u8..), 0..6), len in 64usize..40_000) {
        let good = std::fs::read(guest::elf()).unwrap();
        try_image(&changed(&good, &changes, len));
    }

    #[test]
    fn bzimage(changes in prop::collection::vec((0x1f0usize..0x270, 0u8..), 0..6), len in 600usize..40_000) {
        try_image(&changed(&guest::bzimage(true), &changes, len));
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(0u8.., 1..2000)) {
        for magic in [&b"\x7fELF\x02\x01\x01"[..], b""] {
            let mut image = magic.to_vec();
            image.extend(&bytes);
            try_image(&image);
        }
    }
}
