//! Any file as a kernel: recognized, read, placed, unpacked, loaded, described.
//!
//! What is accepted has to fit: every segment is in the file, in RAM above the first MiB, and apart from the others and
//! from the MMIO hole, the entry is in RAM, and an initrd is behind the kernel. What is said of the file may be shown on
//! a terminal. ELF files and bzImages are made out of parts as well, as a fuzzer that has to find a header of 64 bytes by
//! itself finds nothing behind it.

use arbitrary::{Arbitrary, Unstructured};
use bantam::arch::x86_64::layout;
use bantam::boot::{
    Initrd, Kernel, Placement, ProtocolChoice, Source, drivers, inspect, linux, pvh,
    recognize::Kind,
};
use bantam::error::{Help, escaped, escaped_lines};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::world::file_of;

/// Guest RAM for what is loaded.
const RAM: u64 = 8 << 20;

/// Decoders work for seconds on what is larger.
const MAX_FILE: usize = 1 << 18;

fn check_placement(kernel: &Kernel, placement: &Placement, memory: u64) {
    let mut last = layout::HIGH_RAM_START;
    for segment in &placement.segments {
        let file_end = segment
            .offset
            .checked_add(segment.file_len)
            .expect("no overflow");
        assert!(
            file_end <= kernel.source.len(),
            "{segment:?} is in the file"
        );
        assert!(segment.file_len <= segment.memory_len, "{segment:?}");
        assert!(segment.address >= last, "{segment:?} is above {last:#x}");
        last = segment
            .address
            .checked_add(segment.memory_len)
            .expect("no overflow");
        assert!(
            last <= placement.end.max(last) && last <= memory,
            "{segment:?} is in RAM"
        );
        let hole = segment.address < layout::MMIO_HOLE_END && last > layout::MMIO_HOLE_START;
        assert!(!hole, "{segment:?} is apart from the hole");
    }
    assert!(!placement.segments.is_empty());
    assert!(placement.cmdline_max <= layout::COMMAND_LINE_MAX.max(placement.cmdline_max));
}

/// Loads as a start does, if there is RAM for it.
fn load(kernel: &Kernel, placement: &Placement) {
    let range = [(GuestAddress(0), RAM as usize)];
    let memory = GuestMemoryMmap::from_ranges(&range).expect("guest RAM");
    for segment in &placement.segments {
        let source = &kernel.source;
        source
            .load(segment.offset, segment.file_len, &memory, segment.address)
            .expect("what was placed in RAM is loaded there");
    }
    let page = linux::ZeroPage {
        placement,
        cmdline_len: 5,
        initrd: None,
        memory: RAM,
    };
    linux::write_zero_page(&memory, page).expect("there is RAM");
    pvh::write_start_info(&memory, None, RAM).expect("there is RAM");
    linux::write_cmdline(&memory, "quiet").expect("there is RAM");
}

fn look_at(kernel: &Kernel) {
    let text = inspect::inspect(kernel).text();
    assert_eq!(
        escaped_lines(&text),
        text,
        "what is said of a file may be shown"
    );
    for choice in [
        ProtocolChoice::Auto,
        ProtocolChoice::Linux,
        ProtocolChoice::Pvh,
    ] {
        for memory in [2 << 20, RAM, 512 << 20, 5 << 30] {
            let placement = match kernel.place(choice, memory) {
                Ok(placement) => placement,
                Err(error) => {
                    let _ = (error.to_string(), error.help());
                    continue;
                }
            };
            check_placement(kernel, &placement, memory);
            let _ = drivers::built_in(kernel, &placement, None, &drivers::CONSOLE);
            let initrd = Source::of_file(file_of(&[7; 5000]), "initrd".into()).expect("a file");
            if let Ok(initrd) = Initrd::place(initrd, &placement, memory) {
                let end = initrd.address() + initrd.len();
                assert!(initrd.address() >= placement.end && end <= memory);
                assert!(end - 1 <= placement.initrd_limit);
                assert!(end <= layout::MMIO_HOLE_START);
            }
            if memory == RAM {
                load(kernel, &placement);
            }
        }
    }
}

fn open(bytes: &[u8], name: &str) {
    if bytes.is_empty() || bytes.len() > MAX_FILE {
        return;
    }
    let source = || Source::of_file(file_of(bytes), name.into()).expect("a file");
    if let Some(kind) = Kind::of(&source()) {
        let _ = kind.help_for_kernel(std::path::Path::new(name));
        let _ = kind.help_for_initrd(std::path::Path::new(name));
    }
    match Kernel::of_source(source()) {
        Ok(kernel) => {
            look_at(&kernel);
            let _ = kernel.is_lost_on_pvm();
            look_at(&kernel.unpacked(None));
        }
        Err(error) => {
            // It is escaped where it is shown.
            let text = escaped(&error);
            assert!(!text.is_empty() && !error.help().is_empty());
        }
    }
}

/// Any bytes.
pub fn run(data: &[u8]) {
    open(data, "kernel");
}

#[derive(Arbitrary, Debug)]
struct Elf {
    entry: u64,
    machine: Option<u16>,
    class: Option<u8>,
    headers: Vec<Segment>,
    notes: Vec<Note>,
    tail: Vec<u8>,
    cut: u16,
}

#[derive(Arbitrary, Debug)]
struct Segment {
    kind: u8,
    offset: Number,
    address: Number,
    file_len: Number,
    memory_len: Number,
    align: u8,
}

