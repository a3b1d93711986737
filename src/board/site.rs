//! Where a part is built: what it finds there, and what it leaves.
//!
//! A [`Site`] is all that a part gets. What it finds there is guest RAM, a way to ask for power off or
//! reset, and [`Wires`], by which KVM pulls interrupt lines and hears of notifications; a test can lay
//! wires of its own. What it leaves is a device on a bus and, if it has any, queues, a character device,
//! or the line of the power button. When all parts are built, that is what the machine works with, and it
//! does not know which part has left what.

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::bus::{Bus, Overlap};
use super::chars::CharDevice;
use super::device::{BusDevice, IrqLine, Lifecycle};
use super::place::{Place, Range};
use super::power::PowerSink;
use super::pump::Pump;
use super::waiting::Waiting;
use crate::error::io_reason;

/// Why a part cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// A KVM call failed.
    #[error("{call} failed: {}", io_reason(source))]
    Call {
        /// The ioctl.
        call: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// Another call of the host failed.
    #[error("cannot {what}: {}", io_reason(source))]
    Host {
        /// What was to be done.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// Two parts want the same address, which only Bantam itself can get wrong.
    #[error(transparent)]
    Overlap(#[from] Overlap),
}

impl SiteError {
    /// Turns a failed host call into an error that says what was to be done.
    pub fn host(what: &'static str) -> impl Fn(io::Error) -> SiteError {
        move |source| SiteError::Host { what, source }
    }
}

/// An event fd as all of them are made here: it never blocks, and no other program inherits it.
///
/// # Errors
/// When the host gives no more file descriptors.
pub fn event_fd() -> Result<EventFd, SiteError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(SiteError::host("make an event fd"))
}

/// The machine's wires, as KVM or a test lays them.
pub trait Wires {
    /// Ties `fd` to interrupt line `gsi`: a write to it is an edge.
    ///
    /// # Errors
    /// Those of the call.
    fn interrupt(&self, fd: &EventFd, gsi: u32) -> Result<(), SiteError>;

    /// Has a write of the 32-bit `value` to the guest physical `address` make `fd` readable, without an
    /// exit to user space.
    ///
    /// # Errors
    /// Those of the call.
    fn doorbell(&self, fd: &EventFd, address: u64, value: u32) -> Result<(), SiteError>;
}

/// A device of a machine that is built.
#[derive(Clone)]
pub struct Built {
    /// What the board calls it, or its kind if there is only one.
    pub name: String,
    /// What the machine asks of it.
    pub device: Arc<dyn Lifecycle>,
}

/// See the [module](self).
pub struct Site<'a> {
    /// Guest RAM.
    pub memory: &'a Arc<GuestMemoryMmap>,
    /// Who is told that the guest wants to power off or reset.
    pub power: PowerSink,
    /// The wires.
    pub wires: &'a dyn Wires,
    /// How a vCPU waits for a device.
    pub waiting: Arc<Waiting>,
    /// Left here: what answers on ports.
    pub ports: Bus,
    /// Left here: what answers on guest physical addresses.
    pub pages: Bus,
    /// Left here: all devices, for their lives.
    pub devices: Vec<Built>,
    /// Left here: queues that an event loop has to work at.
    pub pumps: Vec<Arc<dyn Pump>>,
    /// Left here: what a console can be tied to.
    pub chars: Vec<Arc<dyn CharDevice>>,
    /// Left here: the line that the power button pulls.
    pub power_button: Option<IrqLine>,
}

impl<'a> Site<'a> {
    /// A site without anything on it.
    pub fn new(
        memory: &'a Arc<GuestMemoryMmap>,
        power: PowerSink,
        wires: &'a dyn Wires,
        waiting: Arc<Waiting>,
    ) -> Self {
        Site {
            memory,
            power,
            wires,
            waiting,
            ports: Bus::default(),
            pages: Bus::default(),
            devices: Vec::new(),
            pumps: Vec::new(),
            chars: Vec::new(),
            power_button: None,
        }
    }

    /// The interrupt line of `place`; one that leads nowhere if it has none.
    ///
    /// # Errors
    /// Those of the host and of KVM.
    pub fn irq_line(&self, place: &Place) -> Result<IrqLine, SiteError> {
        let fd = event_fd()?;
        if let Some(gsi) = place.gsi {
            self.wires.interrupt(&fd, gsi)?;
        }
        Ok(IrqLine::new(fd))
    }

    /// Puts `device` on its bus and among the devices of the machine, where it is called `name`.
    ///
    /// # Errors
    /// When another device is there.
    pub fn put<D: BusDevice + Lifecycle + 'static>(
        &mut self,
        place: &Place,
        name: &str,
        device: &Arc<D>,
    ) -> Result<(), SiteError> {
        let bus = match place.range {
            Range::Ports(..) => &mut self.ports,
            Range::Page(..) => &mut self.pages,
        };
        let (first, count) = place.range.bounds();
        bus.insert(first, count, device.clone())?;
        self.devices.push(Built {
            name: name.into(),
            device: device.clone(),
        });
        Ok(())
    }
}
