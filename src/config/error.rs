//! What can be wrong with a configuration.

use std::io;
use std::path::PathBuf;

use crate::error::{Help, io_reason, nearest};

/// A mistake in the command line or the configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither flag nor file names one.
    #[error("no kernel is given")]
    NoKernel,
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
    /// Not TOML, or a value of the wrong type.
    #[error("configuration {}, line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's words.
        message: String,
    },
}

impl Help for ConfigError {
    fn help(&self) -> String {
        match self {
            ConfigError::NoKernel => {
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
            ConfigError::Syntax { .. } => {
                "the file is TOML: key = \"value\"; docs/configuration.md has an example".into()
            }
        }
    }
}
