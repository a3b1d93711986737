//! The worker of a queue: turns, with their bounds, and spinning. What a device does with a chain is its
//! handler's affair.
//!
//! ```text
//!   avail ring ─▶ Chain ─▶ Handler::take ──▶ ... many at once ...
//!   used ring ◀── Answer ◀─ Handler::ended ◀─┘
//!        └─ one interrupt for all that has ended before the next wait
//! ```
//!
//! A worker that is quiesced takes nothing more out of its ring, but keeps it and answers what is in
//! flight; one that goes on does so where it was. Whoever wants that, or a stop, leaves a wish in its
//! [`Wishes`] and waits for no turn: a turn may be waiting for the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::chain::Chain;
use super::complaints::Complaints;
use super::device::{Handler, Room};
use super::ring::{Broken, Ring};
use super::signal::Signal;
use super::spin::{For, Spin};
use crate::board::Turn;

/// What a turn may count for before other queues, and a vCPU that wants to reset the device, get theirs.
pub const BATCH: usize = 256;

/// A wait that is spun through counts for so many chains: a turn is bounded in time as well.
pub(super) const SPIN_COST: usize = 16;

/// With more than this in flight nobody spins: while the worker sleeps, ends and requests gather, and
/// handling them together is worth as much as waking sooner, for less of the host's time.
const SPIN_IN_FLIGHT: usize = 3;

/// While somebody spins: what is waited for may need the processor, and would get it too late. A
/// thread of the handler's is let in all the time, one of the kernel's so often.
const YIELD_EVERY: Duration = Duration::from_micros(50);

/// Why a turn took no more.
enum Stopped {
    Empty,
    /// The handler has no room, or takes nothing now.
    Full,
    /// The turn has been long enough.
    Batch,
    Limited(Duration),
}

/// What others want of a worker, and how far it is: all that they may ask without its lock.
#[derive(Debug, Default)]
pub struct Wishes {
    quiesce: AtomicBool,
    stop: AtomicBool,
    /// As [`Wishes::progress`] gives it: both indices, and `HAS_RING` where there are any.
    progress: AtomicU64,
}

/// See [`Wishes`].
const HAS_RING: u64 = 1 << 32;

impl Wishes {
    /// It is to take no more chains, or may take them again. The worker looks before each chain.
    pub fn set_quiesce(&self, wanted: bool) {
        self.quiesce.store(wanted, Ordering::SeqCst);
    }

    /// It is to give its ring up, or has done so.
    pub fn set_stop(&self, wanted: bool) {
        self.stop.store(wanted, Ordering::SeqCst);
    }

    /// Whether it is to give its ring up.
    pub fn stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether nothing may be taken out of the ring.
    fn hold_back(&self) -> bool {
        self.quiesce.load(Ordering::SeqCst) || self.stop()
    }

    /// How far the ring was after the last turn, if there is one: its next avail and next used index.
    pub fn progress(&self) -> Option<(u16, u16)> {
        let progress = self.progress.load(Ordering::SeqCst);
        (progress & HAS_RING != 0).then_some(((progress >> 16) as u16, progress as u16))
    }

    fn set_progress(&self, progress: Option<(u16, u16)>) {
        let word = progress.map_or(0, |(avail, used)| {
            HAS_RING | u64::from(avail) << 16 | u64::from(used)
        });
        self.progress.store(word, Ordering::SeqCst);
    }
}

/// Owns a ring between DRIVER_OK and reset, and the handler of its chains.
pub struct Worker {
    handler: Box<dyn Handler>,
    ring: Option<Ring>,
    chain: Chain,
    pub(super) spin: Spin,
    alone: bool,
    wishes: Arc<Wishes>,
    signal: Arc<Signal>,
    complaints: Arc<Complaints>,
}

impl Worker {
    /// A worker without a ring. It spins when it expects to wait no longer than `poll`.
    pub fn new(
        handler: Box<dyn Handler>,
        poll: Duration,
        signal: Arc<Signal>,
        complaints: Arc<Complaints>,
    ) -> Self {
        Worker {
            handler,
            ring: None,
            chain: Chain::default(),
            spin: Spin::new(poll),
            alone: false,
            wishes: Arc::default(),
            signal,
            complaints,
        }
    }

    /// The driver is ready: works on `ring`, if it uses this queue at all.
    pub fn start(&mut self, ring: Option<Ring>, features: u64) {
        if self.ring.is_some() {
            self.stop();
        }
        if ring.is_some() {
            self.handler.start(features);
        }
        self.ring = ring;
        self.note_progress();
    }

    /// The driver has reset the device: waits for what is in flight, and forgets the ring. After it no
    /// memory of the guest is touched.
    pub fn stop(&mut self) {
        self.handler.stop();
        self.ring = None;
        self.note_progress();
    }

    /// What is wanted of it.
    pub fn wishes(&self) -> &Arc<Wishes> {
        &self.wishes
    }

