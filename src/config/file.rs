//! The configuration file: TOML, with the names of the command line's options.

use std::io::Read;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Layer;
use super::error::ConfigError;
use super::keys::{Position, in_one_line, no_table, syntax_help, wrong_value};
use super::layer::Said;
use super::options::{self, Kind, NAMES, Opt};

/// A configuration is a page of text; larger files are something else.
const MAX_BYTES: u64 = 1 << 20;

/// A file that has been read.
#[derive(Debug)]
pub struct ConfigFile {
    /// What it says.
    pub layer: Layer,
    path: PathBuf,
    text: String,
    /// Where each value begins in the text, and its key. The members of a list have a place each.
    places: Vec<(&'static str, usize)>,
}

/// Reads the file at `path`. Relative paths in it start at its folder.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(path: &Path) -> Result<ConfigFile, ConfigError> {
    let failed = |source| ConfigError::File {
        path: path.into(),
        source,
    };
    let none = |what: String| ConfigError::NoConfig {
        path: path.into(),
        what,
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    if meta.is_dir() {
        return Err(none("is a directory".into()));
    }
    if !meta.is_file() {
        return Err(none("is a device, pipe or socket".into()));
    }
    if meta.len() > MAX_BYTES {
        let mib = meta.len().div_ceil(1 << 20);
        return Err(none(format!(
            "has {mib} MiB, and a configuration has at most 1"
        )));
    }
    let mut bytes = Vec::new();
    // A file may be longer than it says, as those in /proc are.
    std::fs::File::open(path)
        .and_then(|file| {
            file.take(MAX_BYTES.saturating_add(1))
                .read_to_end(&mut bytes)
        })
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(none("has more than 1 MiB, and no configuration has".into()));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let (good, bad) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
        let good = String::from_utf8_lossy(good);
        let byte = bad.first().copied().unwrap_or_default();
        ConfigError::Syntax {
            place: Position::of(&good, good.len()).in_file(path),
            message: format!("the byte {byte:#04x} is not UTF-8 text"),
            help: "save the file as UTF-8, or give the TOML file if this is another one".into(),
        }
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(&text, path, folder)
}

impl ConfigFile {
    /// `error`, which came of this file's words and those of `flags`, with its place if it was the
    /// file's.
    pub fn locate(&self, error: ConfigError, flags: &Layer) -> ConfigError {
        let (option, value) = match &error {
            ConfigError::Value { key, value, .. } => (*key, value.clone()),
            ConfigError::UnknownKey { place, .. } => match place.split_once(' ') {
                Some((option, value)) => (option, value.trim_matches('\'').to_owned()),
                None => (place.as_str(), String::new()),
            },
            _ => return error,
        };
        let name = option.trim_start_matches('-');
        // What is typed wins over the file, so the mistake is in what was typed.
        if options::find(name).is_none_or(|option| flags.says(option.name)) {
            return error;
        }
        let mut texts = self.layer.texts(name).into_iter();
        let nth = texts.position(|text| text.starts_with(&value));
        let mut places = self.places.iter().filter(|(key, _)| *key == name);
        match places.nth(nth.unwrap_or(0)) {
            Some((_, byte)) => ConfigError::At {
                place: Position::of(&self.text, *byte).in_file(&self.path),
                source: Box::new(error),
            },
            None => error,
        }
    }
}

fn parse(text: &str, path: &Path, folder: &Path) -> Result<ConfigFile, ConfigError> {
    let place = |byte| Position::of(text, byte).in_file(path);
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: place(start(&error)),
        message: in_one_line(error.message()),
        help: syntax_help(text, start(&error), error.message()),
    })?;
    let mut known = Vec::new();
    for (key, value) in table.get_ref() {
        match (options::find(key.get_ref()), value.get_ref()) {
            (Some(option), _) => known.push((option, value)),
            (None, DeValue::Table(_)) => {
                return Err(no_table(key.get_ref(), place(key.span().start)));
            }
            (None, _) => {
                return Err(ConfigError::UnknownKey {
                    key: key.get_ref().to_string(),
                    place: place(key.span().start),
                    known: &NAMES,
                });
            }
        }
    }
    let mut layer = Layer::default();
    let mut places = Vec::new();
    for (option, value) in known {
        let said = read_value(option, value, folder)
            .map_err(|wrong| wrong_value(option, value, wrong, text, path))?;
        layer.set(option.name, said);
        match value.get_ref() {
            DeValue::Array(members) => {
                places.extend(
                    members
                        .iter()
                        .map(|member| (option.name, member.span().start)),
                );
            }
            _ => places.push((option.name, value.span().start)),
        }
    }
    Ok(ConfigFile {
        layer,
        path: path.into(),
        text: text.into(),
        places,
    })
}

