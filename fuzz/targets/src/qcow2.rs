//! qcow2 images: read, written, discarded, zeroed, resized and opened again, against a plain array of bytes.
//!
//! An image is made as `bantam image create` makes it. As long as nothing in it is changed from outside, each read has
//! to bring what was written, and the image has to be in order at each opening. Once fields of its header or entries of
//! its tables are replaced, nobody knows what it holds: then it has to be refused or lived with.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use arbitrary::{Arbitrary, Unstructured};
use bantam::disk_image::info;
use bantam::disk_image::resize::{Length, resize};
use bantam::storage::qcow2::{Qcow2, Refusal, Spot, Surroundings, manage};
use bantam::storage::{Access, Format, OpenError, Work};

use crate::world::{file_of, path_of};

const SECTOR: u64 = 512;

#[derive(Arbitrary, Debug)]
struct Input {
    cluster: u8,
    sectors: u8,
    read_only: bool,
    first: Vec<Op>,
    patches: Vec<Patch>,
    then: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Read {
        at: Place,
        sectors: u8,
    },
    Write {
        at: Place,
        sectors: u8,
        fill: u8,
        durable: bool,
    },
    Zero {
        at: Place,
        sectors: u16,
        unmap: bool,
    },
    Discard {
        at: Place,
        sectors: u16,
    },
    Flush,
    Reopen,
    Resize {
        sectors: u16,
    },
}

#[derive(Arbitrary, Debug)]
enum Place {
    Sector(u16),
    End(u8),
}

#[derive(Arbitrary, Debug)]
enum Patch {
    /// A field of the header (docs/interop/qcow2.rst of QEMU).
    Field {
        field: u8,
        value: Value,
    },
    /// An entry of 64 bits in a cluster.
    Entry {
        cluster: u8,
        index: u8,
        value: Value,
    },
    Bytes {
        at: u16,
        bytes: Vec<u8>,
    },
    Cut {
        to: u16,
    },
}

#[derive(Arbitrary, Debug)]
enum Value {
    Any(u64),
    Small(u8),
    Bit(u8),
    /// A cluster, with the flags in the two highest bits and the lowest.
    Cluster {
        number: u8,
        flags: u8,
    },
}

/// Offset and length of the header's fields.
const FIELDS: [(u64, usize); 18] = [
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
];

impl Value {
    fn number(&self, cluster: u64) -> u64 {
        match self {
            Value::Any(value) => *value,
            Value::Small(value) => (*value).into(),
            Value::Bit(bit) => 1 << (bit % 64),
            Value::Cluster { number, flags } => {
                let flags = u64::from(*flags);
                (flags >> 1 & 3) << 62 | flags & 1 | u64::from(*number) * cluster
            }
        }
    }
}

thread_local! {
    /// Images as they are made, by the bytes of a cluster and of the disk.
    static MADE: RefCell<HashMap<(usize, u64), Vec<u8>>> = RefCell::default();
}

fn content(file: &File) -> Vec<u8> {
    let len = file.metadata().expect("memory").len();
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).expect("memory");
    bytes
}

fn made(cluster: usize, len: u64) -> File {
    MADE.with_borrow_mut(|made| {
        if made.len() > 64 {
            made.clear();
        }
        let bytes = made.entry((cluster, len)).or_insert_with(|| {
            let file = file_of(&[]);
            let new = manage::New {
                len,
                cluster,
                backing: None,
            };
            manage::make(file.try_clone().expect("a descriptor"), &new).expect("an image");
            content(&file)
        });
        file_of(bytes)
    })
}

/// An image of this target rests on no other.
struct Nothing;

impl Surroundings for Nothing {
    fn warn(&mut self, _text: String) {}

    fn below(&mut self, name: &str, _: Option<&str>) -> Result<(File, Format), OpenError> {
        Err(OpenError::Rests {
            path: "disk".into(),
            name: name.into(),
        })
    }
}

fn why(refusal: Refusal) -> String {
    match refusal {
        Refusal::Damaged(damaged) => damaged.reason,
        Refusal::Below(error) => error.to_string(),
    }
}

struct Bench {
    file: File,
    image: Option<Qcow2>,
    read_only: bool,
    /// What the disk holds, as long as that is known.
    model: Option<Vec<u8>>,
}

