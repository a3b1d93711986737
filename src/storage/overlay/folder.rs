//! Chooses the folder for the file that takes what is written.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::error::OverlayError;
use crate::unnamed;

/// The folders for large files of a passing kind, if TMPDIR names none. `/tmp` is the second, because on
/// many hosts it is in memory.
const FOLDERS: [&str; 2] = ["/var/tmp", "/tmp"];

/// Makes a file of `len` bytes that takes no space as yet, and says in which folder.
///
/// # Errors
/// See [`OverlayError`].
pub fn make(len: u64) -> Result<(File, PathBuf), OverlayError> {
    let folders = match std::env::var_os("TMPDIR") {
        // The user has asked for this folder, so no other one is tried.
        Some(folder) if !folder.is_empty() => vec![PathBuf::from(folder)],
        _ => FOLDERS.map(PathBuf::from).to_vec(),
    };
    let mut refused = None;
    for folder in folders {
        match unnamed::create_for_ever(&folder, len) {
            Ok(file) => return Ok((file, folder)),
            Err(source) => {
                refused.get_or_insert(OverlayError::Make { folder, source });
            }
        }
    }
    // There is at least one folder, so an error has been kept, and this is never made.
    Err(refused.unwrap_or(OverlayError::Make {
        folder: PathBuf::new(),
        source: io::ErrorKind::NotFound.into(),
    }))
}
