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
//! flight; one that goes on does so where it was.

use std::sync::Arc;
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

/// Owns a ring between DRIVER_OK and reset, and the handler of its chains.
pub struct Worker {
    handler: Box<dyn Handler>,
    ring: Option<Ring>,
    chain: Chain,
    pub(super) spin: Spin,
    alone: bool,
    quiesced: bool,
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
            quiesced: false,
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
    }

    /// The driver has reset the device: waits for what is in flight, and forgets the ring. After it no
    /// memory of the guest is touched.
    pub fn stop(&mut self) {
        self.handler.stop();
        self.ring = None;
    }

    /// Takes no more chains; what is in flight ends in its own time.
    pub fn quiesce(&mut self) {
        self.quiesced = true;
    }

    /// Goes on. It has to be run afterwards, as a kick may have been heard in between.
    pub fn resume(&mut self) {
        self.quiesced = false;
    }

    /// Whether something is in flight.
    pub fn is_busy(&self) -> bool {
        self.ring.is_some() && self.handler.in_flight() > 0
    }

    /// How far the ring is, if there is one.
    pub fn progress(&self) -> Option<(u16, u16)> {
        self.ring.as_ref().map(Ring::progress)
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
                turn
            }
            Err(broken) => {
                self.complaints
                    .add(&format!("{broken}; the device needs a reset"));
                self.signal.broken();
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
                    if !self.quiesced && self.handler.room() == Room::Yes {
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
        if self.quiesced {
            return Ok(Stopped::Full);
        }
        loop {
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
