//! The memory that a VMM and its helper share, and how one wakes the other.
//!
//! ```text
//!   slot 0 │ state │ what, where │ result │ extents │      a page for each slot
//!   ...
//!   bells  │ one for each queue                     │      whether its event fd is to be written
//!   data 0 │ DATA bytes                             │      for each slot
//!   ...
//! ```
//!
//! Each slot has a thread of the helper's. The VMM fills a free slot in, sets its state to [`ASKED`] and wakes that
//! thread by a futex(2); the thread sets it to [`DONE`]. There is no list that both sides change, and nothing that
//! either of them waits for while it has the other's slot.
//!
//! It is a shared anonymous mapping, made before the fork: it has no descriptor, so nobody can make it shorter. All
//! numbers in it are atomics, as the other side can change them at any moment, whatever was agreed; each is read once.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::storage::qcow2::{Extent, Spot};

/// Slots, and so threads of the helper: requests that it works on at a time.
pub const SLOTS: usize = 16;
/// Data of one slot. A longer request is done in parts.
pub const DATA: usize = 256 << 10;
/// Extents in one answer.
pub const EXTENTS: usize = 32;
/// Queues of one disk, at most (`config::disk`).
pub const QUEUES: usize = 64;
/// A queue's number that stands for a thread that waits for the slot itself.
pub const NO_QUEUE: u32 = u32::MAX;

/// The slot's thread has nothing to do.
pub const FREE: u32 = 0;
/// The helper has it.
pub const ASKED: u32 = 1;
/// The helper has done it.
pub const DONE: u32 = 2;

/// What is asked of the helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Ask {
    /// Fill the data.
    Read = 1,
    /// Write the data.
    Write = 2,
    /// The same, and make it durable.
    WriteDurable = 3,
    /// Make all durable.
    Flush = 4,
    /// The content is not needed.
    Discard = 5,
    /// Zeros.
    Zero = 6,
    /// Zeros, and the space may go.
    ZeroUnmap = 7,
}

impl Ask {
    /// The one with this number.
    pub fn of(number: u32) -> Option<Ask> {
        [
            Ask::Read,
            Ask::Write,
            Ask::WriteDurable,
            Ask::Flush,
            Ask::Discard,
            Ask::Zero,
            Ask::ZeroUnmap,
        ]
        .into_iter()
        .find(|ask| *ask as u32 == number)
    }
}

/// The upper bits of a length say what there is: writable, zeros, and the number of the file.
const WRITABLE: u64 = 1 << 63;
const ZERO: u64 = 1 << 62;
const FILE_SHIFT: u32 = 56;
const FILES: u64 = 0xf;
const LEN: u64 = (1 << FILE_SHIFT) - 1;

/// A slot, as it lies in memory.
#[repr(C, align(4096))]
pub struct Slot {
    /// The futex.
    pub state: AtomicU32,
    /// [`Ask`].
    pub ask: AtomicU32,
    /// First byte of the disk.
    pub offset: AtomicU64,
    /// Bytes.
    pub len: AtomicU64,
    /// Whose bell is rung.
    pub queue: AtomicU32,
    /// 0, or the number of an error.
    pub result: AtomicI32,
    /// How many of the extents count.
    count: AtomicU32,
    extents: [[AtomicU64; 3]; EXTENTS],
}

/// A queue wants its event fd to be written at the next end.
#[repr(C, align(64))]
pub struct Bell(AtomicU32);

#[repr(C, align(4096))]
struct Layout {
    slots: [Slot; SLOTS],
    bells: [Bell; QUEUES],
    data: Data,
}

#[repr(C, align(4096))]
struct Data([u8; SLOTS * DATA]);

/// The mapping. Both processes have it after the fork.
#[derive(Debug)]
pub struct Shared(NonNull<Layout>);

// SAFETY: all that is reached through a reference are atomics; the data is reached by raw pointers, whose users say
// who else has the slot.
unsafe impl Send for Shared {}
// SAFETY: the same.
unsafe impl Sync for Shared {}

impl Shared {
    /// A new one: every slot free.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Layout>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Shared(at))
    }

    fn layout(&self) -> *const Layout {
        self.0.as_ptr()
    }

    /// A slot.
    pub fn slot(&self, number: usize) -> Option<&Slot> {
        // SAFETY: the mapping lives as long as `self`, its zeros are good atomics, and nobody has another kind of
        // reference to this part of it.
        let slots = unsafe { &(*self.layout()).slots };
        slots.get(number)
    }

    fn bell(&self, queue: u32) -> Option<&AtomicU32> {
        // SAFETY: as above.
        let bells = unsafe { &(*self.layout()).bells };
        bells.get(queue as usize).map(|bell| &bell.0)
    }

    /// The first of the [`DATA`] bytes of a slot. They are there as long as this mapping.
    pub fn data(&self, slot: usize) -> Option<*mut u8> {
        if slot >= SLOTS {
            return None;
        }
        // SAFETY: the offset is inside of the mapping; no reference is made.
        Some(unsafe {
            (&raw mut (*self.0.as_ptr()).data)
                .cast::<u8>()
                .add(slot.saturating_mul(DATA))
        })
    }

    /// VMM: has the event fd of `queue` written at the next end.
    pub fn arm(&self, queue: u32) {
        if let Some(bell) = self.bell(queue) {
            bell.store(1, Ordering::Relaxed);
        }
        // Whoever ends a request sets its state first and looks at the bell then; here it is the other way round.
        // One of the two sees the other.
        fence(Ordering::SeqCst);
    }

    /// VMM: looks by itself from now on.
    pub fn disarm(&self, queue: u32) {
        if let Some(bell) = self.bell(queue) {
            bell.store(0, Ordering::Relaxed);
        }
    }

    /// Helper: whether the event fd of `queue` is to be written, once.
    pub fn rings(&self, queue: u32) -> bool {
        fence(Ordering::SeqCst);
        let bell = self.bell(queue);
        bell.is_some_and(|bell| bell.swap(0, Ordering::Relaxed) == 1)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nobody can reach any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Layout>()) };
    }
}

