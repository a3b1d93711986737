//! Credentials: secrets and settings that a guest's systemd takes from its firmware
//! (systemd.system-credentials(7)). `--credential NAME=VALUE` has the value itself, and
//! `--credential-file NAME=PATH` a file that holds it, which other users of the host do not see in
//! the list of processes.
//!
//! Each becomes a string of SMBIOS: `io.systemd.credential:NAME=VALUE`, or
//! `io.systemd.credential.binary:NAME=BASE64` where the value has bytes that are no printable ASCII.
//! What has a value is never printed: neither by an error, nor by a dry run, nor for debugging.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::error::ConfigError;
use super::values::wrong;

const TEXT: &str = "--credential";
const FILE: &str = "--credential-file";
/// The longest name of a file, and of a credential.
const NAME_BYTES: usize = 255;

/// A credential, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its name, one that systemd takes.
    pub name: String,
    /// Where its value is.
    pub value: Value,
}

/// Where a credential's value is.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// Here.
    Text(String),
    /// In this file, all of it.
    File(PathBuf),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(_) => f.write_str("Text(..)"),
            Value::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// All credentials: those whose values are in `texts`, then those whose values are in `files`. Of
/// several with one name the last counts, as an option on the command line stands behind the file's.
///
/// # Errors
/// See [`ConfigError`].
pub fn credentials(texts: &[String], files: &[String]) -> Result<Vec<Credential>, ConfigError> {
    let mut all: Vec<Credential> = Vec::new();
    for text in texts {
        let (name, value) = split(TEXT, text)?;
        let value = Value::Text(value.into());
        match all.iter_mut().find(|other| other.name == name) {
            Some(other) => other.value = value,
            None => all.push(Credential {
                name: name.into(),
                value,
            }),
        }
    }
    for text in files {
        let (name, path) = split(FILE, text)?;
        if path.is_empty() {
            let why = "the path is missing";
            return Err(wrong(FILE, name, why, "write NAME=PATH"));
        }
        let value = Value::File(path.into());
        match all.iter_mut().find(|other| other.name == name) {
            Some(other) if matches!(other.value, Value::Text(_)) => {
                return Err(wrong(
                    FILE,
                    name,
                    "its value is given by --credential as well",
                    "give one of the two",
                ));
            }
            Some(other) => other.value = value,
            None => all.push(Credential {
                name: name.into(),
                value,
            }),
        }
    }
    Ok(all)
}

/// `NAME=...`, with a good name. Errors show the name alone: behind it may be a secret.
fn split<'t>(key: &'static str, text: &'t str) -> Result<(&'t str, &'t str), ConfigError> {
    let form = match key {
        TEXT => "write NAME=VALUE: --credential firstboot.timezone=Europe/Berlin",
        _ => "write NAME=PATH: --credential-file ssh.authorized_keys.root=id_ed25519.pub",
    };
    let Some((name, value)) = text.split_once('=') else {
        return Err(wrong(key, text, "there is no '=' behind the name", form));
    };
    match name.len() {
        0 => Err(wrong(key, "=...", "the name is missing", form)),
        bytes if bytes > NAME_BYTES => {
            let shown: String = name.chars().take(20).chain("...".chars()).collect();
            let why = format!("the name has {bytes} bytes");
            let help = format!("systemd takes names of at most {NAME_BYTES}");
            Err(wrong(key, &shown, why, help))
        }
        _ if is_name(name) => Ok((name, value)),
        _ => Err(wrong(
            key,
            name,
            "systemd takes no such name",
            "a name is one of a file, of printable ASCII without '/' and ':'",
        )),
    }
}

/// Whether systemd takes the name (src/shared/creds-util.c, `credential_name_valid`): one that a file
/// can have, and a file descriptor too.
fn is_name(name: &str) -> bool {
    let good = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'/' && byte != b':';
    !matches!(name, "" | "." | "..") && name.len() <= NAME_BYTES && name.bytes().all(good)
}