/// What a value says of its option, with its paths beside `folder`.
///
/// # Errors
/// The value, or the member of the list, that the option does not take.
fn read_value<'v>(
    option: &Opt,
    value: &'v Spanned<DeValue<'v>>,
    folder: &Path,
) -> Result<Said, &'v Spanned<DeValue<'v>>> {
    let text = |value: &'v Spanned<DeValue<'v>>| match (option.kind, value.get_ref()) {
        (Kind::Amount, DeValue::Integer(number)) => {
            i64::from_str_radix(number.as_str(), number.radix())
                .map(|number| number.to_string().into())
                .map_err(|_| value)
        }
        (Kind::Choice(choices), DeValue::String(text)) => choices()
            .iter()
            .any(|choice| choice.get_name() == text)
            .then(|| text.as_ref().into())
            .ok_or(value),
        (_, DeValue::String(text)) => Ok((option.beside)(text, folder)),
        _ => Err(value),
    };
    Ok(match (option.kind, value.get_ref()) {
        (Kind::Switch { .. }, DeValue::Boolean(on)) => Said::Switch(*on),
        (Kind::Switch { .. }, _) => return Err(value),
        (kind, DeValue::Array(members)) if kind.is_list() => {
            Said::Texts(members.iter().map(text).collect::<Result<_, _>>()?)
        }
        _ => Said::Texts(vec![text(value)?]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{ProtocolChoice, Unpack};
    use crate::config::options::OPTIONS;
    use crate::error::Help;
    use crate::memory::Backing;

    fn read(text: &str) -> Result<Layer, ConfigError> {
        parse(text, Path::new("vm.toml"), Path::new("/m")).map(|file| file.layer)
    }

    #[test]
    fn all_keys_and_both_spellings_of_numbers() {
        let layer = read(
            r#"
            kernel = "vmlinux"
            initrd = "/abs/initrd"
            append = ["quiet", "ro"]
            disk = "root.img,ro"
            snapshot = true
            cdrom = "live.iso"
            iso = "install.iso"
            cpus = 4
            memory = "2G"
            memory-backing = "shared"
            console = "none"
            protocol = "pvh"
            unpack = "guest"
            cache = false
            reboot = true
            time-limit = 30
            uuid = "123e4567-e89b-12d3-a456-426614174000"
            credential = "a=b"
            credential-file = ["c=d", "e=/f"]
            "#,
        )
        .unwrap();
        assert_eq!(layer.path("kernel"), Some("/m/vmlinux".into()));
        assert_eq!(layer.path("initrd"), Some("/abs/initrd".into()));
        assert_eq!(layer.texts("append"), ["quiet", "ro"]);
        assert_eq!(layer.texts("disk"), ["/m/root.img,ro"]);
        assert_eq!(layer.switch("snapshot"), Some(true));
        assert_eq!(layer.path("iso"), Some("/m/install.iso".into()));
        assert_eq!(layer.paths("cdrom"), [PathBuf::from("/m/live.iso")]);
        assert_eq!(layer.text("cpus").as_deref(), Some("4"));
        assert_eq!(layer.choice("memory-backing"), Some(Backing::Shared));
        assert_eq!(layer.choice("protocol"), Some(ProtocolChoice::Pvh));
        assert_eq!(layer.choice("unpack"), Some(Unpack::Guest));
        assert_eq!(layer.switch("cache"), Some(false));
        assert_eq!(layer.switch("reboot"), Some(true));
        assert_eq!(layer.text("time-limit").as_deref(), Some("30"));
        assert!(layer.says("uuid"));
        assert_eq!(layer.texts("credential"), ["a=b"]);
        assert_eq!(layer.texts("credential-file"), ["c=/m/d", "e=/f"]);
    }

    #[test]
    fn numbers_of_any_base() {
        let cpus = |text: &str| read(text).unwrap().text("cpus");
        assert_eq!(cpus("cpus = 0x1_0").as_deref(), Some("16"));
        assert_eq!(cpus("cpus = +3").as_deref(), Some("3"));
        assert_eq!(cpus("cpus = -1").as_deref(), Some("-1"));
    }

    #[test]
    fn the_member_of_a_list_that_is_wrong_has_its_place() {
        let error = read("disk = [\"a\",\n 5]").unwrap_err();
        assert_eq!(
            error.to_string(),
            "configuration vm.toml, line 2, column 2: disk has a number in its list, and takes a \
             string or a list of strings"
        );
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let error = read("cpus = 1\n  memroy = 5").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown key 'memroy' in vm.toml, line 2, column 3"
        );
        assert_eq!(error.help(), "did you mean 'memory'?");
    }

    #[test]
    fn each_key_takes_its_example() {
        for option in OPTIONS {
            let (key, takes, example) = (option.name, option.kind.takes(), option.example);
            let layer = read(&format!("{key} = {example}"));
            assert!(layer.is_ok(), "{key}: {layer:?}");
            let error = read(&format!("{key} = 1979-05-27")).unwrap_err();
            assert!(error.to_string().contains(takes), "{error}");
            assert!(error.help().contains(example), "{}", error.help());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z\\-=\"\\[\\]\n 0-9.,]{0,120}") {
            let _ = read(&text);
        }
    }
}
