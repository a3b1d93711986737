//! The options of a machine: one table, in which an option is one entry.
//!
//! ```text
//!                ┌─▶ the command line of `bantam run`: flags, help, completions, manual page (`cli/args.rs`)
//!   OPTIONS ─────┼─▶ the configuration file: keys, the type of each, examples in errors (`file.rs`)
//!                └─▶ layers: which of two values wins, or whether both count (`layer.rs`)
//! ```
//!
//! An entry says how an option is written, and nothing of what it means. To add an option, add an
//! entry here, the lines in [`VmConfig::resolve`](super::VmConfig::resolve) that read it and check it,
//! and a row in docs/configuration.md. Options that exist on the command line alone, such as
//! `--dry-run`, are not options of a machine: they are in `cli/args.rs`.

use std::ffi::OsString;
use std::path::Path;

use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::{console, credential, disk, elsewhere};
use crate::boot::{ProtocolChoice, Unpack};
use crate::memory::Backing;
use crate::sandbox;

/// An option, as it is written.
#[derive(Debug)]
pub struct Opt {
    /// Its name: the flag without its two dashes, and the key in the file.
    pub name: &'static str,
    /// The flag of one letter.
    pub short: Option<char>,
    /// What it takes.
    pub kind: Kind,
    /// What its value is called in the help. A switch has none.
    pub value: &'static str,
    /// One line of help. A switch has its help in its kind.
    pub help: &'static str,
    /// What the long help says below that line.
    pub more: &'static str,
    /// A value as the file has it, for errors.
    pub example: &'static str,
    /// Whether the values of two layers both count, those of the lower one first. Otherwise the upper
    /// layer replaces the lower one.
    pub adds: bool,
    /// Whether the value on the command line may begin with a dash, as `-append` of a kernel may.
    pub dashes: bool,
    /// Puts a folder before the relative path that is in a value of the file.
    pub beside: fn(&str, &Path) -> OsString,
}

/// What an option takes, and so how it stands in both places.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A path.
    Path,
    /// Paths: the flag is given once for each; the file has one, or a list.
    Paths,
    /// Text.
    Text,
    /// Texts, as [`Kind::Paths`].
    Texts,
    /// A number, or a text that begins with one.
    Amount,
    /// One of these words.
    Choice(fn() -> Vec<PossibleValue>),
    /// On or off. `yes` is the help of `--NAME`, `no` that of `--no-NAME`; a flag without help does
    /// not exist. Of the two, the last on the command line counts. The file has `true` or `false`.
    Switch {
        /// Help of the flag that switches it on.
        yes: Option<&'static str>,
        /// Help of the flag that switches it off.
        no: Option<&'static str>,
    },
}

impl Kind {
    /// What the file takes, for errors.
    pub fn takes(&self) -> &'static str {
        match self {
            Kind::Path | Kind::Text | Kind::Choice(_) => "a string",
            Kind::Paths | Kind::Texts => "a string or a list of strings",
            Kind::Amount => "a number or a string",
            Kind::Switch { .. } => "true or false",
        }
    }

    /// Whether there can be several values.
    pub fn is_list(&self) -> bool {
        matches!(self, Kind::Paths | Kind::Texts)
    }
}

/// What most options are, for the fields that an entry leaves out.
const PLAIN: Opt = Opt {
    name: "",
    short: None,
    kind: Kind::Text,
    value: "",
    help: "",
    more: "",
    example: "",
    adds: false,
    dashes: false,
    beside: |text, _| text.into(),
};

