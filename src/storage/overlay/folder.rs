//! In which folder the file is that takes what is written.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::error::OverlayError;
use crate::unnamed;

/// Where files go that are in nobody's way but large, where TMPDIR does not say. `/tmp` is second: on
/// many hosts it is memory.
const FOLDERS: [&str; 2] = ["/var/tmp", "/tmp"];

/// Makes a file of `len` bytes that takes no space as yet, and says in which folder.
///
/// # Errors
/// See [`OverlayError`].
pub fn make(len: u64) -> Result<(File, PathBuf), OverlayError> {
    let folders = match std::env::var_os("TMPDIR") {
        // Asked for by name: not another one instead.
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
    // There is at least one folder.
    Err(refused.unwrap_or(OverlayError::Make {
        folder: PathBuf::new(),
        source: io::ErrorKind::NotFound.into(),
    }))
}
