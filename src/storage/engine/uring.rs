//! io_uring: requests go to the kernel straight from and into guest pages.
//!
//! ```text
//!   submit ─▶ SQE ─┐                       (one file, registered once: no look-up per request)
//!   commit ─▶ io_uring_enter ─▶ kernel ─▶ CQE ─▶ complete
//!                                   └─ event fd, unless somebody is looking anyway
//! ```
//!
//! One kind of job does not go this way: a write into the page cache is made at once, by pwritev(2)
//! (`submit` says why).
//!
//! A ring can do these few requests, on this one file, and nothing else (`restrict`).
//!
//! A short transfer is continued where it stopped. No request allocates: jobs live in a table that
//! is indexed by their tokens.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

use super::Engine;
use crate::memory::buffers::MAX_SEGMENTS_PER_CALL;
use crate::storage::image::{Image, Job, Work};

/// The image's file in the ring's table of registered files, in which it is alone.
const FILE: Fixed = Fixed(0);

/// See the [module](self).
pub struct Uring {
    ring: IoUring,
    image: Arc<dyn Image>,
    jobs: Vec<Option<Job>>,
    in_flight: usize,
    /// Jobs that have ended without a request to the kernel.
    done: Vec<(Job, io::Result<()>)>,
    buffered: bool,
}

/// How a job goes on after the kernel has answered.
enum Next {
    Ended(io::Result<()>),
    Again,
    /// io_uring cannot do this on this file. A blocking call can, or knows another way.
    Blocking,
}

impl Uring {
    /// A ring for `slots` jobs on the raw file of `image`.
    ///
    /// # Errors
    /// When the host has no io_uring, or not for this process, or the image is no raw file.
    pub fn new(image: Arc<dyn Image>, slots: u16, event: &EventFd) -> io::Result<Self> {
        let file = image
            .raw_file()
            .ok_or_else(|| io::Error::other("only raw images can be used with io_uring"))?;
        let entries = u32::from(slots.max(1)).next_power_of_two();
        let (ring, restricted) = ring(entries)?;
        // A flag in the ring, of Linux 5.8, switches the event fd on and off. There is no way to ask for
        // that flag, so a feature is asked for that came a little later.
        if !ring.params().is_feature_submit_stable() || !ring.params().is_feature_ext_arg() {
            return Err(io::Error::other("it is older than Linux 5.11"));
        }
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        if restricted {
            restrict(&ring)?;
        }
        Ok(Uring {
            ring,
            buffered: image.alignment() == 1,
            image,
            jobs: (0..slots).map(|_| None).collect(),
            in_flight: 0,
            done: Vec::new(),
        })
    }

    /// Puts a job that is in the table into the submission queue.
    fn push(&mut self, token: u16) {
        let Some(Some(job)) = self.jobs.get_mut(usize::from(token)) else {
            return;
        };
        let entry = entry(job).user_data(token.into());
        loop {
            // SAFETY: the entry points to buffers of a job in the table. It stays there until the
            // kernel has answered, the buffers keep guest memory mapped, and so does `drain`,
            // which a worker calls before it drops the engine's jobs. The array of segments is
            // only read during io_uring_enter (IORING_FEAT_SUBMIT_STABLE).
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.in_flight = self.in_flight.saturating_add(1);
                return;
            }
            // There is an entry for each token, so this is not reached; if it were, room is made.
            self.commit();
        }
    }

    fn take(&mut self, token: u64) -> Option<Job> {
        let slot = usize::try_from(token).ok()?;
        self.jobs.get_mut(slot)?.take()
    }

    /// One answer of the kernel, made into an ended job or one that goes on.
    fn answered(&mut self) -> Option<(Job, io::Result<()>)> {
        loop {
            let (token, result) = {
                let answer = self.ring.completion().next()?;
                (answer.user_data(), answer.result())
            };
            self.in_flight = self.in_flight.saturating_sub(1);
            let Some(mut job) = self.take(token) else {
                continue;
            };
            match next(&mut job, result) {
                Next::Blocking => {
                    let result = self.image.run(job.work, &mut job.buffers);
                    return Some((job, result));
                }
                Next::Ended(result) => return Some((job, result)),
                Next::Again => {
                    let token = job.token;
                    self.put(job);
                    self.push(token);
                    self.commit();
                }
            }
        }
    }

    fn put(&mut self, job: Job) -> bool {
        match self.jobs.get_mut(usize::from(job.token)) {
            Some(slot) => {
                *slot = Some(job);
                true
            }
            None => false,
        }
    }
}