/// All of them, in the order of the help.
pub const OPTIONS: &[Opt] = &[
    Opt {
        name: "kernel",
        short: Some('k'),
        kind: Kind::Path,
        value: "PATH",
        help: "Kernel image, the same as the argument",
        example: r#""vmlinuz""#,
        beside: path_beside,
        ..PLAIN
    },
    Opt {
        name: "initrd",
        short: Some('i'),
        kind: Kind::Path,
        value: "PATH",
        help: "Initial RAM disk",
        example: r#""initrd.img""#,
        beside: path_beside,
        ..PLAIN
    },
    Opt {
        name: "append",
        short: Some('a'),
        kind: Kind::Texts,
        value: "TEXT",
        help: "Add to the kernel command line (may be repeated)",
        example: r#""quiet""#,
        // The kernel takes the last of most parameters.
        adds: true,
        dashes: true,
        ..PLAIN
    },
    Opt {
        name: "cmdline",
        kind: Kind::Text,
        value: "TEXT",
        help: "Replace the default kernel command line",
        example: r#""console=ttyS0""#,
        dashes: true,
        ..PLAIN
    },
    Opt {
        name: "disk",
        short: Some('d'),
        kind: Kind::Texts,
        value: "PATH[,KEY=VALUE]...",
        help: "Attach a disk image or block device; in order vda, vdb ... (may be repeated)",
        more: "After the path, separated by commas: ro, format=raw|qcow2 (raw unless the name ends in \
               .qcow2), snapshot (throw writes away), serial=TEXT, queues=N, io=auto|uring|threads, \
               cache=writeback|direct, discard=on|off, iothread, poll=MICROSECONDS, backing=on|off, \
               limit-iops=N, limit-bw=N",
        example: r#"["root.img", "data.img,ro"]"#,
        beside: disk::beside,
        ..PLAIN
    },
    Opt {
        name: "snapshot",
        kind: Kind::Switch {
            yes: Some(
                "Throw away at the end what is written to disks, but for those with snapshot=off",
            ),
            no: None,
        },
        example: "true",
        ..PLAIN
    },
    Opt {
        name: "cdrom",
        kind: Kind::Paths,
        value: "ISO",
        help: "Attach an image of a CD or DVD, to be read only, after the disks (may be repeated)",
        example: r#""live.iso""#,
        beside: path_beside,
        ..PLAIN
    },
    Opt {
        name: "iso",
        kind: Kind::Path,
        value: "ISO",
        help: "Boot the kernel inside the ISO of a live system or installer, and attach the ISO",
        example: r#""live.iso""#,
        beside: path_beside,
        ..PLAIN
    },
    Opt {
        name: "cpus",
        short: Some('c'),
        kind: Kind::Amount,
        value: "N",
        help: "vCPUs: 4, or 8,sockets=2,cores=2,threads=2 [default: 1]",
        example: "4",
        ..PLAIN
    },
    Opt {
        name: "nested",
        kind: Kind::Switch {
            yes: Some("Let the guest use KVM itself, where the host's KVM can do that"),
            no: Some(
                "Keep VMX and SVM from it, also where the configuration file has 'nested = true'",
            ),
        },
        example: "true",
        ..PLAIN
    },
    Opt {
        name: "memory",
        short: Some('m'),
        kind: Kind::Amount,
        value: "SIZE",
        help: "Guest memory: 512M, 2G; a bare number counts MiB [default: 512M]",
        example: r#""2G""#,
        ..PLAIN
    },
    Opt {
        name: "memory-backing",
        kind: Kind::Choice(choices::<Backing>),
        value: "MEMORY_BACKING",
        help: "What guest memory is on the host",
        example: r#""thp""#,
        ..PLAIN
    },
    Opt {
        name: "console",
        kind: Kind::Text,
        value: "WHERE",
        help: "Console: stdio, serial, virtio, none, pty, file=PATH[,max=SIZE] [default: stdio]",
        more: "On a terminal, stdio is a virtio console (hvc0), which follows the terminal's size, if the \
               kernel has the driver built in, and else the serial port (ttyS0); serial is the serial port \
               in any case, virtio has the virtio console in any case. A file with max, such as max=10M, gets no \
               longer than that: what has no more room in it goes to PATH.1",
        example: r#""stdio""#,
        beside: console::beside,
        ..PLAIN
    },
    Opt {
        name: "protocol",
        kind: Kind::Choice(choices::<ProtocolChoice>),
        value: "PROTOCOL",
        help: "How the kernel is entered",
        example: r#""auto""#,
        ..PLAIN
    },
    Opt {
        name: "unpack",
        kind: Kind::Choice(choices::<Unpack>),
        value: "UNPACK",
        help: "Who unpacks a bzImage",
        example: r#""host""#,
        ..PLAIN
    },
    Opt {
        name: "cache",
        kind: Kind::Switch {
            yes: None,
            no: Some("Keep nothing of what is unpacked, and use nothing kept before"),
        },
        example: "true",
        ..PLAIN
    },
    Opt {
        name: "reboot",
        kind: Kind::Switch {
            yes: Some("Start the machine again when its guest reboots, instead of ending"),
            no: Some(
                "End the machine when its guest reboots, also where the configuration file has 'reboot = true'",
            ),
        },
        example: "true",
        ..PLAIN
    },
    Opt {
        name: "rng",
        kind: Kind::Switch {
            yes: Some("Attach a source of random bytes (virtio-rng)"),
            no: Some("Attach none, also where the configuration file has 'rng = true'"),
        },
        example: "true",
        ..PLAIN
    },
    Opt {
        name: "reclaim",
        kind: Kind::Switch {
            yes: Some("Give memory that the guest has freed back to the host (virtio-balloon)"),
            no: Some("Keep it, also where the configuration file has 'reclaim = true'"),
        },
        example: "true",
        ..PLAIN
    },
    Opt {
        name: "core",
        kind: Kind::Switch {
            yes: Some("Have the guest's memory in core dumps of this program"),
            no: Some("Leave it out, also where the configuration file has 'core = true'"),
        },
        example: "true",
        ..PLAIN
    },
    Opt {
        name: "time-limit",
        kind: Kind::Amount,
        value: "TIME",
        help: "End the machine after this time: 30s, 5m",
        example: r#""10m""#,
        ..PLAIN
    },
    Opt {
        name: "sandbox",
        kind: Kind::Choice(choices::<sandbox::Mode>),
        value: "SANDBOX",
        help: "What becomes of a system call that a running machine has no use for",
        example: r#""on""#,
        ..PLAIN
    },
    Opt {
        name: "user",
        kind: Kind::Amount,
        value: "USER",
        help: "Become this user when all files are open; for root alone",
        example: r#""nobody""#,
        ..PLAIN
    },
    Opt {
        name: "chroot",
        kind: Kind::Path,
        value: "FOLDER",
        help: "See no files but those in this folder, which may be empty, when all are open; for root alone",
        example: r#""/var/empty""#,
        beside: path_beside,
        ..PLAIN
    },
    Opt {
        name: "uuid",
        kind: Kind::Text,
        value: "UUID",
        help: "The machine's number, which the guest finds in SMBIOS [default: a new one at each start]",
        example: r#""123e4567-e89b-12d3-a456-426614174000""#,
        ..PLAIN
    },
    Opt {
        name: "credential",
        kind: Kind::Texts,
        value: "NAME=VALUE",
        help: "Give systemd in the guest a credential (may be repeated)",
        example: r#""firstboot.timezone=Europe/Berlin""#,
        // Of two with one name the last counts: that of the command line.
        adds: true,
        ..PLAIN
    },
    Opt {
        name: "credential-file",
        kind: Kind::Texts,
        value: "NAME=PATH",
        help: "Give systemd in the guest what is in a file as a credential (may be repeated)",
        example: r#""ssh.authorized_keys.root=id_ed25519.pub""#,
        adds: true,
        beside: credential::beside,
        ..PLAIN
    },
];

