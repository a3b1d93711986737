//! A queue that somebody has to work at: the machine's event loop, or a thread.
//!
//! The queue of a device does nothing by itself. Whoever watches its file descriptors gives it a turn
//! when one of them is readable ([`Pump::run`]). A turn has a bound, so that one queue does not keep the
//! others of its loop waiting; what it leaves behind says when the next one is due.

use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// What a turn of [`Pump::run`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do before a kick or an end.
    Idle,
    /// There is more to do: call again.
    More,
    /// A rate limit allows more after this time.
    Later(Duration),
}

/// Who gives a queue its turns.
///
/// The machine's event loop also hears signals, the time limit and the escape keys, so nothing may wait for
/// the host on it: a queue whose turns can do that is served by a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The machine's event loop. No turn waits for anything.
    MainLoop,
    /// A thread that serves all queues of the device.
    DeviceThread,
    /// A thread that serves this queue alone.
    OwnThread,
}

/// A queue of a device, as an event loop sees it.
pub trait Pump: Send + Sync {
    /// `vda.0`, for its thread and for messages.
    fn name(&self) -> &str;

    /// `vda`, the device that it belongs to.
    fn device(&self) -> &str;

    /// Becomes readable when the driver notifies the queue; KVM writes it by ioeventfd.
    fn kick(&self) -> &EventFd;

    /// Becomes readable when there is something to do without a kick, for a queue that knows such a case.
    fn event(&self) -> Option<&EventFd>;

    /// Whether a turn may end in [`Turn::Later`].
    fn is_limited(&self) -> bool;

    /// Who has to give it its turns.
    fn server(&self) -> Server;

    /// Works for a turn, which is bounded. It may spin only if nobody else needs the thread: `alone`.
    fn run(&self, alone: bool) -> Turn;

    /// The machine has ended: waits for what is in flight, and takes nothing more. Called by who has given the
    /// turns.
    fn stop(&self);
}
