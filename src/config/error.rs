//! What can be wrong with a configuration.

use std::io;
use std::path::PathBuf;

use crate::error::{Help, io_reason, nearest};

/// A mistake in the command line or the configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither flag nor file names one.
    #[error("no kernel is given")]
    NoKernel {
        /// A CD or DVD that may have one.
        cdrom: Option<PathBuf>,
    },
    /// Both are given.
    #[error("a kernel and an ISO to boot are given")]
    KernelAndIso {
        /// The ISO.
        iso: PathBuf,
    },
    /// A value that cannot be meant.
    #[error("{key} '{value}': {why}")]
    Value {
        /// The option, as on the command line.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
        /// What is right.
        help: String,
    },
    /// A key that does not exist.
    #[error("unknown key '{key}' in {place}")]
    UnknownKey {
        /// As it was written.
        key: String,
        /// Where it stands.
        place: String,
        /// Those that exist.
        known: &'static [&'static str],
    },
    /// The configuration file cannot be read.
    #[error("configuration {}: {}", path.display(), io_reason(source))]
    File {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// What `--config` names is no such file.
    #[error("configuration {} {what}", path.display())]
    NoConfig {
        /// The file.
        path: PathBuf,
        /// "is a directory" and the like.
        what: String,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("configuration {place}: {message}")]
    Syntax {
        /// File, line and column.
        place: String,
        /// What is wrong there.
        message: String,
        /// What is right.
        help: String,
    },
    /// Another mistake, in a configuration file.
    #[error("configuration {place}: {source}")]
    At {
        /// File, line and column.
        place: String,
        /// The mistake.
        source: Box<ConfigError>,
    },
}

impl Help for ConfigError {
    fn help(&self) -> String {
        match self {
            ConfigError::NoKernel { cdrom: Some(iso) } => format!(
                "'--iso {}' boots the kernel in it and attaches it as well",
                iso.display()
            ),
            ConfigError::NoKernel { cdrom: None } => {
                "name one: 'bantam run /boot/vmlinuz-...'; see 'bantam run --help'".into()
            }
            ConfigError::KernelAndIso { iso } => format!(
                "give one of them; '--cdrom {}' attaches the ISO without booting it",
                iso.display()
            ),
            ConfigError::Value { help, .. } => help.clone(),
            ConfigError::UnknownKey { key, known, .. } => match nearest(key, known.iter().copied())
            {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("the keys are: {}", known.join(", ")),
            },
            ConfigError::File { .. } => "check the path given to --config".into(),
            ConfigError::NoConfig { .. } => {
                "give a TOML file to --config; kernels and disks are named in it".into()
            }
            ConfigError::Syntax { help, .. } => help.clone(),
            ConfigError::At { source, .. } => source.help(),
        }
    }
}
