//! The helper's side: a process whose life is one image.
//!
//! Its first thread opens the image, and then waits for what comes over the socket: queues, and the end. A thread for
//! each slot does what is put into that.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

use super::shared::{ASKED, Ask, DATA, DONE, EXTENTS, NO_QUEUE, QUEUES, SLOTS, Shared, Slot};
use super::words::{Said, Socket, Told};
use crate::limits;
use crate::memory::ram;
use crate::sandbox::{self, Role};
use crate::storage::access::Access;
use crate::storage::error::OpenError;
use crate::storage::format::Format;
use crate::storage::qcow2::{Damaged, Extent, Qcow2, Refusal, Spot, Surroundings};
use crate::sync::lock;

/// An answer tells of so many clusters from its first one on, where the VMM may soon go to those that follow: of a read,
/// and of a write to what is there already. Behind a new cluster there is most often nothing yet.
const TOLD: u64 = 256;

/// What the threads of a helper share.
struct Room {
    shared: Arc<Shared>,
    image: OnceLock<Qcow2>,
    events: Mutex<Vec<Option<Arc<File>>>>,
}

/// The life of a helper with the image in `file`, to the end of `socket`. The process is to end when this returns.
pub fn live(file: &File, access: Access, socket: &Socket, shared: Arc<Shared>) {
    let room = Arc::new(Room {
        shared,
        image: OnceLock::new(),
        events: Mutex::new(vec![None; QUEUES]),
    });
    // Also because the allocator has questions to ask in files about heaps of threads of their own.
    ram::share_heap();
    let asked = file.try_clone().map_err(|error| damaged(&error));
    // All threads are made before anything is read, so that none has to be made after it. The host may allow fewer.
    let threads = (0..SLOTS).take_while(|number| {
        let (room, number) = (room.clone(), *number);
        let body = move || {
            sandbox::enter(Role::Image);
            room.work(number);
        };
        limits::spawn(format!("slot{number}"), body).is_ok()
    });
    let slots = threads.count();
    sandbox::enter(Role::Image);
    if slots == 0 {
        return;
    }
    let opened = asked.and_then(|file| Qcow2::open(file, access, &mut Around(socket)));
    let told = match opened {
        Ok(image) => {
            let image = room.image.get_or_init(|| image);
            Told::Opened {
                len: image.len(),
                cluster: image.cluster(),
                slots,
            }
        }
        Err(Refusal::Damaged(damaged)) => Told::Refused {
            depth: damaged.depth,
            reason: damaged.reason,
            help: damaged.help,
            errno: damaged.errno,
        },
        // The VMM itself has said so.
        Err(Refusal::Below(_)) => return,
    };
    if socket.send(&told, None).is_ok() {
        room.attend(socket);
    }
    if let Some(image) = room.image.get() {
        // What is under way ends first. There is nobody who could be told of an error.
        let _ = image.close();
    }
}

fn damaged(error: &io::Error) -> Refusal {
    Refusal::Damaged(Damaged {
        depth: 0,
        reason: error.to_string(),
        help: String::new(),
        errno: error.raw_os_error(),
    })
}

/// What is around an image that a helper reads: the VMM.
struct Around<'a>(&'a Socket);

impl Surroundings for Around<'_> {
    fn warn(&mut self, text: String) {
        let _ = self.0.send(&Told::Warning(text), None);
    }

    fn below(&mut self, name: &str, format: Option<&str>) -> Result<(File, Format), OpenError> {
        let told = Told::Backing {
            name: name.into(),
            format: format.map(str::to_owned),
        };
        // Nobody reads this: the VMM knows why.
        let refused = |source| OpenError::Helper {
            path: name.into(),
            source,
        };
        self.0.send(&told, None).map_err(refused)?;
        match self.0.receive_file().map_err(refused)? {
            (Said::Backing { qcow2 }, Some(file)) => {
                let format = if qcow2 { Format::Qcow2 } else { Format::Raw };
                Ok((file, format))
            }
            _ => Err(refused(io::ErrorKind::InvalidInput.into())),
        }
    }
}

