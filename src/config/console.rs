//! What the words of `--console` mean.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::values::{number_and_unit, split_commas, wrong};

const KEY: &str = "--console";
const FORMS: &str = "it is one of: stdio, serial, virtio, none, pty, file=PATH[,max=SIZE]";
const KEYS: &[&str] = &["max"];
/// A file that is shorter would be begun again for every few lines.
const MIN_FILE: u64 = 4096;

/// Where the guest's console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Console {
    /// Standard input and output.
    Stdio(Port),
    /// Nowhere.
    None,
    /// Output to a file, no input.
    File {
        /// The file.
        path: PathBuf,
        /// How many bytes it has at the most; what was in it before is kept in [`Console::old`].
        max: Option<u64>,
    },
    /// A new pseudo-terminal.
    Pty,
}

impl Console {
    /// Where the old content of a file goes that has a bound: `PATH.1`.
    pub fn old(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".1");
        name.into()
    }
}

/// What the guest finds at its end of standard input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The serial port, and a virtio console beside it where that is of use.
    Auto,
    /// The serial port alone.
    Serial,
    /// A virtio console beside the serial port in any case.
    Virtio,
}

/// `stdio`, `serial`, `virtio`, `none`, `pty` or `file=PATH[,max=SIZE]`; a comma in the path is written twice, as
/// in that of a disk.
///
/// # Errors
/// See [`ConfigError`].
pub fn console(text: &str) -> Result<Console, ConfigError> {
    match text {
        "stdio" => Ok(Console::Stdio(Port::Auto)),
        "serial" => Ok(Console::Stdio(Port::Serial)),
        "virtio" => Ok(Console::Stdio(Port::Virtio)),
        "none" => Ok(Console::None),
        "pty" => Ok(Console::Pty),
        _ => match text.strip_prefix("file=") {
            Some(words) => file(text, words),
            None => Err(wrong(KEY, text, "no such console", FORMS)),
        },
    }
}

fn file(text: &str, words: &str) -> Result<Console, ConfigError> {
    let mut words = split_commas(words).into_iter();
    let path = words.next().unwrap_or_default();
    if path.is_empty() {
        return Err(wrong(KEY, text, "the path is missing", FORMS));
    }
    let mut max = None;
    for word in words {
        match word.split_once('=') {
            Some(("max", size)) => max = Some(bytes(text, size)?),
            None if word == "max" => {
                return Err(wrong(KEY, text, "'max' has no value", "write max=10M"));
            }
            _ => {
                return Err(ConfigError::UnknownKey {
                    key: word,
                    place: format!("{KEY} '{text}'"),
                    known: KEYS,
                });
            }
        }
    }
    Ok(Console::File {
        path: path.into(),
        max,
    })
}

fn bytes(text: &str, size: &str) -> Result<u64, ConfigError> {
    let shift = |unit: &str| match unit {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        _ => None,
    };
    number_and_unit(size)
        .and_then(|(number, unit)| number.checked_mul(1u64.checked_shl(shift(&unit)?)?))
        .filter(|bytes| *bytes >= MIN_FILE)
        .ok_or_else(|| {
            wrong(
                KEY,
                text,
                format!("'{size}' is no size of a file"),
                "write a number with a unit, 4K at least: max=10M",
            )
        })
}

/// Puts `folder` before the path in `file=PATH,...`, whose commas are doubled there.
pub(super) fn beside(text: &str, folder: &Path) -> OsString {
    let folder = folder.to_str().filter(|folder| !folder.is_empty());
    match (text.strip_prefix("file="), folder) {
        (Some(rest), Some(folder)) if !rest.is_empty() && !rest.starts_with('/') => {
            format!("file={}/{rest}", folder.replace(',', ",,")).into()
        }
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_have_a_bound() {
        let file = |path: &str, max| Console::File {
            path: path.into(),
            max,
        };
        for (text, expected) in [
            ("file=a.log", file("a.log", None)),
            ("file=a.log,max=64K", file("a.log", Some(64 << 10))),
            ("file=a,,b,max=4096", file("a,b", Some(4096))),
            ("file=/x/y,max=1 GiB", file("/x/y", Some(1 << 30))),
        ] {
            assert_eq!(console(text).unwrap(), expected);
        }
        for bad in [
            "file=",
            "file=,max=1M",
            "file=a,max",
            "file=a,max=",
            "file=a,max=0",
            "file=a,max=4095",
            "file=a,max=1T",
            "file=a,max=99999999999999999999G",
            "file=a,b",
            "file=a,mox=1M",
            "fifo=a",
        ] {
            assert!(console(bad).is_err(), "{bad}");
        }
        assert_eq!(Console::old(Path::new("/x/a.log")), Path::new("/x/a.log.1"));
    }

    #[test]
    fn a_path_of_a_file_starts_at_its_folder() {
        let folder = Path::new("/a,b");
        for (text, expected) in [
            ("file=c.log,max=1M", "file=/a,,b/c.log,max=1M"),
            ("file=/c.log", "file=/c.log"),
            ("pty", "pty"),
            ("file=", "file="),
        ] {
            assert_eq!(beside(text, folder), expected);
        }
        assert_eq!(beside("file=c", Path::new("")), "file=c");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(file=)?\\PC{0,40}") {
            let _ = console(&text);
        }
    }
}
