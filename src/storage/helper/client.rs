//! The VMM's side: an image whose format a helper reads.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::desk::{Desk, Moment};
use super::link::{Helper, nonsense};
use super::places::Places;
use super::process;
use super::serve;
use super::shared::{ASKED, Ask, DATA, FREE, NO_QUEUE, QUEUES, SLOTS, Shared, Slot};
use super::words::{Said, Socket, Told};
use crate::limits;
use crate::memory::IoBuffers;
use crate::sandbox::{self, Role};
use crate::storage::access::Access;
use crate::storage::error::OpenError;
use crate::storage::image::{Direct, Errand, Helped, Image, SECTOR_BYTES, Work};
use crate::storage::qcow2::Spot;
use crate::storage::qcow2::backing::BackingFiles;
use crate::storage::raw::Raw;
use crate::sync::lock;

/// How often somebody who waits looks whether the helper is still there.
const LOOK: Duration = Duration::from_millis(200);

/// See the [module](self).
pub struct Client {
    helper: Arc<Helper>,
    /// The image's file and those below it.
    files: Vec<Arc<Raw>>,
    len: u64,
    /// The length of the image's file, if it is a block device, which does not grow.
    device_len: Option<u64>,
    desk: Mutex<Desk>,
    /// A blocking caller may be able to begin.
    turn: Condvar,
    watched: AtomicBool,
}