impl Slot {
    /// Gives it to the other side.
    pub fn hand_over(&self, state: u32, wake: bool) {
        self.state.store(state, Ordering::Release);
        if wake {
            futex_wake(&self.state);
        }
    }

    /// Waits as long as the state is `state`, and no longer than `time`, if that is given.
    pub fn wait_while(&self, state: u32, time: Option<Duration>) {
        if self.state.load(Ordering::Acquire) == state {
            futex_wait(&self.state, state, time);
        }
    }

    /// Whether the helper has it no more.
    pub fn is_back(&self) -> bool {
        self.state.load(Ordering::Acquire) != ASKED
    }

    /// What has become of what was asked, once it is [back](Slot::is_back): `None` where the helper says nonsense.
    pub fn outcome(&self) -> Option<io::Result<()>> {
        if self.state.load(Ordering::Acquire) != DONE {
            return None;
        }
        match self.result.load(Ordering::Relaxed) {
            0 => Some(Ok(())),
            // What the kernel has for numbers of errors.
            errno @ 1..4096 => Some(Err(io::Error::from_raw_os_error(errno))),
            _ => None,
        }
    }

    /// Wakes whoever waits for it.
    pub fn wake(&self) {
        futex_wake(&self.state);
    }

    /// Helper: tells where bytes are.
    pub fn tell(&self, extents: &[Extent]) {
        for (place, extent) in self.extents.iter().zip(extents) {
            let [disk, at, len] = place;
            let (offset, bits) = match extent.spot {
                Spot::Zero => (0, ZERO),
                Spot::At {
                    file,
                    offset,
                    writable,
                } => {
                    let bit = if writable { WRITABLE } else { 0 };
                    (offset, bit | (file as u64 & FILES) << FILE_SHIFT)
                }
            };
            disk.store(extent.disk, Ordering::Relaxed);
            at.store(offset, Ordering::Relaxed);
            len.store((extent.len & LEN) | bits, Ordering::Relaxed);
        }
        let count = extents.len().min(EXTENTS);
        self.count.store(count as u32, Ordering::Relaxed);
    }

    /// VMM: what was told, whatever it is.
    pub fn told(&self) -> impl Iterator<Item = Extent> + '_ {
        let count = self.count.load(Ordering::Relaxed) as usize;
        self.extents.iter().take(count).map(|[disk, at, len]| {
            let len = len.load(Ordering::Relaxed);
            Extent {
                disk: disk.load(Ordering::Relaxed),
                len: len & LEN,
                spot: match len & ZERO {
                    0 => Spot::At {
                        file: (len >> FILE_SHIFT & FILES) as usize,
                        offset: at.load(Ordering::Relaxed),
                        writable: len & WRITABLE != 0,
                    },
                    _ => Spot::Zero,
                },
            }
        })
    }
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: wakes those who wait at this address, and touches no memory.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1);
    }
}

/// An end for any reason is as good: the caller looks at the word again.
fn futex_wait(word: &AtomicU32, value: u32, time: Option<Duration>) {
    let time = time.map(|time| libc::timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: time.subsec_nanos().into(),
    });
    let at = time
        .as_ref()
        .map_or(std::ptr::null(), |time| &raw const *time);
    // SAFETY: the word and the time live for the call, which reads both.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_goes_to_the_other_side_and_back() {
        let shared = Shared::new().unwrap();
        let slot = shared.slot(3).unwrap();
        let extent = Extent {
            disk: 1,
            len: 3,
            spot: Spot::At {
                file: 5,
                offset: u64::MAX,
                writable: true,
            },
        };
        let zeros = Extent {
            disk: 4,
            len: LEN,
            spot: Spot::Zero,
        };
        assert!(shared.slot(SLOTS).is_none() && shared.data(SLOTS).is_none());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while slot.state.load(Ordering::Acquire) != ASKED {
                    slot.wait_while(FREE, None);
                }
                slot.tell(&[extent, zeros]);
                slot.hand_over(DONE, true);
            });
            slot.hand_over(ASKED, true);
            while !slot.is_back() {
                slot.wait_while(ASKED, Some(Duration::from_secs(1)));
            }
        });
        let told: Vec<_> = slot.told().collect();
        assert_eq!(told, [extent, zeros]);
        // A helper may count as it likes.
        slot.count.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(slot.told().count(), EXTENTS);
    }

    #[test]
    fn a_bell_rings_once_for_each_time_it_is_armed() {
        let shared = Shared::new().unwrap();
        assert!(!shared.rings(1));
        shared.arm(1);
        assert!(shared.rings(1) && !shared.rings(1));
        shared.arm(1);
        shared.disarm(1);
        assert!(!shared.rings(1));
        shared.arm(NO_QUEUE);
        assert!(!shared.rings(NO_QUEUE), "there is no such bell");
    }
}
