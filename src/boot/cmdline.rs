//! The kernel command line: a good default, what the user adds, and the limit.

use crate::error::Help;

/// What a guest needs in order to be seen, to stop, and to skip hardware that is not there.
///
/// - `console=ttyS0`: the serial port is the console;
/// - `panic=-1`: after a panic the machine ends at once instead of waiting for a key;
/// - `pci=off`: there is no PCI bus to be probed;
/// - `8250.nr_uarts=1`: one serial port, not four to look for.
pub const DEFAULT: &str = "console=ttyS0 panic=-1 pci=off 8250.nr_uarts=1";

/// A command line that no kernel would read to its end, or not as it is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// Longer than the kernel reads.
    #[error("the kernel command line is {len} bytes long, and this kernel reads {max}")]
    TooLong {
        /// Bytes.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// A NUL or a line break would end it early.
    #[error("the kernel command line contains the control character {0:?}")]
    Control(char),
}

impl Help for CmdlineError {
    fn help(&self) -> String {
        match self {
            CmdlineError::TooLong { len, max } => format!(
                "shorten --append by {} bytes, or replace the default with --cmdline",
                len.saturating_sub(*max)
            ),
            CmdlineError::Control(_) => "write parameters separated by spaces".into(),
        }
    }
}

/// The final command line: `replace` or else the default, the root disk where nobody named one,
/// then what the user appends (the last of a parameter wins, so the user does).
pub fn compose(replace: Option<&str>, append: &[String], root: Option<&str>) -> String {
    let mut parts: Vec<&str> = vec![replace.unwrap_or(DEFAULT)];
    let user_names_root = append
        .iter()
        .flat_map(|text| text.split_whitespace())
        .any(|word| word.starts_with("root="));
    if let Some(root) = root.filter(|_| replace.is_none() && !user_names_root) {
        parts.push(root);
    }
    parts.extend(append.iter().map(String::as_str));
    parts.retain(|part| !part.trim().is_empty());
    parts.join(" ")
}

/// Checks the final command line against the kernel's limit; nothing is ever cut.
///
/// # Errors
/// See [`CmdlineError`].
pub fn check(cmdline: &str, max: usize) -> Result<(), CmdlineError> {
    if let Some(control) = cmdline.chars().find(|c| c.is_control()) {
        return Err(CmdlineError::Control(control));
    }
    if cmdline.len() > max {
        return Err(CmdlineError::TooLong {
            len: cmdline.len(),
            max,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|s| (*s).to_string()).collect()
    }

    #[test]
    fn the_user_has_the_last_word() {
        let root = Some("root=/dev/vda rw");
        assert_eq!(
            compose(None, &words(&["quiet", "panic=5"]), root),
            format!("{DEFAULT} root=/dev/vda rw quiet panic=5")
        );
        assert_eq!(
            compose(None, &words(&["root=/dev/vdb"]), root),
            format!("{DEFAULT} root=/dev/vdb")
        );
        assert_eq!(compose(Some("x"), &words(&["y"]), root), "x y");
        assert_eq!(compose(Some(""), &[], root), "");
    }

    #[test]
    fn the_limit_is_exact() {
        assert_eq!(check("12345", 5), Ok(()));
        assert_eq!(
            check("123456", 5),
            Err(CmdlineError::TooLong { len: 6, max: 5 })
        );
        assert_eq!(check("a\nb", 5), Err(CmdlineError::Control('\n')));
    }
}
