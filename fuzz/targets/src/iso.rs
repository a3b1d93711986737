//! ISO images: a small file system of folders, kernels and boot loaders' configurations, and damage anywhere in it.
//!
//! What is found has to lie in the file; reading it ends, whatever points at whatever.

use arbitrary::{Arbitrary, Unstructured};
use bantam::boot::Iso;
use bantam::error::Help;

use crate::world::{file_of, path_of};

const SECTOR: usize = 2048;
/// The first folder's sector; each folder has one, each file another.
const FIRST: usize = 20;

#[derive(Arbitrary, Debug)]
struct Input {
    layout: u8,
    names: Vec<Name>,
    /// What boot loaders are told.
    text: Vec<Line>,
    patches: Vec<(Place, Vec<u8>)>,
    sectors: u8,
}

#[derive(Arbitrary, Debug)]
struct Name {
    which: u8,
    /// Rock Ridge entries in place of the name's own.
    entries: Option<Vec<Entry>>,
    extent: Option<u32>,
    len: Option<u32>,
    flags: u8,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    kind: u8,
    len: Option<u8>,
    bytes: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Place {
    /// In the volume descriptor.
    Volume(u16),
    /// In a folder, or what it should be.
    Sector(u8, u16),
}

#[derive(Arbitrary, Debug)]
enum Line {
    Menu(u8, u8),
    Any(String),
}

/// Folders of a path, and the names of files in the last of them.
const LAYOUTS: [(&[&str], &[&str]); 6] = [
    (
        &["live"],
        &["vmlinuz", "initrd.img", "vmlinuz-6.1", "initrd.img-6.1"],
    ),
    (&["casper"], &["vmlinuz", "initrd", "initrd.lz"]),
    (&["boot", "grub"], &["grub.cfg", "loopback.cfg", "vmlinuz"]),
    (
        &["isolinux"],
        &["isolinux.cfg", "txt.cfg", "vmlinuz", "initrd.img"],
    ),
    (&["loader", "entries"], &["a.conf", "vmlinuz", "initrd.img"]),
    (
        &["arch", "boot", "x86_64"],
        &["vmlinuz-linux", "initramfs-linux.img"],
    ),
];

fn both32(value: u32) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

/// A directory record (ECMA-119, 9.1), with what Rock Ridge has behind its name.
fn record(name: &[u8], extent: u32, len: u32, flags: u8, behind: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend(both32(extent));
    bytes.extend(both32(len));
    bytes.extend([
        126,
        1,
        1,
        0,
        0,
        0,
        0,
        flags,
        0,
        0,
        1,
        0,
        0,
        1,
        name.len() as u8,
    ]);
    bytes.extend(name);
    if name.len() % 2 == 0 {
        bytes.push(0);
    }
    bytes.extend(behind);
    bytes.resize(bytes.len().next_multiple_of(2).min(254), 0);
    bytes[0] = bytes.len() as u8;
    bytes
}

/// Rock Ridge's own name of a file.
fn name_entry(name: &str) -> Vec<u8> {
    let mut entry = vec![b'N', b'M', 5 + name.len() as u8, 1, 0];
    entry.extend(name.bytes());
    entry
}

fn entries(entries: &[Entry]) -> Vec<u8> {
    const KINDS: [&[u8; 2]; 10] = [
        b"NM", b"CE", b"SP", b"PX", b"SL", b"CL", b"PL", b"RE", b"ST", b"ER",
    ];
    let mut bytes = Vec::new();
    for entry in entries.iter().take(8) {
        let content = &entry.bytes[..entry.bytes.len().min(40)];
        bytes.extend(KINDS[usize::from(entry.kind) % KINDS.len()]);
        bytes.extend([entry.len.unwrap_or(4 + content.len() as u8), 1]);
        bytes.extend(content);
    }
    bytes
}

fn text(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines.iter().take(50) {
        let words = [
            "menuentry 'a' {",
            "linux",
            "initrd",
            "kernel",
            "append",
            "label l",
            "}",
            "include",
            "configfile",
            "source",
            "default l",
            "title t",
            "options",
        ];
        let paths = [
            "/live/vmlinuz quiet",
            "vmlinuz",
            "/boot/grub/vmlinuz root=x",
            "initrd.img",
            "initrd=initrd.img a",
            "/isolinux/txt.cfg",
            "../x",
            "",
        ];
        match line {
            Line::Menu(word, path) => {
                let word = words[usize::from(*word) % words.len()];
                text += &format!("{word} {}\n", paths[usize::from(*path) % paths.len()]);
            }
            Line::Any(any) => text += &format!("{any}\n"),
        }
    }
    text
}

fn image(input: &Input) -> Vec<u8> {
    let (folders, files) = LAYOUTS[usize::from(input.layout) % LAYOUTS.len()];
    let first_file = FIRST + folders.len() + 1;
    let count = first_file + files.len() + 2;
    let mut bytes = vec![0; count * SECTOR];
    let mut put = |at: usize, content: &[u8]| {
        let room = bytes.len().saturating_sub(at).min(content.len());
        if room > 0 {
            bytes[at..at + room].copy_from_slice(&content[..room]);
        }
    };
    let volume = 16 * SECTOR;
    put(volume, b"\x01CD001\x01");
    put(volume + 40, b"LABEL                           ");
    put(volume + 80, &both32(count as u32));
    for at in [120, 124] {
        put(volume + at, &[1, 0, 0, 1]);
    }
    put(volume + 128, &[0, 8, 8, 0]);
    put(volume + 132, &both32(10));
    put(volume + 140, &18u32.to_le_bytes());
    put(volume + 148, &19u32.to_be_bytes());
    let root = record(&[0], FIRST as u32, SECTOR as u32, 2, &[]);
    put(volume + 156, &root[..34]);
    put(volume + 881, &[1]);
    put(volume + SECTOR, b"\xffCD001\x01");
    put(18 * SECTOR, &[1, 0, FIRST as u8, 0, 0, 0, 1, 0, 0, 0]);
    put(19 * SECTOR, &[1, 0, 0, 0, 0, FIRST as u8, 0, 1, 0, 0]);
    for depth in 0..=folders.len() {
        let here = FIRST + depth;
        let share: &[u8] = if depth == 0 {
            b"SP\x07\x01\xbe\xef\0ER\x12\x01\x0a\0\0\x01RRIP_1991A"
        } else {
            b""
        };
        let mut folder = record(&[0], here as u32, SECTOR as u32, 2, share);
        folder.extend(record(
            &[1],
            here.saturating_sub(1).max(FIRST) as u32,
            SECTOR as u32,
            2,
            &[],
        ));
        if let Some(name) = folders.get(depth) {
            let upper = name.to_uppercase();
            folder.extend(record(
                upper.as_bytes(),
                here as u32 + 1,
                SECTOR as u32,
                2,
                &name_entry(name),
            ));
        } else {
            for (number, name) in files.iter().enumerate() {
                let damage = input
                    .names
                    .iter()
                    .find(|damage| usize::from(damage.which) % files.len() == number);
                let behind = match damage.and_then(|damage| damage.entries.as_deref()) {
                    Some(other) => entries(other),
                    None => name_entry(name),
                };
                let extent = damage.and_then(|damage| damage.extent);
                let len = damage.and_then(|damage| damage.len);
                folder.extend(record(
                    format!("F{number}.;1").as_bytes(),
                    extent.unwrap_or((first_file + number) as u32),
                    len.unwrap_or(1000),
                    damage.map_or(0, |damage| damage.flags),
                    &behind,
                ));
            }
        }
        put(here * SECTOR, &folder[..folder.len().min(SECTOR)]);
    }
    let told = text(&input.text);
    for (number, name) in files.iter().enumerate() {
        let content = if name.ends_with(".cfg") || name.ends_with(".conf") {
            told.as_bytes()
        } else {
            &[7; 1000]
        };
        put(
            (first_file + number) * SECTOR,
            &content[..content.len().min(SECTOR)],
        );
    }
    for (place, content) in input.patches.iter().take(16) {
        let at = match place {
            Place::Volume(at) => volume + usize::from(*at) % (2 * SECTOR),
            Place::Sector(sector, at) => {
                (FIRST + usize::from(sector % 12)) * SECTOR + usize::from(*at) % SECTOR
            }
        };
        put(at, &content[..content.len().min(64)]);
    }
    if input.sectors > 16 && usize::from(input.sectors) < count {
        bytes.truncate(usize::from(input.sectors) * SECTOR);
    }
    bytes
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let bytes = image(&input);
    let file = file_of(&bytes);
    match Iso::open(&path_of(&file)) {
        Ok(iso) => {
            for found in [&iso.kernel, &iso.initrd] {
                let end = found.start().checked_add(found.len()).expect("no overflow");
                assert!(end <= bytes.len() as u64, "it is in the file");
                let read = found
                    .read(0, found.len() as usize)
                    .expect("all of it is there");
                assert_eq!(read, bytes[found.start() as usize..end as usize]);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty() && !error.help().is_empty()),
    }
    // Without damage it is found where Debian has it.
    let whole = input.names.is_empty() && input.patches.is_empty() && input.sectors <= 16;
    if whole && usize::from(input.layout) % LAYOUTS.len() < 2 {
        assert!(Iso::open(&path_of(&file)).is_ok(), "it is in order");
    }
}