impl Room {
    /// Takes queues, until the VMM lets go of the image.
    fn attend(&self, socket: &Socket) {
        while let Ok((said, file)) = socket.receive_file::<Said>() {
            if let (Said::Queue(number), Some(file)) = (said, file)
                && let Some(place) = lock(&self.events).get_mut(number as usize)
            {
                *place = Some(Arc::new(file));
            }
            if socket.send(&Told::Added, None).is_err() {
                return;
            }
        }
    }

    /// The body of the thread of a slot.
    fn work(&self, number: usize) {
        let (Some(slot), Some(data)) = (self.shared.slot(number), self.shared.data(number)) else {
            return;
        };
        loop {
            let state = slot.state.load(Ordering::Acquire);
            if state != ASKED {
                slot.wait_while(state, None);
                continue;
            }
            let len = (slot.len.load(Ordering::Relaxed)).min(DATA as u64) as usize;
            // SAFETY: DATA bytes of a mapping that stays as long as the process. The VMM leaves them alone while the slot
            // is with this thread.
            let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
            let result = match self.image.get() {
                Some(image) => execute(image, slot, data),
                None => Err(io::ErrorKind::InvalidInput.into()),
            };
            let errno = result.err().map_or(0, |error| errno(&error));
            slot.result.store(errno, Ordering::Relaxed);
            let queue = slot.queue.load(Ordering::Relaxed);
            slot.hand_over(DONE, queue == NO_QUEUE);
            if self.shared.rings(queue) {
                self.ring(queue);
            }
        }
    }

    fn ring(&self, queue: u32) {
        let events = lock(&self.events);
        let event = events.get(queue as usize).cloned().flatten();
        drop(events);
        if let Some(event) = event {
            // This fails only when it is readable already, which is as good.
            let _ = (&*event).write(&1u64.to_ne_bytes());
        }
    }
}

/// Does what is asked in `slot`, and tells there where the bytes are.
fn execute(image: &Qcow2, slot: &Slot, data: &mut [u8]) -> io::Result<()> {
    let ask = Ask::of(slot.ask.load(Ordering::Relaxed)).ok_or(io::ErrorKind::InvalidInput)?;
    let offset = slot.offset.load(Ordering::Relaxed);
    let len = slot.len.load(Ordering::Relaxed);
    slot.tell(&[]);
    match ask {
        Ask::Read => {
            image.read(data, offset)?;
            tell(image, slot, offset, TOLD.saturating_mul(image.cluster()));
        }
        Ask::Write | Ask::WriteDurable => {
            let first = image.extents(offset, offset.saturating_add(1), 1);
            let is_there = |extent: &Extent| matches!(extent.spot, Spot::At { writable: true, .. });
            let told = match first.first().is_some_and(is_there) {
                true => TOLD.saturating_mul(image.cluster()),
                false => data.len() as u64,
            };
            image.write(data, offset)?;
            if ask == Ask::WriteDurable {
                image.flush()?;
            }
            tell(image, slot, offset, told);
        }
        Ask::Flush => image.flush()?,
        Ask::Discard => image.discard(offset, len)?,
        Ask::Zero => image.zero(offset, len, false)?,
        Ask::ZeroUnmap => image.zero(offset, len, true)?,
    }
    Ok(())
}

/// Tells where the whole clusters are that have the `len` bytes from `offset` on.
fn tell(image: &Qcow2, slot: &Slot, offset: u64, len: u64) {
    let cluster = image.cluster().max(1);
    let from = offset.saturating_sub(offset % cluster);
    let end = offset.saturating_add(len).next_multiple_of(cluster);
    let extents = image.extents(from, end, EXTENTS);
    slot.tell(&extents);
}

/// The number of an error that is told to the VMM.
fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::QuotaExceeded => libc::EDQUOT,
        io::ErrorKind::FileTooLarge => libc::EFBIG,
        io::ErrorKind::OutOfMemory => libc::ENOMEM,
        io::ErrorKind::Unsupported => libc::EOPNOTSUPP,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        _ => libc::EIO,
    })
}