impl Client {
    /// Starts a helper called `name` for the image in `file`, which was opened from `path` and is locked by `locked`,
    /// and has it open the image.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        file: File,
        locked: &File,
        path: &Path,
        access: Access,
        name: &str,
    ) -> Result<Self, OpenError> {
        let life = |file: &File, socket: &Socket, shared| serve::live(file, access, socket, shared);
        Client::with(file, locked, path, access, (name, life))
    }

    /// The same with a helper of this name that lives this life.
    fn with(
        file: File,
        locked: &File,
        path: &Path,
        access: Access,
        (name, life): (&str, impl FnOnce(&File, &Socket, Arc<Shared>)),
    ) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Helper {
            path: path.into(),
            source,
        };
        let mut files = BackingFiles::of(&file, path, access);
        let direct = |source| OpenError::Direct {
            path: path.into(),
            source,
        };
        let raw = Raw::new(file.try_clone().map_err(failed)?, 0, access.cache).map_err(direct)?;
        let mut raws = vec![Arc::new(raw)];
        let is_device = file
            .metadata()
            .is_ok_and(|m| m.file_type().is_block_device());
        let device_len = match is_device {
            true => Some((&file).seek(SeekFrom::End(0)).map_err(failed)?),
            false => None,
        };
        let shared = Arc::new(Shared::new().map_err(failed)?);
        let (ours, theirs) = Socket::pair().map_err(failed)?;
        let keep = [file.as_raw_fd(), locked.as_raw_fd(), theirs.as_raw_fd()];
        let theirs_too = shared.clone();
        let child = process::start(name, &keep, || life(&file, &theirs, theirs_too));
        let child = child.map_err(failed)?;
        drop(theirs);
        let helper = Helper {
            shared,
            child,
            socket: Mutex::new(Some(ours)),
            path: path.into(),
            ending: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            events: Mutex::default(),
        };
        let (len, cluster, slots) = helper.opened(&mut files, |below| {
            let len = (&below).seek(SeekFrom::End(0)).map_err(failed)?;
            let raw = Raw::new(below, len, access.cache).map_err(direct)?;
            raws.push(Arc::new(raw));
            Ok(())
        })?;
        helper.is_quick().map_err(failed)?;
        let good = len > 0
            && len.is_multiple_of(SECTOR_BYTES)
            && i64::try_from(len).is_ok()
            && (1..=SLOTS).contains(&slots);
        let places = Places::new(len, cluster).filter(|_| good);
        let places = places.ok_or_else(|| failed(nonsense()))?;
        Ok(Client {
            desk: Mutex::new(Desk::new(places, slots)),
            helper: Arc::new(helper),
            files: raws,
            len,
            device_len,
            turn: Condvar::new(),
            watched: AtomicBool::new(false),
        })
    }

    /// The number of the helper's process.
    pub fn pid(&self) -> u32 {
        self.helper.child.pid()
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        lock(&self.desk)
    }

    /// How long the files are now, of which only the first can grow.
    fn lens(&self) -> Vec<u64> {
        let mut lens: Vec<u64> = self.files.iter().map(|file| file.len()).collect();
        if let (Some(first), Some(file)) = (lens.first_mut(), self.files.first()) {
            let file = file.raw_file();
            let len = || file.and_then(|file| file.metadata().ok()).map(|m| m.len());
            *first = self.device_len.or_else(len).unwrap_or(0);
        }
        lens
    }

    /// Wakes who waits for what has just been given back.
    fn call(&self, queues: u64) {
        self.turn.notify_all();
        self.helper.ring(queues);
    }

    fn slot(&self, errand: &Errand) -> Option<(usize, &Slot)> {
        let number = errand.slot?;
        Some((number, self.helper.shared.slot(number)?))
    }

    /// Puts the next part of `work` into a slot, and wakes its thread.
    fn hand_in(&self, work: Work, buffers: &mut IoBuffers, errand: &mut Errand) {
        let Some((number, slot)) = self.slot(errand) else {
            return;
        };
        let left = buffers.len().saturating_sub(buffers.moved());
        let part = left.min(DATA as u64);
        let moved = buffers.moved();
        errand.part = part as usize;
        let (ask, offset, len) = match work {
            Work::Read { offset } => (Ask::Read, offset.saturating_add(moved), part),
            Work::Write { offset, durable } => {
                let ask = if durable {
                    Ask::WriteDurable
                } else {
                    Ask::Write
                };
                self.copy(number, buffers, errand.part, true);
                (ask, offset.saturating_add(moved), part)
            }
            Work::Flush => (Ask::Flush, 0, 0),
            Work::Discard { offset, len } => (Ask::Discard, offset, len),
            Work::Zero { offset, len, unmap } => {
                let ask = if unmap { Ask::ZeroUnmap } else { Ask::Zero };
                (ask, offset, len)
            }
        };
        slot.ask.store(ask as u32, Ordering::Relaxed);
        slot.offset.store(offset, Ordering::Relaxed);
        slot.len.store(len, Ordering::Relaxed);
        slot.queue.store(errand.queue, Ordering::Relaxed);
        slot.hand_over(ASKED, true);
    }

    /// Copies the next `len` bytes between guest memory and the data of a slot, which this side has.
    fn copy(&self, slot: usize, buffers: &mut IoBuffers, len: usize, out: bool) {
        let Some(data) = self.helper.shared.data(slot) else {
            return;
        };
        let mut done = 0usize;
        while done < len.min(DATA) {
            let Some(segment) = buffers.rest().first().copied() else {
                return;
            };
            let part = segment.iov_len.min(len.min(DATA).saturating_sub(done));
            // SAFETY: the segment is guest RAM that `buffers` keeps mapped, or a buffer of its own. The data is DATA bytes
            // of a mapping of ours that overlaps with neither. The guest and the helper may change them meanwhile; both
            // are only copied, and nobody here believes a byte of them.
            unsafe {
                let (ours, guest) = (data.add(done), segment.iov_base.cast::<u8>());
                match out {
                    true => std::ptr::copy_nonoverlapping(guest, ours, part),
                    false => std::ptr::copy_nonoverlapping(ours, guest, part),
                }
            }
            buffers.advance(part);
            done = done.saturating_add(part);
        }
    }

    /// Ends an errand: what was told is learnt, its slot is given back.
    fn close(&self, work: Work, errand: &mut Errand, good: bool) {
        let slot = self.slot(errand).map(|(_, slot)| slot);
        let told = || slot.into_iter().filter(|_| good).flat_map(Slot::told);
        let since = Moment::at(errand.since);
        let lens = match work {
            Work::Read { .. } | Work::Write { .. } => self.lens(),
            _ => Vec::new(),
        };
        let mut desk = self.desk();
        match (errand.change.take(), work) {
            (Some(change), _) => {
                desk.end_change(change, since, told(), &lens);
                // What is told of those that follow counts as the answer to a read would.
                desk.learn(since, told(), &lens);
            }
            (None, Work::Flush) if good => desk.flushed(since),
            (None, Work::Read { .. }) => desk.learn(since, told(), &lens),
            _ => {}
        }
        if let Some(slot) = slot {
            // Before anybody else can have it.
            slot.state.store(FREE, Ordering::Relaxed);
        }
        let queues = match errand.slot.take() {
            Some(number) => desk.end(number),
            None => 0,
        };
        drop(desk);
        self.call(queues);
    }

    /// Starts the thread that waits for the helper's end, once.
    fn watch(&self) {
        if self.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let helper = self.helper.clone();
        let thread = limits::spawn("image-watch".into(), move || {
            sandbox::enter(Role::ImageWatch);
            let how = helper.child.wait();
            helper.is_gone(&how);
        });
        if let Err(error) = thread {
            log::warn!(
                "disk {}: no thread to watch the process that reads it ({error}); if that dies, requests stay unanswered",
                self.helper.path.display()
            );
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The thread that watches has the rest.
        self.helper.let_go();
    }
}

