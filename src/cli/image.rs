//! `bantam image`: disk images made, looked at, converted and resized, as qemu-img does it.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::print;
use crate::config::values::image_size;
use crate::disk_image::convert::convert;
use crate::disk_image::create::{self, Create};
use crate::disk_image::info::{self, amount};
use crate::disk_image::resize::{self, Length};
use crate::disk_image::{ImageError, target};
use crate::error::{ExitStatus, Failure, escaped};
use crate::storage::Format;

const EXAMPLES: &str = "\
Examples:
  bantam image create disk.qcow2 20G
  bantam image create -f qcow2 -b base.qcow2 -F qcow2 mine.qcow2
  bantam image convert debian.raw debian.qcow2
  bantam image resize disk.qcow2 +5G";

/// Options of `bantam image`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an image; a qcow2 file grows with what is written, and so does a raw one
    Create {
        /// Format: raw unless the name ends in .qcow2
        #[arg(short, long, value_enum)]
        format: Option<Format>,
        /// Image below: what is not written is read from it (qcow2, in the same folder)
        #[arg(short, long, value_name = "FILE", requires = "backing_format")]
        backing: Option<String>,
        /// Format of the image below
        #[arg(short = 'F', long, value_enum)]
        backing_format: Option<Format>,
        /// Bytes of a cluster of a qcow2 image [default: 64k]
        #[arg(long, value_name = "SIZE")]
        cluster_size: Option<String>,
        /// The file to make
        path: PathBuf,
        /// Length of the disk: 20G; a bare number counts bytes
        size: Option<String>,
    },
    /// Tell what an image is
    Info {
        /// Format: what the header says unless given
        #[arg(short, long, value_enum)]
        format: Option<Format>,
        /// For programs
        #[arg(long)]
        json: bool,
        /// The image
        path: PathBuf,
    },
    /// Copy a disk into a new image
    Convert {
        /// Format to read: raw unless the name ends in .qcow2
        #[arg(short, long, value_enum)]
        format: Option<Format>,
        /// Format to write: raw unless the name ends in .qcow2
        #[arg(short = 'O', long, value_enum)]
        output_format: Option<Format>,
        /// Read the backing file that the image names, and put what is in it into the copy
        #[arg(long)]
        backing: bool,
        /// The image to read
        from: PathBuf,
        /// The file to make
        to: PathBuf,
    },
    /// Give a disk another length
    Resize {
        /// Format: raw unless the name ends in .qcow2
        #[arg(short, long, value_enum)]
        format: Option<Format>,
        /// Let the disk become shorter, and lose what is at its end
        #[arg(long)]
        shrink: bool,
        /// Read the backing file that the image names, where its old end needs that
        #[arg(long)]
        backing: bool,
        /// The image
        path: PathBuf,
        /// 20G, or +5G, or -5G
        #[arg(allow_hyphen_values = true)]
        size: String,
    },
}

/// Does it.
pub fn image(args: &ImageArgs) -> Result<ExitStatus, Failure> {
    target::limits_are_errors();
    let failed = |error: ImageError| Failure::new(error.status(), &error);
    let size =
        |text: &str| image_size(text).map_err(|error| Failure::new(ExitStatus::Usage, &error));
    let text = match &args.command {
        Command::Create {
            format,
            backing,
            backing_format,
            cluster_size,
            path,
            size: len,
        } => {
            let wanted = Create {
                path,
                format: *format,
                len: len.as_deref().map(size).transpose()?,
                cluster: cluster_size.as_deref().map(size).transpose()?,
                backing: backing.as_deref().zip(*backing_format),
            };
            let (len, format) = create::create(&wanted).map_err(failed)?;
            format!("{}: {format}, {}\n", escaped(path.display()), amount(len))
        }
        Command::Info { format, json, path } => {
            let info = info::info(path, *format).map_err(failed)?;
            if *json {
                return print::json(&info);
            }
            info.text()
        }
        Command::Convert {
            format,
            output_format,
            backing,
            from,
            to,
        } => {
            let mut bar = Bar::new();
            let (from, to) = ((from.as_path(), *format), (to.as_path(), *output_format));
            let made = convert(from, to, *backing, |at, of| bar.show(at, of));
            bar.end();
            let (len, format) = made.map_err(failed)?;
            format!("{}: {format}, {}\n", escaped(to.0.display()), amount(len))
        }
        Command::Resize {
            format,
            shrink,
            backing,
            path,
            size: text,
        } => {
            let length = match text.split_at_checked(1) {
                Some(("+", more)) => Length::By(size(more)?),
                Some(("-", less)) => Length::Less(size(less)?),
                _ => Length::To(size(text)?),
            };
            let (old, new) =
                resize::resize(path, *format, length, *shrink, *backing).map_err(failed)?;
            let path = escaped(path.display());
            format!("{path}: {} where it was {}\n", amount(new), amount(old))
        }
    };
    print::text(&text)
}

/// A line on standard error that tells how far long work is, where somebody may be looking.
struct Bar {
    shown: Option<u64>,
    on: bool,
}

impl Bar {
    const WIDTH: usize = 40;

    fn new() -> Self {
        Bar {
            shown: None,
            on: std::io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, at: u64, of: u64) {
        let percent = (u128::from(at) * 100)
            .checked_div(u128::from(of))
            .unwrap_or(100) as u64;
        if !self.on || self.shown == Some(percent) {
            return;
        }
        self.shown = Some(percent);
        let full = (percent as usize * Bar::WIDTH / 100).min(Bar::WIDTH);
        let rest = Bar::WIDTH.saturating_sub(full);
        let bar = "#".repeat(full) + &" ".repeat(rest);
        let _ = write!(std::io::stderr(), "\r[{bar}] {percent:3} %");
    }

    /// Takes the line away again.
    fn end(&self) {
        if self.on && self.shown.is_some() {
            let blank = " ".repeat(Bar::WIDTH + 8);
            let _ = write!(std::io::stderr(), "\r{blank}\r");
        }
    }
}