/// Puts `folder` before the path in `NAME=PATH`.
pub(super) fn beside(text: &str, folder: &Path) -> OsString {
    let mut beside = OsString::new();
    match text.split_once('=') {
        Some((name, path)) if !path.is_empty() => {
            beside.push(format!("{name}="));
            beside.push(folder.join(path));
        }
        _ => beside.push(text),
    }
    beside
}

/// The string of SMBIOS that carries a credential.
pub fn oem_string(name: &str, value: &[u8]) -> String {
    let text = std::str::from_utf8(value).ok();
    let printable = |text: &&str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    match text.filter(printable) {
        Some(text) => format!("io.systemd.credential:{name}={text}"),
        None => format!(
            "io.systemd.credential.binary:{name}={}",
            STANDARD.encode(value)
        ),
    }
}

/// `NAME=VALUE` out of such a string, if its value is a text.
pub fn of_oem_string(string: &str) -> Option<String> {
    if let Some(text) = string.strip_prefix("io.systemd.credential:") {
        return text.contains('=').then(|| text.to_owned());
    }
    let (name, value) = string
        .strip_prefix("io.systemd.credential.binary:")?
        .split_once('=')?;
    let value = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    Some(format!("{name}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Result<Vec<Credential>, ConfigError> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        credentials(&texts, &[])
    }

    #[test]
    fn the_last_of_a_name_counts() {
        let all = texts(&["a=1", "b=x=y", "a=2", "c="]).unwrap();
        let found: Vec<_> = all
            .iter()
            .map(|one| (one.name.as_str(), oem_string(&one.name, value(one))))
            .collect();
        assert_eq!(found[0], ("a", "io.systemd.credential:a=2".into()));
        assert_eq!(found[1], ("b", "io.systemd.credential:b=x=y".into()));
        assert_eq!(found[2], ("c", "io.systemd.credential:c=".into()));
        assert_eq!(found.len(), 3);
    }

    fn value(credential: &Credential) -> &[u8] {
        match &credential.value {
            Value::Text(text) => text.as_bytes(),
            Value::File(_) => panic!("a file"),
        }
    }

    #[test]
    fn names_are_those_that_systemd_takes() {
        let longest = "x".repeat(255);
        for good in ["a", "ssh.authorized_keys.root", "a b", "...", "-", &longest] {
            assert!(texts(&[&format!("{good}=v")]).is_ok(), "{good}");
        }
        let too_long = "x".repeat(256);
        for bad in ["", ".", "..", "a/b", "a:b", "a\nb", "\u{e9}", &too_long] {
            assert!(texts(&[&format!("{bad}=v")]).is_err(), "{bad}");
        }
        assert!(texts(&["novalue"]).is_err());
    }

    #[test]
    fn a_text_and_a_file_of_one_name_are_too_many() {
        let one = |text: &str| vec![text.to_owned()];
        assert!(credentials(&one("a=1"), &one("a=f")).is_err());
        assert!(credentials(&one("a=1"), &one("b=f")).is_ok());
        assert!(credentials(&[], &one("b=")).is_err());
    }

    #[test]
    fn values_are_not_printed() {
        let all = texts(&["a=swordfish"]).unwrap();
        assert!(!format!("{all:?}").contains("swordfish"));
        let error = texts(&["a/b=swordfish"]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("swordfish"));
    }

    #[test]
    fn files_start_at_their_folder() {
        let beside = |text| beside(text, Path::new("/m")).into_string().unwrap();
        assert_eq!(beside("a=k.pub"), "a=/m/k.pub");
        assert_eq!(beside("a=/k.pub"), "a=/k.pub");
        assert_eq!(beside("a"), "a");
    }

    proptest::proptest! {
        #[test]
        fn any_value_is_carried_in_printable_ascii(value in proptest::collection::vec(0u8.., 0..200)) {
            let string = oem_string("n", &value);
            proptest::prop_assert!(string.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            if let Ok(text) = String::from_utf8(value) {
                proptest::prop_assert_eq!(of_oem_string(&string), Some(format!("n={text}")));
            }
        }
    }
}