impl Image for Client {
    fn len(&self) -> u64 {
        self.len
    }

    fn run(&self, work: Work, buffers: &mut IoBuffers) -> io::Result<()> {
        match self.direct(work, buffers) {
            None => {}
            Some(Direct::Done) => return Ok(()),
            Some(Direct::On {
                file,
                work: there,
                claim,
            }) => {
                let result = match self.files.get(file) {
                    Some(file) => file.run(there, buffers),
                    None => Err(nonsense()),
                };
                self.end_direct(claim);
                match result {
                    Err(error) if work.is_cut(&error) => {}
                    result => return result,
                }
            }
        }
        let mut errand = Errand::of(NO_QUEUE);
        loop {
            let turn = self.desk().turn;
            if self.ask(work, buffers, &mut errand) {
                break;
            }
            let desk = self.desk();
            if desk.turn == turn {
                let waited = self.turn.wait_timeout(desk, LOOK);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        }
        loop {
            if let Some(result) = self.answer(work, buffers, &mut errand) {
                return result;
            }
            self.wait(&errand);
        }
    }

    fn helped(self: Arc<Self>) -> Option<Arc<dyn Helped>> {
        Some(self)
    }
}

/// Makes zeros of what is left of `buffers`.
fn fill_with_zeros(buffers: &mut IoBuffers) {
    while let Some(segment) = buffers.rest().first().copied() {
        // SAFETY: the segment is guest RAM that `buffers` keeps mapped, or a buffer of its own; no reference is made.
        unsafe { std::ptr::write_bytes(segment.iov_base.cast::<u8>(), 0, segment.iov_len) };
        buffers.advance(segment.iov_len);
    }
}

impl Helped for Client {
    fn files(&self) -> Vec<Arc<dyn Image>> {
        self.files.iter().map(|file| file.clone() as _).collect()
    }

    fn add_queue(&self, event: &Arc<EventFd>) -> io::Result<u32> {
        self.watch();
        let mut events = lock(&self.helper.events);
        let free = events.iter().position(Option::is_none);
        let number = free.unwrap_or(events.len());
        let full = number >= QUEUES;
        let queue = u32::try_from(number).ok().filter(|_| !full);
        let queue = queue.ok_or(io::ErrorKind::QuotaExceeded)?;
        let ours = event.clone();
        let socket = lock(&self.helper.socket);
        let socket = socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        socket.send(&Said::Queue(queue), Some(event.as_raw_fd()))?;
        match socket.receive()? {
            Told::Added => {}
            _ => return Err(nonsense()),
        }
        match events.get_mut(number) {
            Some(place) => *place = Some(ours),
            None => events.push(Some(ours)),
        }
        Ok(queue)
    }

    fn remove_queue(&self, queue: u32) {
        if let Some(place) = lock(&self.helper.events).get_mut(queue as usize) {
            *place = None;
        }
    }