impl Engine for Uring {
    fn submit(&mut self, mut job: Job) {
        if let Work::Write { durable: false, .. } = job.work
            && self.buffered
        {
            // A copy into the page cache. Several file systems (ext4) do not do that without
            // blocking, so the kernel would hand it to a thread of its own, which costs more
            // than the copy.
            let result = self.image.run(job.work, &mut job.buffers);
            self.done.push((job, result));
            return;
        }
        let token = job.token;
        if self.put(job) {
            self.push(token);
        }
    }

    fn commit(&mut self) {
        // The worker looks at the completion queue by itself from now on, until it calls `rearm`.
        self.ring.completion().disable_eventfd();
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => wait_for_memory(&error),
            }
        }
    }

    fn complete(&mut self) -> Option<(Job, io::Result<()>)> {
        self.done.pop().or_else(|| self.answered())
    }

    fn ready(&mut self) -> bool {
        if !self.done.is_empty() || !self.ring.completion().is_empty() {
            return true;
        }
        if self.ring.submission().taskrun() {
            // The kernel posts completions on its way out of any system call, so any would do.
            let _ = self.ring.submitter().submit_and_wait(0);
        }
        !self.ring.completion().is_empty()
    }

    fn rearm(&mut self) -> bool {
        if !self.done.is_empty() {
            return true;
        }
        let queue = self.ring.completion();
        queue.enable_eventfd();
        drop(queue);
        // First the flag is set and then the queue is looked at. The kernel adds to the queue first and
        // then looks at the flag, so one of the two always sees the other.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        !self.ring.completion().is_empty()
    }

    fn drain(&mut self) {
        self.done.clear();
        while self.in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => wait_for_memory(&error),
            }
            // A short transfer is not continued: nobody wants the rest any more.
            loop {
                let answer = self.ring.completion().next();
                let Some(token) = answer.map(|answer| answer.user_data()) else {
                    break;
                };
                self.in_flight = self.in_flight.saturating_sub(1);
                drop(self.take(token));
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.drain();
    }
}

/// Waits a moment, because the kernel had no memory for a request. It will have some later.
fn wait_for_memory(error: &io::Error) {
    log::debug!("io_uring_enter: {error}");
    std::thread::sleep(std::time::Duration::from_millis(1));
}

/// A ring, and whether it waits to be restricted.
fn ring(entries: u32) -> io::Result<(IoUring, bool)> {
    let mut builder = IoUring::builder();
    // Completions wait for our next system call instead of interrupting, and a flag in the
    // ring says that they do: Linux 5.19.
    builder.setup_coop_taskrun().setup_taskrun_flag();
    // Linux 5.10.
    builder.setup_r_disabled();
    let older = |_| IoUring::builder().setup_r_disabled().build(entries);
    let ring = builder.build(entries).or_else(older);
    ring.map(|ring| (ring, true)).or_else(|error| {
        let ring = IoUring::new(entries).map_err(|_| error)?;
        log::debug!("the host's io_uring knows no restrictions");
        Ok((ring, false))
    })
}

/// Leaves the ring with the requests of a disk, on the file that is registered: what is written into its queue by
/// somebody else can open, send or execute nothing. Nothing more can be registered, neither.
fn restrict(ring: &IoUring) -> io::Result<()> {
    const REQUESTS: [u8; 6] = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    let registered = squeue::Flags::FIXED_FILE.bits();
    let mut restrictions: Vec<_> = REQUESTS.map(Restriction::sqe_op).into();
    restrictions.push(Restriction::sqe_flags_allowed(registered));
    restrictions.push(Restriction::sqe_flags_required(registered));
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}

