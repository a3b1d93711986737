//! `bantam run`: its options. Those of the machine come from the table in
//! [`options`](crate::config::options); only what is not of the machine is described here.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::config::Layer;
use crate::config::layer::Said;
use crate::config::options::{Kind, OPTIONS, Opt};

const RUN_EXAMPLES: &str = "\
Examples:
  A Debian kernel with its initrd and a disk whose first partition is the root:
    bantam run /boot/vmlinuz --initrd /boot/initrd.img --disk debian.raw --append root=/dev/vda1
  A kernel with a root file system on a disk and no initrd:
    bantam run vmlinux --disk root.ext4
  Four CPUs, 2 GiB, ended after ten minutes at the latest:
    bantam run vmlinux --initrd initramfs.gz --cpus 4 --memory 2G --time-limit 10m
  The same from a file, one value changed:
    bantam run --config vm.toml --memory 4G

While it runs: Ctrl-a x ends the machine, Ctrl-a p pauses it and has it go on, Ctrl-a h shows the other keys.
SIGTERM and SIGINT press the power button; a second one, or 10 seconds, ends the machine.
SIGUSR1 pauses it, SIGUSR2 has it go on.";

/// What `bantam run` is told.
#[derive(Debug)]
pub struct RunArgs {
    /// The options of the machine.
    pub layer: Layer,
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// Whether nothing is to be started.
    pub dry_run: bool,
    /// How often `--verbose` was given.
    pub verbose: u8,
}

/// The kernel as an argument without a flag; clap's name for it.
const KERNEL: &str = "KERNEL";

impl Args for RunArgs {
    fn augment_args(command: Command) -> Command {
        let kernel = Arg::new(KERNEL)
            .help("Kernel image: an ELF vmlinux, a PVH program, or a bzImage (vmlinuz)")
            .value_parser(value_parser!(PathBuf))
            .conflicts_with("kernel");
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help("Read options from a TOML file; options given here win")
            .value_parser(value_parser!(PathBuf));
        let dry_run = Arg::new("dry-run")
            .long("dry-run")
            .help(
                "Print the resolved machine, find what a start would find (rights, limits, locks), and start nothing",
            )
            .action(ArgAction::SetTrue);
        let verbose = Arg::new("verbose")
            .short('v')
            .long("verbose")
            .help("Say more on standard error (-vv: even more)")
            .action(ArgAction::Count);
        command
            .after_help(RUN_EXAMPLES)
            .args_override_self(true)
            .arg(kernel)
            .args(OPTIONS.iter().flat_map(flags))
            .args([config, dry_run, verbose])
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RunArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut layer = Layer::default();
        for option in OPTIONS {
            match option.kind {
                Kind::Switch { yes, no } => {
                    if yes.is_some() && matches.get_flag(option.name) {
                        layer.set(option.name, Said::Switch(true));
                    }
                    if no.is_some() && matches.get_flag(&negated(option.name)) {
                        layer.set(option.name, Said::Switch(false));
                    }
                }
                _ => layer.set(option.name, texts(matches, option.name)),
            }
        }
        if matches.contains_id(KERNEL) {
            layer.set("kernel", texts(matches, KERNEL));
        }
        Ok(RunArgs {
            layer,
            config: matches.get_one("config").cloned(),
            dry_run: matches.get_flag("dry-run"),
            verbose: matches.get_count("verbose"),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The flags of an option: one, or two of a switch that can be set both ways.
fn flags(option: &'static Opt) -> Vec<Arg> {
    let name = option.name;
    if let Kind::Switch { yes, no } = option.kind {
        let flag = |name: String, help| {
            let flag = Arg::new(name.clone()).long(name).help(help);
            flag.action(ArgAction::SetTrue)
        };
        let on = yes.map(|help| flag(name.into(), help));
        let off = no.map(|help| flag(negated(name), help));
        return match (on, off) {
            // Of the two, the last counts.
            (Some(on), Some(off)) => {
                vec![on.overrides_with(negated(name)), off.overrides_with(name)]
            }
            (on, off) => on.into_iter().chain(off).collect(),
        };
    }
    let parser = match option.kind {
        Kind::Path | Kind::Paths => ValueParser::path_buf(),
        Kind::Choice(choices) => PossibleValuesParser::new(choices()).into(),
        _ => ValueParser::string(),
    };
    let flag = Arg::new(name)
        .long(name)
        .short(option.short)
        .value_name(option.value)
        .value_parser(parser)
        .help(option.help)
        .allow_hyphen_values(option.dashes)
        .allow_negative_numbers(matches!(option.kind, Kind::Amount))
        .action(match option.kind.is_list() {
            true => ArgAction::Append,
            false => ArgAction::Set,
        });
    vec![match option.more {
        "" => flag,
        more => flag.long_help(format!("{}\n\n{more}", option.help)),
    }]
}

/// The flag that switches an option off.
fn negated(name: &str) -> String {
    format!("no-{name}")
}

/// The values of a flag as they were typed.
fn texts(matches: &ArgMatches, id: &str) -> Said {
    let values = matches.get_raw(id).into_iter().flatten();
    Said::Texts(values.map(OsString::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        RunArgs::augment_args(Command::new("run"))
    }

    fn layer(words: &[&str]) -> Layer {
        let words = [&["run"], words].concat();
        let matches = command().try_get_matches_from(words).unwrap();
        RunArgs::from_arg_matches(&matches).unwrap().layer
    }

    #[test]
    fn clap_finds_no_fault_with_the_table() {
        command().debug_assert();
    }

    #[test]
    fn the_help_names_every_option() {
        let help = command().render_long_help().to_string();
        for option in OPTIONS {
            let (yes, no) = (
                format!("--{}", option.name),
                format!("--no-{}", option.name),
            );
            assert!(
                help.split_whitespace()
                    .any(|word| word == yes || word == no),
                "{yes}"
            );
        }
    }

    #[test]
    fn of_a_switch_the_last_flag_counts() {
        let reboot = |words: &[&str]| layer(words).switch("reboot");
        assert_eq!(reboot(&[]), None);
        assert_eq!(reboot(&["--reboot", "--no-reboot"]), Some(false));
        assert_eq!(reboot(&["--no-reboot", "--reboot"]), Some(true));
        assert_eq!(layer(&["--no-cache"]).switch("cache"), Some(false));
        assert_eq!(layer(&["--snapshot"]).switch("snapshot"), Some(true));
    }

    #[test]
    fn values_are_kept_as_they_were_typed() {
        let both = layer(&["a.elf", "-d", "x,ro", "--disk=y", "-m", "1G", "-m", "2G"]);
        assert_eq!(both.path("kernel"), Some("a.elf".into()));
        assert_eq!(both.texts("disk"), ["x,ro", "y"]);
        assert_eq!(both.text("memory").as_deref(), Some("2G"));
        assert_eq!(layer(&["-a", "-x", "-c-1"]).texts("append"), ["-x"]);
        assert_eq!(layer(&["--kernel", "b"]).path("kernel"), Some("b".into()));
    }
}