    fn direct(&self, work: Work, buffers: &mut IoBuffers) -> Option<Direct> {
        if self.helper.is_dead() {
            return None;
        }
        let (offset, write) = match work {
            Work::Read { offset } => (offset, false),
            Work::Write {
                offset,
                durable: false,
            } => (offset, true),
            Work::Flush => {
                return self.desk().is_clean().then_some(Direct::On {
                    file: 0,
                    work: Work::Flush,
                    claim: 0,
                });
            }
            _ => return None,
        };
        let (spot, claim) = self.desk().direct(write, offset, buffers.len())?;
        let Spot::At {
            file, offset: at, ..
        } = spot
        else {
            fill_with_zeros(buffers);
            self.end_direct(claim);
            return Some(Direct::Done);
        };
        let alignment = self.files.get(file).map_or(1, |file| file.alignment());
        let mask = u64::from(alignment).saturating_sub(1);
        let aligned =
            |segment: &libc::iovec| (segment.iov_base.addr() | segment.iov_len) as u64 & mask == 0;
        if mask != 0 && !(at & mask == 0 && buffers.rest().iter().all(aligned)) {
            self.end_direct(claim);
            return None;
        }
        let there = match write {
            false => Work::Read { offset: at },
            true => Work::Write {
                offset: at,
                durable: false,
            },
        };
        Some(Direct::On {
            file,
            work: there,
            claim,
        })
    }

    fn end_direct(&self, claim: u32) {
        let queues = self.desk().end_direct(claim);
        if queues != 0 {
            self.call(queues);
        }
    }

    fn ask(&self, work: Work, buffers: &mut IoBuffers, errand: &mut Errand) -> bool {
        if self.helper.is_dead() {
            return true;
        }
        let mut desk = self.desk();
        if errand.change.is_none() {
            errand.change = match work {
                Work::Read { .. } | Work::Flush => None,
                Work::Write { offset, .. } => Some(desk.announce(false, offset, buffers.len())),
                Work::Discard { offset, len } | Work::Zero { offset, len, .. } => {
                    Some(desk.announce(true, offset, len))
                }
            };
        }
        let Some(slot) = desk.begin(errand.change) else {
            desk.wait(errand.queue);
            return false;
        };
        errand.since = desk.moment().number();
        drop(desk);
        errand.slot = Some(slot);
        self.hand_in(work, buffers, errand);
        true
    }

    fn has_answer(&self, errand: &Errand) -> bool {
        let back = self.slot(errand).is_none_or(|(_, slot)| slot.is_back());
        back || self.helper.is_dead()
    }

    fn answer(
        &self,
        work: Work,
        buffers: &mut IoBuffers,
        errand: &mut Errand,
    ) -> Option<io::Result<()>> {
        let Some((number, slot)) = self.slot(errand).filter(|(_, slot)| slot.is_back()) else {
            if !self.helper.is_dead() {
                return None;
            }
            self.close(work, errand, false);
            return Some(Err(gone()));
        };
        let result = slot.outcome().unwrap_or_else(|| Err(nonsense()));
        if result.is_ok() && matches!(work, Work::Read { .. }) {
            self.copy(number, buffers, errand.part, false);
        }
        let moves = matches!(work, Work::Read { .. } | Work::Write { .. });
        if result.is_ok() && moves && !buffers.rest().is_empty() {
            self.hand_in(work, buffers, errand);
            return None;
        }
        self.close(work, errand, result.is_ok());
        Some(result)
    }

    fn wait(&self, errand: &Errand) {
        if let Some((_, slot)) = self.slot(errand) {
            slot.wait_while(ASKED, Some(LOOK));
        }
        if !self.watched.load(Ordering::Acquire)
            && let Some(how) = self.helper.child.look()
        {
            self.helper.is_gone(&how);
        }
    }

    fn forget(&self, errand: &mut Errand) {
        self.close(Work::Flush, errand, false);
    }

    fn arm(&self, queue: u32) {
        self.helper.shared.arm(queue);
    }

    fn disarm(&self, queue: u32) {
        self.helper.shared.disarm(queue);
    }
}

/// The error of all that is asked of a helper that is dead.
fn gone() -> io::Error {
    io::Error::other("the process that reads the image is gone")
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
