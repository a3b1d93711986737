//! Which machine this is, and what it is given: the SMBIOS tables of a [`Plan`](super::Plan).
//!
//! The number is made, and the files of credentials are read, before anything is started. A machine
//! that starts again after a reboot is the same one: its tables are made once.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::arch::x86_64::{layout, smbios};
use crate::config::Credential;
use crate::config::credential::{Value, oem_string};
use crate::error::{Help, io_reason};

/// Why a machine cannot have its number or its credentials.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The host gives no random numbers.
    #[error("cannot make a UUID: {}", io_reason(source))]
    Random {
        /// The host's reason.
        source: io::Error,
    },
    /// The file of a credential cannot be read.
    #[error("credential {name}: {}: {}", path.display(), io_reason(source))]
    File {
        /// The credential.
        name: String,
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The tables would not fit into their place.
    #[error(
        "credential {name}: no room: all of them together take at most {} bytes",
        smbios::ROOM
    )]
    NoRoom {
        /// The first credential that has none.
        name: String,
    },
}

impl Help for IdentityError {
    fn help(&self) -> String {
        match self {
            IdentityError::Random { .. } => "give one with --uuid, as 'uuidgen' prints it".into(),
            IdentityError::File { .. } => {
                "check the path; it is a file whose whole content is the credential".into()
            }
            IdentityError::NoRoom { .. } => {
                "give less, or put it on a disk; what is no printable ASCII takes a third more"
                    .into()
            }
        }
    }
}

/// The tables, for [`smbios::write`].
///
/// # Errors
/// See [`IdentityError`].
pub fn smbios(uuid: Option<Uuid>, credentials: &[Credential]) -> Result<Vec<u8>, IdentityError> {
    let uuid = match uuid {
        Some(uuid) => uuid,
        None => random().map_err(|source| IdentityError::Random { source })?,
    };
    let mut strings = Vec::new();
    for Credential { name, value } in credentials {
        strings.push(match value {
            Value::Text(text) => oem_string(name, text.as_bytes()),
            Value::File(path) => {
                let value = read(path).map_err(|source| IdentityError::File {
                    name: name.clone(),
                    path: path.clone(),
                    source,
                })?;
                oem_string(name, &value)
            }
        });
    }
    let image = |count: usize| {
        let oem_strings = strings.get(..count).unwrap_or(&strings);
        smbios::image(smbios::Identity { uuid, oem_strings }, layout::SMBIOS)
    };
    let whole = image(strings.len());
    if whole.len() <= smbios::ROOM {
        return Ok(whole);
    }
    // The first with which they are too many.
    let mut numbered = (1usize..).zip(credentials);
    let extra = numbered.find(|(count, _)| image(*count).len() > smbios::ROOM);
    Err(IdentityError::NoRoom {
        name: extra.map_or_else(String::new, |(_, credential)| credential.name.clone()),
    })
}

/// A number that no other machine has (RFC 9562, version 4).
fn random() -> io::Result<Uuid> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::from)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

/// All of a file, or more than has room: of what has no end, as a device, only that much.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    let enough = smbios::ROOM as u64;
    File::open(path)?.take(enough).read_to_end(&mut value)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[(&str, usize)]) -> Vec<Credential> {
        let credential = |(name, bytes): &(&str, usize)| Credential {
            name: (*name).to_owned(),
            value: Value::Text("x".repeat(*bytes)),
        };
        values.iter().map(credential).collect()
    }

    #[test]
    fn each_machine_has_a_number_of_its_own() {
        let one = smbios(None, &[]).unwrap();
        let other = smbios(None, &[]).unwrap();
        assert_ne!(one, other);
        let uuid = Some(Uuid::from_u128(1));
        assert_eq!(smbios(uuid, &[]).unwrap(), smbios(uuid, &[]).unwrap());
    }

    #[test]
    fn the_first_credential_without_room_is_named() {
        assert!(smbios(None, &texts(&[("a", 30_000), ("b", 30_000)])).is_ok());
        let error = smbios(None, &texts(&[("a", 30_000), ("b", 40_000), ("c", 1)])).unwrap_err();
        assert!(
            error.to_string().starts_with("credential b: no room"),
            "{error}"
        );
    }

    #[test]
    fn a_file_is_taken_whole_and_no_more_than_fits() {
        let credential = |path: &Path| Credential {
            name: "f".into(),
            value: Value::File(path.into()),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"a\n").unwrap();
        let image = smbios(None, &[credential(file.path())]).unwrap();
        let string = b"io.systemd.credential.binary:f=YQo=\0";
        assert!(image.windows(string.len()).any(|bytes| bytes == string));
        let endless = smbios(None, &[credential(Path::new("/dev/zero"))]);
        assert!(
            matches!(endless, Err(IdentityError::NoRoom { .. })),
            "{endless:?}"
        );
        let missing = smbios(None, &[credential(Path::new("/nonexistent"))]);
        assert!(
            matches!(missing, Err(IdentityError::File { .. })),
            "{missing:?}"
        );
    }
}