impl Bench {
    fn open(&mut self) {
        self.image = None;
        let access = Access {
            format: Format::Qcow2,
            read_only: self.read_only,
            ..Access::default()
        };
        let file = self.file.try_clone().expect("a descriptor");
        match Qcow2::open(file, access, &mut Nothing) {
            Ok(image) => self.image = Some(image),
            Err(refusal) => assert!(
                self.model.is_none(),
                "in order, it is refused: {}",
                why(refusal)
            ),
        }
        if let (Some(image), Some(model)) = (&self.image, &self.model) {
            assert_eq!(image.len(), model.len() as u64);
        }
    }

    /// Where the image says that bytes of the disk are, there they are: the VMM goes to the file itself by that.
    fn places(&self, offset: u64, len: u64) {
        let (Some(image), Some(model)) = (&self.image, &self.model) else {
            return;
        };
        for extent in image.extents(offset, offset + len, 32) {
            let end = (extent.disk + extent.len).min(offset + len);
            let wanted = &model[extent.disk as usize..end as usize];
            let mut bytes = vec![0; wanted.len()];
            if let Spot::At { file, offset, .. } = extent.spot {
                assert_eq!(file, 0, "it rests on nothing");
                self.file
                    .read_exact_at(&mut bytes, offset)
                    .expect("it is in the file");
            }
            assert!(bytes == wanted, "{extent:?} has other bytes");
        }
    }

    /// A range of the disk that a guest may ask for.
    fn range(&self, at: &Place, sectors: u64) -> Option<(u64, u64)> {
        let len = self.image.as_ref()?.len() / SECTOR;
        let at = match at {
            Place::Sector(sector) => u64::from(*sector).checked_rem(len)?,
            Place::End(by) => len.checked_sub(u64::from(*by) + 1)?,
        };
        let sectors = sectors.min(len - at);
        (sectors > 0).then_some((at * SECTOR, sectors * SECTOR))
    }

    /// Does the work, with `bytes` to be written or `len` to be read; what was read, if it was done.
    fn work(&mut self, work: Work, len: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        let image = self.image.as_ref()?;
        let mut data = vec![0; len as usize];
        let done = match work {
            Work::Read { offset } => image.read(&mut data, offset),
            Work::Write { offset, durable } => {
                image.write(bytes, offset).and_then(|()| match durable {
                    true => image.flush(),
                    false => Ok(()),
                })
            }
            Work::Flush => image.flush(),
            Work::Discard { offset, len } => image.discard(offset, len),
            Work::Zero { offset, len, unmap } => image.zero(offset, len, unmap),
        };
        if let Err(error) = &done {
            assert!(
                self.model.is_none(),
                "in order, it fails: {work:?}: {error}"
            );
        }
        done.is_ok().then_some(data)
    }

