//! `bantam inspect`: what a kernel image is.

use std::path::PathBuf;

use clap::Args;

use super::print;
use crate::boot::{Kernel, inspect};
use crate::config::elsewhere;
use crate::error::{ExitStatus, Failure};

/// Options of `bantam inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The kernel image
    image: PathBuf,
}

/// Prints what is known of the image.
pub fn inspect(args: &InspectArgs) -> Result<ExitStatus, Failure> {
    elsewhere::check("kernel", &args.image)
        .map_err(|error| Failure::new(ExitStatus::Usage, &error))?;
    let kernel =
        Kernel::open(&args.image).map_err(|error| Failure::new(ExitStatus::Start, &error))?;
    print::text(&inspect::inspect(&kernel).text())
}