fn entry(job: &mut Job) -> squeue::Entry {
    let left = job.buffers.rest();
    let count = left.len().min(MAX_SEGMENTS_PER_CALL) as u32;
    let moved = job.buffers.moved();
    match job.work {
        Work::Read { offset } => {
            let offset = offset.saturating_add(moved);
            match left {
                [one] => opcode::Read::new(FILE, one.iov_base.cast(), length(one))
                    .offset(offset)
                    .build(),
                _ => opcode::Readv::new(FILE, left.as_ptr(), count)
                    .offset(offset)
                    .build(),
            }
        }
        Work::Write { offset, durable } => {
            let offset = offset.saturating_add(moved);
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            match left {
                [one] => opcode::Write::new(FILE, one.iov_base.cast(), length(one))
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                _ => opcode::Writev::new(FILE, left.as_ptr(), count)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Work::Flush => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        Work::Discard { offset, len } => fallocate(offset, len, true),
        Work::Zero { offset, len, unmap } => fallocate(offset, len, unmap),
    }
}

fn length(segment: &libc::iovec) -> u32 {
    // A range of a descriptor, so below 2^32.
    u32::try_from(segment.iov_len).unwrap_or(u32::MAX)
}

fn fallocate(offset: u64, len: u64, punch: bool) -> squeue::Entry {
    let mode = if punch {
        libc::FALLOC_FL_PUNCH_HOLE
    } else {
        libc::FALLOC_FL_ZERO_RANGE
    };
    opcode::Fallocate::new(FILE, len)
        .offset(offset)
        .mode(mode | libc::FALLOC_FL_KEEP_SIZE)
        .build()
}

/// What the kernel's answer means for `job`.
fn next(job: &mut Job, result: i32) -> Next {
    let work = job.work;
    let failed = |code: i32| match code {
        libc::EINTR => Next::Again,
        // The kernel might answer the same without end, so it is not asked again.
        libc::EAGAIN => Next::Blocking,
        // The file system has no fallocate(2) of this kind.
        _ if matches!(work, Work::Discard { .. } | Work::Zero { .. }) => Next::Blocking,
        _ => Next::Ended(Err(io::Error::from_raw_os_error(code))),
    };
    let moved = match usize::try_from(result) {
        Ok(moved) => moved,
        Err(_) => return failed(result.saturating_neg()),
    };
    if !matches!(job.work, Work::Read { .. } | Work::Write { .. }) {
        return Next::Ended(Ok(()));
    }
    job.buffers.advance(moved);
    if job.buffers.rest().is_empty() {
        return Next::Ended(Ok(()));
    }
    match moved {
        0 => Next::Ended(Err(io::ErrorKind::UnexpectedEof.into())),
        _ => Next::Again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Access, open};
    use io_uring::types::Fd;

    /// What the kernel answers to a request that no disk makes.
    fn answer(uring: &mut Uring, entry: squeue::Entry) -> i32 {
        // SAFETY: the entries below point to what lives until the answer is there.
        unsafe { uring.ring.submission().push(&entry).unwrap() };
        uring.ring.submit_and_wait(1).unwrap();
        uring.ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_opens_nothing_and_reads_no_other_file() {
        if super::super::check_uring().is_err() {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let image = open::open(file.path(), Access::default()).unwrap().image;
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut uring = Uring::new(image, 8, &event).unwrap();
        let mut bytes = [1u8; 16];
        let at = bytes.as_mut_ptr();
        let own = opcode::Read::new(FILE, at, 16).build();
        assert_eq!(answer(&mut uring, own), 16);
        let other = opcode::Read::new(Fd(file.as_file().as_raw_fd()), at, 16).build();
        assert_eq!(answer(&mut uring, other), -libc::EACCES);
        let path = c"/etc/passwd";
        let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build();
        assert_eq!(answer(&mut uring, open), -libc::EACCES);
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build();
        assert_eq!(answer(&mut uring, socket), -libc::EACCES);
        let refused = uring.ring.submitter().unregister_files().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    }
}