    fn act(&mut self, op: &Op) {
        match op {
            Op::Read { at, sectors } => {
                let Some((offset, len)) = self.range(at, (*sectors).into()) else {
                    return;
                };
                if let Some(bytes) = self.work(Work::Read { offset }, len, &[])
                    && let Some(model) = &self.model
                {
                    let wanted = &model[offset as usize..(offset + len) as usize];
                    assert!(bytes == wanted, "what is read was written: {op:?}");
                    self.places(offset, len);
                }
            }
            Op::Write {
                at,
                sectors,
                fill,
                durable,
            } if !self.read_only => {
                let Some((offset, len)) = self.range(at, (*sectors).into()) else {
                    return;
                };
                let bytes: Vec<u8> = (0..len)
                    .map(|i| fill.wrapping_add((i / 100) as u8))
                    .collect();
                let durable = *durable;
                if self
                    .work(Work::Write { offset, durable }, 0, &bytes)
                    .is_some()
                {
                    self.put(offset, &bytes);
                }
            }
            Op::Zero { at, sectors, unmap } if !self.read_only => {
                let Some((offset, len)) = self.range(at, (*sectors).into()) else {
                    return;
                };
                let unmap = *unmap;
                if self
                    .work(Work::Zero { offset, len, unmap }, 0, &[])
                    .is_some()
                {
                    self.put(offset, &vec![0; len as usize]);
                }
            }
            Op::Discard { at, sectors } if !self.read_only => {
                let Some((offset, len)) = self.range(at, (*sectors).into()) else {
                    return;
                };
                if self.work(Work::Discard { offset, len }, 0, &[]).is_some() {
                    self.discarded(offset, len);
                }
            }
            Op::Flush if !self.read_only => {
                self.work(Work::Flush, 0, &[]);
            }
            Op::Reopen => {
                if !self.read_only {
                    self.work(Work::Flush, 0, &[]);
                }
                self.open();
            }
            Op::Resize { sectors } if !self.read_only => self.resize(u64::from(sectors % 2048) + 1),
            _ => {}
        }
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(model) = &mut self.model {
            model[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// What was discarded is as it was, or zeros.
    fn discarded(&mut self, offset: u64, len: u64) {
        for offset in (offset..offset + len).step_by(SECTOR as usize) {
            let Some(bytes) = self.work(Work::Read { offset }, SECTOR, &[]) else {
                return;
            };
            let Some(model) = &self.model else { return };
            let before = &model[offset as usize..][..bytes.len()];
            assert!(bytes.iter().all(|byte| *byte == 0) || bytes == before);
            self.put(offset, &bytes);
        }
    }

    fn resize(&mut self, sectors: u64) {
        self.work(Work::Flush, 0, &[]);
        self.image = None;
        let len = sectors * SECTOR;
        let done = resize(
            &path_of(&self.file),
            Some(Format::Qcow2),
            Length::To(len),
            true,
            false,
        );
        match (&mut self.model, done) {
            (Some(_), Err(error)) => panic!("in order, it is not resized: {error}"),
            (Some(model), Ok(_)) => model.resize(len as usize, 0),
            (None, _) => {}
        }
        self.open();
    }

    fn patch(&mut self, patch: &Patch, cluster: u64) {
        self.model = None;
        // Nobody is known to read more than this of an image that claims to be longer.
        let write = |bytes: &[u8], at: u64| self.file.write_all_at(bytes, at).expect("memory");
        match patch {
            Patch::Field { field, value } => {
                let (at, len) = FIELDS[usize::from(*field) % FIELDS.len()];
                let bytes = value.number(cluster).to_be_bytes();
                write(&bytes[8 - len..], at);
            }
            Patch::Entry {
                cluster: number,
                index,
                value,
            } => {
                let at = u64::from(*number) * cluster + 8 * u64::from(*index);
                write(&value.number(cluster).to_be_bytes(), at);
            }
            Patch::Bytes { at, bytes } => write(&bytes[..bytes.len().min(64)], (*at).into()),
            Patch::Cut { to } => self.file.set_len((*to).into()).expect("memory"),
        }
    }
}

/// Does what `data` says, and gives the image if nobody has damaged it.
pub fn play(data: &[u8]) -> Option<File> {
    let input = Input::arbitrary_take_rest(Unstructured::new(data)).ok()?;
    let cluster = 512 << [0, 0, 1, 3, 7][usize::from(input.cluster) % 5];
    // Few lengths, as an image of each has to be made once.
    let sectors = [1, 7, 128, 129, 1000, 1024][usize::from(input.sectors) % 6];
    let mut bench = Bench {
        file: made(cluster, sectors * SECTOR),
        image: None,
        read_only: false,
        model: Some(vec![0; (sectors * SECTOR) as usize]),
    };
    bench.open();
    for op in input.first.iter().take(20) {
        bench.act(op);
    }
    bench.work(Work::Flush, 0, &[]);
    bench.image = None;
    for patch in input.patches.iter().take(8) {
        bench.patch(patch, cluster as u64);
    }
    bench.read_only = input.read_only;
    let told = info::info(&path_of(&bench.file), Some(Format::Qcow2));
    assert!(told.is_ok() || bench.model.is_none());
    bench.open();
    for op in input.then.iter().take(20) {
        bench.act(op);
    }
    bench.act(&Op::Reopen);
    // All of it, at last.
    for sector in (0..1024).step_by(64) {
        bench.act(&Op::Read {
            at: Place::Sector(sector),
            sectors: 64,
        });
    }
    bench.image = None;
    bench.model.is_some().then_some(bench.file)
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let _ = play(data);
}
