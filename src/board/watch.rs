//! Who is on an event loop, and what is watched for them from the start.
//!
//! A subscriber of `event-manager` may register its file descriptors by itself, but cannot say then that the host has
//! refused that (epoll_ctl(2): no memory, or the user's limit of watches). A machine whose signals or whose end nobody
//! hears would never end; so they are registered by the loop, and what the host refuses is an error of the start.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::rc::Rc;

use event_manager::MutEventSubscriber;

/// A subscriber whose file descriptors the loop registers.
pub trait Watcher: MutEventSubscriber {
    /// What is watched for input as long as the loop lasts, and the number by which the subscriber knows it again
    /// ([`Events::data`](event_manager::Events::data)).
    fn watched(&self) -> Vec<(RawFd, u32)>;
}

impl<T: Watcher + ?Sized> Watcher for Box<T> {
    fn watched(&self) -> Vec<(RawFd, u32)> {
        (**self).watched()
    }
}

impl<T: Watcher + ?Sized> Watcher for Rc<RefCell<T>> {
    fn watched(&self) -> Vec<(RawFd, u32)> {
        self.borrow().watched()
    }
}
