//! The kernel command line: a good default, what the user adds, and the limit.

use crate::error::Help;

/// What a guest needs in order to be seen, to stop, and to skip hardware that is not there.
///
/// - `console=ttyS0`: the serial port is the console;
/// - `panic=-1`: after a panic the machine ends at once instead of waiting for a key;
/// - `reboot=panic_warm`: that end can be told from a reboot ([`panics_reset_warm`]);
/// - `pci=conf1,noearly`: there is a way to ask for PCI devices, and none to be looked for early;
/// - `8250.nr_uarts=1`: one serial port, not four to look for.
pub const DEFAULT: &str =
    "console=ttyS0 panic=-1 reboot=panic_warm pci=conf1,noearly 8250.nr_uarts=1";

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

/// The virtio console: as the last of the consoles it is the one that /dev/console is.
pub const HVC0: &str = "console=hvc0";

/// What is added to the default where nobody has named his own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Added<'a> {
    /// The root disk.
    pub root: Option<&'a str>,
    /// [`HVC0`].
    pub hvc0: bool,
}

/// The final command line: `replace` or else the default with what is `added` to it, then what the user
/// appends (the last of a parameter wins, so the user does).
pub fn compose(replace: Option<&str>, append: &[String], added: Added<'_>) -> String {
    let mut parts: Vec<&str> = vec![replace.unwrap_or(DEFAULT)];
    let user_names = |parameter: &str| {
        let mut words = append.iter().flat_map(|text| text.split_whitespace());
        replace.is_some() || words.any(|word| word.starts_with(parameter))
    };
    if added.hvc0 && !user_names("console=") {
        parts.push(HVC0);
    }
    if let Some(root) = added.root.filter(|_| !user_names("root=")) {
        parts.push(root);
    }
    parts.extend(append.iter().map(String::as_str));
    parts.retain(|part| !part.trim().is_empty());
    parts.join(" ")
}

/// Whether the virtio console is the one that /dev/console is: the last of the consoles.
pub fn ends_at_hvc0(cmdline: &str) -> bool {
    let mut words = cmdline.split_whitespace();
    let last = words.rfind(|word| word.starts_with("console="));
    last.is_some_and(|word| word == HVC0 || word.starts_with("console=hvc0,"))
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

/// Whether Linux, given this command line, resets the machine warm after a panic and only then.
///
/// The last word for each of the two modes counts, as in kernel/reboot.c (`reboot_setup`): what
/// stands behind `panic_` is the mode of a panic, anything else that of a reboot. Kernels before 5.1
/// know no mode of a panic and take `panic_warm` for `p`: a reset by port 0xcf9.
pub fn panics_reset_warm(cmdline: &str) -> bool {
    let (mut panic, mut reboot) = (false, false);
    let words = cmdline.split_whitespace();
    for options in words.filter_map(|word| word.strip_prefix("reboot=")) {
        for option in options.split(',') {
            let (mode, option) = match option.strip_prefix("panic_") {
                Some(option) => (&mut panic, option),
                None => (&mut reboot, option),
            };
            match option.bytes().next() {
                Some(b'w') => *mode = true,
                Some(b'c' | b'h' | b'g') => *mode = false,
                Some(b's') if !names_a_cpu(option) => *mode = false,
                _ => {}
            }
        }
    }
    panic && !reboot
}

/// `s4` and `smp4`: the CPU that does the reset. `soft` is a mode.
fn names_a_cpu(option: &str) -> bool {
    let rest = option.strip_prefix("smp").or(option.strip_prefix('s'));
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|s| (*s).to_string()).collect()
    }

    #[test]
    fn the_user_has_the_last_word() {
        let root = Added {
            root: Some("root=/dev/vda rw"),
            ..Added::default()
        };
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
    fn the_virtio_console_is_the_last_unless_the_user_names_consoles() {
        let both = Added {
            root: Some("root=/dev/vda rw"),
            hvc0: true,
        };
        let all = compose(None, &words(&["quiet"]), both);
        assert_eq!(all, format!("{DEFAULT} {HVC0} root=/dev/vda rw quiet"));
        assert!(ends_at_hvc0(&all));
        for (replace, append, at_hvc0) in [
            (None, "console=ttyS0,9600", false),
            (None, "console=tty0 console=hvc0", true),
            (None, "console=hvc0 console=ttyS0", false),
            (Some("quiet"), "", false),
            (Some("console=hvc0"), "", true),
            (Some("console=hvc1"), "", false),
        ] {
            let all = compose(replace, &words(&[append]), both);
            assert_eq!(ends_at_hvc0(&all), at_hvc0, "{all}");
            let said = format!("{} {append}", replace.unwrap_or_default());
            let theirs = replace.is_some() || said.contains("console=");
            assert!(theirs, "all cases are of this kind");
            let count = |text: &str| text.matches(HVC0).count();
            assert_eq!(count(&all), count(&said), "{all}");
        }
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

    #[test]
    fn the_mode_of_a_panic_is_told_from_that_of_a_reboot() {
        assert!(panics_reset_warm(DEFAULT));
        for (more, warm) in [
            ("reboot=k", true),
            ("reboot=t,force", true),
            ("reboot=smp1,k", true),
            ("reboot=warm", false),
            ("reboot=k,w", false),
            ("reboot=warm reboot=cold", true),
            ("reboot=panic_cold", false),
            ("reboot=panic_s2", true),
            ("reboot=panic_soft", false),
        ] {
            assert_eq!(
                panics_reset_warm(&format!("{DEFAULT} {more}")),
                warm,
                "{more}"
            );
        }
        assert!(!panics_reset_warm("console=ttyS0 panic=-1"));
    }
}