    /// Whether something is in flight.
    pub fn is_busy(&self) -> bool {
        self.handler.in_flight() > 0
    }

    fn note_progress(&self) {
        let progress = self.ring.as_ref().map(Ring::progress);
        self.wishes.set_progress(progress);
    }

    /// Handles what is in the ring and what has ended, up to a batch, and interrupts the driver if
    /// it wants that. It may spin only if nobody else needs the thread: `alone`.
    pub fn run(&mut self, alone: bool) -> Turn {
        self.alone = alone;
        let Some(mut ring) = self.ring.take() else {
            return Turn::Idle;
        };
        match self.work(&mut ring) {
            Ok(turn) => {
                self.ring = Some(ring);
                self.note_progress();
                turn
            }
            Err(broken) => {
                self.complaints
                    .add(&format!("{broken}; the device needs a reset"));
                self.signal.broken();
                // Nobody will ask what has become of what is in flight.
                self.stop();
                Turn::Idle
            }
        }
    }

    fn work(&mut self, ring: &mut Ring) -> Result<Turn, Broken> {
        let mut budget = BATCH;
        if self.spin.is_wanted() && self.has_work(ring)? {
            self.spin.end(Instant::now());
        }
        let turn = loop {
            ring.disable_kicks()?;
            let stopped = self.take(ring, &mut budget)?;
            self.handler.commit();
            self.reap(ring, &mut budget)?;
            match stopped {
                Stopped::Batch => break Turn::More,
                _ if budget == 0 => break Turn::More,
                Stopped::Limited(wait) => {
                    if !self.handler.rearm() {
                        break Turn::Later(wait);
                    }
                }
                Stopped::Full => {
                    if !self.wishes.hold_back() && self.handler.room() == Room::Yes {
                        continue;
                    }
                    if !self.handler.rearm() {
                        break Turn::Idle;
                    }
                }
                // True when the driver has added something between our last look and now.
                Stopped::Empty => {
                    if self.spin.is_wanted() {
                        // What has ended is not to wait for what may come.
                        ring.interrupt()?;
                        if self.wait_a_little(ring, &mut budget)? {
                            continue;
                        }
                    }
                    if !ring.enable_kicks()? && !self.handler.rearm() {
                        break Turn::Idle;
                    }
                    self.spin.end(Instant::now());
                }
            }
        };
        ring.interrupt()?;
        Ok(turn)
    }

    /// Takes chains out of the ring, and hands them to the handler.
    fn take(&mut self, ring: &mut Ring, budget: &mut usize) -> Result<Stopped, Broken> {
        loop {
            if self.wishes.hold_back() {
                return Ok(Stopped::Full);
            }
            if *budget == 0 {
                return Ok(Stopped::Batch);
            }
            match self.handler.room() {
                Room::Yes => {}
                Room::No => return Ok(Stopped::Full),
                Room::Later(wait) => return Ok(Stopped::Limited(wait)),
            }
            let Some(head) = ring.next(&mut self.chain)? else {
                return Ok(Stopped::Empty);
            };
            let taken = self.handler.take(head, &self.chain, ring.memory())?;
            *budget = budget.saturating_sub(taken.cost.max(1));
            if let Some(written) = taken.written {
                ring.answer(head, written)?;
            }
        }
    }

    /// Answers what has ended.
    fn reap(&mut self, ring: &mut Ring, budget: &mut usize) -> Result<(), Broken> {
        while *budget > 0
            && let Some(answer) = self.handler.ended()?
        {
            *budget = budget.saturating_sub(1);
            ring.answer(answer.head, answer.written)?;
        }
        Ok(())
    }

    /// Looks at both ends for a moment if that is expected to help; true when there is something
    /// to do. The driver need not kick meanwhile, nor the handler's event fd be written.
    fn wait_a_little(&mut self, ring: &Ring, budget: &mut usize) -> Result<bool, Broken> {
        let in_flight = self.handler.in_flight();
        if in_flight > SPIN_IN_FLIGHT {
            return Ok(false);
        }
        let whom = match in_flight {
            0 => For::Driver,
            _ => For::Host,
        };
        let begin = Instant::now();
        if !self.spin.begin(begin, whom, self.alone) {
            return Ok(false);
        }
        *budget = budget.saturating_sub(SPIN_COST);
        let pause = match whom {
            For::Host if self.handler.has_threads() => Duration::ZERO,
            _ => YIELD_EVERY,
        };
        let mut yield_at = pause;
        loop {
            for _ in 0..16 {
                if self.has_work(ring)? {
                    self.spin.end(Instant::now());
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            let waited = begin.elapsed();
            if waited > self.spin.limit() {
                return Ok(false);
            }
            if waited > yield_at {
                std::thread::yield_now();
                yield_at = waited.saturating_add(pause);
            }
        }
    }

    /// Whether the driver has asked for something, or something has ended.
    fn has_work(&mut self, ring: &Ring) -> Result<bool, Broken> {
        Ok(ring.has_more()? || self.handler.ready())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}