#[derive(Arbitrary, Debug)]
enum Number {
    Any(u64),
    /// A page of what a kernel has.
    Page(u8),
    Small(u8),
}

impl Number {
    fn value(&self, base: u64) -> u64 {
        match self {
            Number::Any(number) => *number,
            Number::Page(page) => base + 0x1000 * u64::from(*page),
            Number::Small(number) => (*number).into(),
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Note {
    name: u8,
    kind: u8,
    len: Option<(u32, u32)>,
    descriptor: Vec<u8>,
}

/// An ELF file made of parts.
pub fn run_elf(data: &[u8]) {
    let Ok(elf) = Elf::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let count = elf.headers.len().min(80) + 1;
    let notes_at = 64 + 56 * count as u64;
    let mut notes = Vec::new();
    for note in &elf.notes {
        let name = [&b"Xen\0"[..], b"Linux\0", b"GNU\0", b"", b"Xen"][usize::from(note.name) % 5];
        let (names, descs) = note
            .len
            .unwrap_or((name.len() as u32, note.descriptor.len() as u32));
        notes.extend(names.to_le_bytes());
        notes.extend(descs.to_le_bytes());
        notes.extend(u32::from(note.kind % 32).to_le_bytes());
        notes.extend(name);
        notes.resize(notes.len().next_multiple_of(4), 0);
        notes.extend(&note.descriptor);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
    let mut file = b"\x7fELF".to_vec();
    file.extend([elf.class.unwrap_or(2), 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([2, 0]);
    file.extend(elf.machine.unwrap_or(62).to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(elf.entry.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for number in [64u16, 56, count as u16, 0, 0, 0] {
        file.extend(number.to_le_bytes());
    }
    let mut header = |kind: u32, numbers: [u64; 6]| {
        file.extend(kind.to_le_bytes());
        file.extend(5u32.to_le_bytes());
        numbers
            .iter()
            .for_each(|number| file.extend(number.to_le_bytes()));
    };
    let len = notes.len() as u64;
    header(4, [notes_at, 0, 0, len, len, 4]);
    for segment in elf.headers.iter().take(count - 1) {
        let address = segment.address.value(0x10_0000);
        header(
            u32::from(segment.kind % 8),
            [
                segment.offset.value(0),
                address,
                address,
                segment.file_len.value(0),
                segment.memory_len.value(0),
                1 << (segment.align % 16),
            ],
        );
    }
    file.extend(notes);
    file.extend(&elf.tail);
    file.truncate(file.len() - usize::from(elf.cut) % 64 * usize::from(elf.cut & 1));
    open(&file, "vmlinux");
}

#[derive(Arbitrary, Debug)]
struct Bz {
    setup_sects: u8,
    version: u16,
    loadflags: u8,
    syssize: Option<u32>,
    code32: u32,
    relocatable: u8,
    xloadflags: u16,
    alignment: u32,
    kernel_version: u16,
    payload: Option<(u32, u32)>,
    pref_address: Number,
    init_size: u32,
    cmdline_size: u32,
    initrd_max: u32,
    compression: u8,
    packed: Vec<u8>,
    header_end: Option<u8>,
}

/// A bzImage made of parts, with a payload in the format of any decoder.
pub fn run_bzimage(data: &[u8]) {
    let Ok(bz) = Bz::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let magics = [
        &b"\x1f\x8b\x08\0\0\0\0\0\0\0"[..],
        b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd",
        b"\x02\x21\x4c\x18",
        b"BZh",
        b"\x5d\0\0",
        b"\x89LZO",
        b"\x7fELF",
        b"",
    ];
    let payload = [
        magics[usize::from(bz.compression) % magics.len()],
        &bz.packed,
    ]
    .concat();
    let sectors = bz.setup_sects % 8;
    let start = (usize::from(if sectors == 0 { 4 } else { sectors }) + 1) * 512;
    let mut file = vec![0; start];
    file.extend(&payload);
    file.resize(file.len().next_multiple_of(16), 0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[sectors]);
    put(
        0x1f4,
        &bz.syssize
            .unwrap_or(payload.len().div_ceil(16) as u32)
            .to_le_bytes(),
    );
    put(0x1fe, b"\x55\xaa");
    put(0x201, &[bz.header_end.unwrap_or(0x6a)]);
    put(0x202, b"HdrS");
    put(0x206, &(0x200 + bz.version % 0x11).to_le_bytes());
    put(0x20e, &bz.kernel_version.to_le_bytes());
    put(0x211, &[bz.loadflags | 1]);
    put(0x214, &bz.code32.to_le_bytes());
    put(0x22c, &bz.initrd_max.to_le_bytes());
    put(0x230, &bz.alignment.to_le_bytes());
    put(0x234, &[bz.relocatable & 1]);
    put(0x236, &bz.xloadflags.to_le_bytes());
    put(0x238, &bz.cmdline_size.to_le_bytes());
    let (offset, len) = bz.payload.unwrap_or((0, payload.len() as u32));
    put(0x248, &offset.to_le_bytes());
    put(0x24c, &len.to_le_bytes());
    put(0x258, &bz.pref_address.value(0x10_0000).to_le_bytes());
    put(0x260, &bz.init_size.to_le_bytes());
    open(&file, "vmlinuz");
}