/// Their names.
#[expect(
    clippy::indexing_slicing,
    reason = "the compiler does it, and would say so"
)]
pub const NAMES: [&str; OPTIONS.len()] = {
    let mut names = [""; OPTIONS.len()];
    let mut at = 0;
    while at < OPTIONS.len() {
        names[at] = OPTIONS[at].name;
        at += 1;
    }
    names
};

/// The option of this name.
pub fn find(name: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|option| option.name == name)
}

/// The words of a choice, each with its help.
fn choices<T: ValueEnum>() -> Vec<PossibleValue> {
    let values = T::value_variants().iter();
    values.filter_map(T::to_possible_value).collect()
}

/// A value that is a path as a whole. An address has no folder to start from, and is refused later.
fn path_beside(text: &str, folder: &Path) -> OsString {
    match elsewhere::is_address(Path::new(text)) {
        true => text.into(),
        false => folder.join(text).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_letters_are_given_once() {
        for (at, option) in OPTIONS.iter().enumerate() {
            for other in &OPTIONS[..at] {
                assert_ne!(option.name, other.name);
                assert!(option.short.is_none() || option.short != other.short);
            }
        }
    }

    #[test]
    fn entries_say_what_their_kind_needs() {
        for option in OPTIONS {
            let name = option.name;
            assert!(!option.example.is_empty(), "{name}");
            match option.kind {
                Kind::Switch { yes, no } => {
                    assert!(yes.is_some() || no.is_some(), "{name}");
                    assert_eq!((option.value, option.help), ("", ""), "{name}");
                }
                _ => assert!(
                    !option.value.is_empty() && !option.help.is_empty(),
                    "{name}"
                ),
            }
            // A switch or a choice has one value, which replaces another.
            assert!(!option.adds || option.kind.is_list(), "{name}");
        }
    }

    #[test]
    fn the_documentation_names_every_key() {
        let page = include_str!("../../docs/configuration.md");
        for option in OPTIONS {
            let row = format!("\n| `{}` |", option.name);
            assert!(page.contains(&row), "no row of '{}'", option.name);
        }
    }
}
