//! What a guest asks of its machine.
//!
//! A device that can power the machine off or reset it does not do so: it tells a [`PowerSink`] that it
//! was given. What is to become of the machine is decided behind that
//! ([`machine::ending`](crate::machine::ending)).

use std::sync::Arc;

/// See [`PowerSink`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Soft off (S5).
    PowerOff,
    /// A reset, and the way by which it was asked for.
    Reset(&'static str),
    /// The guest's kernel reports that it has panicked.
    Panicked,
}

/// Who is told of a [`PowerRequest`].
pub type PowerSink = Arc<dyn Fn(PowerRequest) + Send + Sync>;
