//! What a part says of itself.
//!
//! A part is a device before there is a machine. It says what it needs of the board, what the dry-run
//! prints of it, what the guest finds of it in the DSDT, and how the device is made. It outlives the
//! machine: with `--reboot`, each life builds a new device out of the same part.

use acpi_tables::AmlSink;

use super::place::Place;
use super::site::{Site, SiteError};

/// How the guest's names for parts of one kind go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// `vda`, `vdb`, ... after `vd`.
    Letters(&'static str),
    /// `net0`, `net1`, ... after `net`.
    Numbers(&'static str),
}

/// What a part needs of the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A range of ports that guests expect to find just there.
    Ports {
        /// The first.
        first: u16,
        /// How many.
        count: u16,
        /// The interrupt line, if it has one.
        gsi: Option<u32>,
    },
    /// A page of registers and an interrupt line, wherever the board has them.
    Page(Names),
}

/// A part as it is planned. It lives as long as the plan does, over all lives of a machine; each life has
/// a device of its own, made by [`Part::build`].
pub trait Part: Send + Sync {
    /// What it needs.
    fn need(&self) -> Need;

    /// What the dry-run says of it, in less than a line; `name` is what the board calls it. Names out of
    /// files are escaped.
    fn describe(&self, name: &str) -> String;

    /// Its objects under `\_SB` in the DSDT (ACPI 6.5, 5.2.11.1), if the guest finds it there.
    fn aml(&self, _place: &Place, _sink: &mut dyn AmlSink) {}

    /// Makes the device and puts it on `site`.
    ///
    /// # Errors
    /// When the host has no descriptors, threads or memory for it.
    fn build(&self, place: &Place, site: &mut Site<'_>) -> Result<(), SiteError>;
}
