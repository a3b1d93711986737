//! What is on the machine's buses: one list of parts, each with its place.
//!
//! ```text
//!   Vec<Box<dyn Part>> ──▶ Board::of ──▶ [Placed { place: name, ports or page, GSI; part }]
//!                                          │ describe   a line of the dry-run
//!                                          │ aml        what the DSDT says of it
//!                                          └ build      a device on a bus, made anew for each life
//! ```
//!
//! - [`part`]: what a part says of itself, before there is a machine;
//! - [`list`]: the list; names, register pages and interrupt lines are given out here and nowhere else;
//!   [`place`]: what one of them is given;
//! - [`site`]: what a part finds when it is built, and where it leaves what the machine works with;
//! - [`device`], [`chars`], [`pump`]: what that is: devices on a bus, character devices (with [`pace`], for
//!   when their output is heard of), queues for an event loop;
//! - [`watch`]: who is on an event loop;
//! - [`bus`]: an address and the device behind it; [`power`]: what a guest asks of its machine; [`waiting`]: how a
//!   vCPU waits for a device.
//!
//! Nothing here knows any part by name. The list of them is the machine's
//! ([`machine::parts`](crate::machine::parts)).

pub mod aml;
pub mod bus;
pub mod chars;
pub mod device;
pub mod list;
pub mod pace;
pub mod part;
pub mod place;
pub mod power;
pub mod pump;
pub mod site;
pub mod waiting;
pub mod watch;

pub use bus::Bus;
pub use chars::CharDevice;
pub use device::{BusDevice, IrqLine, Lifecycle, StateError};
pub use list::{Board, BoardFull, Placed};
pub use pace::Pace;
pub use part::{Names, Need, Part};
pub use place::Place;
pub use power::{PowerRequest, PowerSink};
pub use pump::{Pump, Server, Turn};
pub use site::{Site, SiteError, Wires};
pub use waiting::Waiting;
pub use watch::Watcher;
