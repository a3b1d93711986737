//! The configuration file: TOML, with the names of the command line's options.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::{Layer, MemoryBacking, elsewhere};
use crate::boot::{ProtocolChoice, Unpack};
use crate::error::nearest;

/// A configuration is a page of text; larger files are something else.
const MAX_BYTES: u64 = 1 << 20;

/// The keys, each with what it takes and an example of it.
const KEYS: [(&str, &str, &str); 17] = [
    ("kernel", "a string", r#""vmlinuz""#),
    ("initrd", "a string", r#""initrd.img""#),
    ("append", "a string or a list of strings", r#""quiet""#),
    ("cmdline", "a string", r#""console=ttyS0""#),
    (
        "disk",
        "a string or a list of strings",
        r#"["root.img", "data.img,ro"]"#,
    ),
    ("snapshot", "true or false", "true"),
    ("cdrom", "a string or a list of strings", r#""live.iso""#),
    ("iso", "a string", r#""live.iso""#),
    ("cpus", "a number or a string", "4"),
    ("memory", "a number or a string", r#""2G""#),
    ("memory-backing", "a string", r#""thp""#),
    ("console", "a string", r#""stdio""#),
    ("protocol", "a string", r#""auto""#),
    ("unpack", "a string", r#""host""#),
    ("cache", "true or false", "true"),
    ("reboot", "true or false", "true"),
    ("time-limit", "a number or a string", r#""10m""#),
];
/// Their names.
#[expect(
    clippy::indexing_slicing,
    reason = "the compiler does it, and would say so"
)]
const NAMES: [&str; KEYS.len()] = {
    let mut names = [""; KEYS.len()];
    let mut at = 0;
    while at < KEYS.len() {
        names[at] = KEYS[at].0;
        at += 1;
    }
    names
};

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl From<Texts> for Vec<String> {
    fn from(texts: Texts) -> Self {
        match texts {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }
}

/// A number, or a text that begins with one.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number or a string")]
enum Amount {
    Number(i64),
    Text(String),
}

impl From<Amount> for String {
    fn from(amount: Amount) -> Self {
        match amount {
            Amount::Number(n) => n.to_string(),
            Amount::Text(text) => text,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    append: Option<Texts>,
    cmdline: Option<String>,
    disk: Option<Texts>,
    snapshot: Option<bool>,
    cdrom: Option<Texts>,
    iso: Option<PathBuf>,
    cpus: Option<Amount>,
    memory: Option<Amount>,
    memory_backing: Option<MemoryBacking>,
    console: Option<String>,
    protocol: Option<ProtocolChoice>,
    unpack: Option<Unpack>,
    cache: Option<bool>,
    reboot: Option<bool>,
    time_limit: Option<Amount>,
}

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

/// Line and column, both counted from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    line: usize,
    column: usize,
}

impl Position {
    fn of(text: &str, byte: usize) -> Position {
        // An error at the end may point behind it.
        let before = text.get(..byte).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Position {
            line: before.matches('\n').count().saturating_add(1),
            column: line.chars().count().saturating_add(1),
        }
    }

    fn in_file(self, path: &Path) -> String {
        let Position { line, column } = self;
        format!("{}, line {line}, column {column}", path.display())
    }
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
    let bytes = std::fs::read(path).map_err(failed)?;
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
        let typed = match name {
            "kernel" => flags.kernel.is_some(),
            "initrd" => flags.initrd.is_some(),
            "iso" => flags.iso.is_some(),
            "cdrom" => !flags.cdroms.is_empty(),
            "cpus" => flags.cpus.is_some(),
            "memory" => flags.memory.is_some(),
            "console" => flags.console.is_some(),
            "time-limit" => flags.time_limit.is_some(),
            "disk" => !flags.disks.is_empty(),
            _ => true,
        };
        let mut places = self.places.iter().filter(|(key, _)| *key == name);
        let nth = match name {
            "disk" => {
                let mut texts = self.layer.disks.iter();
                texts.position(|text| text.starts_with(&value)).unwrap_or(0)
            }
            _ => 0,
        };
        match places.nth(nth) {
            Some((_, byte)) if !typed => ConfigError::At {
                place: Position::of(&self.text, *byte).in_file(&self.path),
                source: Box::new(error),
            },
            _ => error,
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
    let table = table.get_ref();
    let mut places = Vec::new();
    for (key, value) in table {
        let Some(name) = NAMES.iter().find(|name| **name == key.get_ref().as_ref()) else {
            return Err(match value.get_ref() {
                DeValue::Table(_) => ConfigError::Syntax {
                    place: place(key.span().start),
                    message: format!("there is no table '{}'", key.get_ref()),
                    help: format!(
                        "the keys stand alone, without tables: {} = {}",
                        KEYS[0].0, KEYS[0].2
                    ),
                },
                _ => ConfigError::UnknownKey {
                    key: key.get_ref().to_string(),
                    place: place(key.span().start),
                    known: &NAMES,
                },
            });
        };
        let at = |value: &Spanned<DeValue<'_>>| (*name, value.span().start);
        match value.get_ref() {
            DeValue::Array(values) => places.extend(values.iter().map(at)),
            _ => places.push(at(value)),
        }
    }
    let file: File = toml::from_str(text).map_err(|error| {
        let byte = start(&error);
        // Whose value it is.
        let found = table
            .iter()
            .find(|(key, value)| key.span().start <= byte && byte <= value.span().end);
        let Some((key, value)) = found else {
            return ConfigError::Syntax {
                place: place(byte),
                message: in_one_line(error.message()),
                help: syntax_help(text, byte, error.message()),
            };
        };
        wrong_value(
            key.get_ref(),
            value.get_ref(),
            place(value.span().start),
            error.message(),
        )
    })?;
    Ok(ConfigFile {
        layer: layer(file, folder),
        path: path.into(),
        text: text.into(),
        places,
    })
}

fn in_one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join("; ")
}

/// A value that is TOML, but nothing for its key.
fn wrong_value(key: &str, value: &DeValue<'_>, place: String, message: &str) -> ConfigError {
    let known = KEYS.iter().find(|(name, ..)| *name == key);
    let (takes, example) = known.map_or(("another value", "..."), |(_, takes, example)| {
        (*takes, *example)
    });
    // serde's words for a choice: "unknown variant `x`, expected one of `a`, `b`".
    let choices: Vec<&str> = match message.starts_with("unknown variant") {
        true => message.split('`').skip(3).step_by(2).collect(),
        false => Vec::new(),
    };
    match value.as_str() {
        Some(text) if !choices.is_empty() => ConfigError::Syntax {
            place,
            message: format!("{key} '{text}': there is no such choice"),
            help: match nearest(text, choices.iter().copied()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("it is one of: {}", choices.join(", ")),
            },
        },
        _ => {
            let kind = match value {
                DeValue::String(_) => "a string",
                DeValue::Integer(_) | DeValue::Float(_) => "a number",
                DeValue::Boolean(_) => "true or false",
                DeValue::Datetime(_) => "a date or time",
                DeValue::Array(_) => "a list",
                DeValue::Table(_) => "a table",
            };
            let message = match kind == takes
                || takes.contains("list") && kind == "a list"
                || takes.contains("number") && kind == "a number"
            {
                // The kind is right, and what is in it is not.
                true => format!("{key} takes {takes}: {}", in_one_line(message)),
                false => format!("{key} is {kind}, and takes {takes}"),
            };
            ConfigError::Syntax {
                place,
                message,
                help: format!("write {key} = {example}"),
            }
        }
    }
}

/// What to do about the line in which the parser stopped at `byte`.
fn syntax_help(text: &str, byte: usize, message: &str) -> String {
    let start = text
        .get(..byte)
        .unwrap_or(text)
        .rfind('\n')
        .map_or(0, |at| at.saturating_add(1));
    let line = text
        .get(start..)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .trim();
    let (key, value) = match line.split_once('=') {
        Some((key, value)) => (key.trim(), value.trim()),
        None => match line.split_once(char::is_whitespace) {
            Some((key, value)) => (key.trim(), value.trim()),
            None => (line, ""),
        },
    };
    let known = nearest(key, NAMES).and_then(|near| KEYS.iter().find(|(name, ..)| *name == near));
    let (name, example) = known.map_or(("kernel", KEYS[0].2), |(name, _, example)| {
        (*name, *example)
    });
    let quotes = value.matches('"').count();
    let plain = !value.is_empty()
        && value
            .chars()
            .all(|c| c.is_alphanumeric() || "./_-,=:".contains(c));
    if message.contains("duplicate key") {
        format!("keep one '{name}' of the two")
    } else if line.starts_with('[') {
        format!("there are no tables: leave '{line}' away, and write {name} = {example}")
    } else if known.is_some() && plain {
        format!("put it into quotes: {name} = \"{value}\"")
    } else if known.is_some() && quotes % 2 == 1 {
        format!("a string begins and ends with quotes: {name} = {example}")
    } else if known.is_some() && value.starts_with('[') && !value.contains(']') {
        "end the list with ']', and put a comma between its members".into()
    } else {
        format!("write {name} = {example}")
    }
}

/// What the file says, its paths beside `folder`.
fn layer(file: File, folder: &Path) -> Layer {
    let beside = |path: PathBuf| match elsewhere::is_address(&path) {
        true => path,
        false => folder.join(path),
    };
    let disks: Vec<String> = file.disk.map(Vec::from).unwrap_or_default();
    Layer {
        kernel: file.kernel.map(beside),
        initrd: file.initrd.map(beside),
        iso: file.iso.map(beside),
        append: file.append.map(Vec::from).unwrap_or_default(),
        cmdline: file.cmdline,
        disks: disks.iter().map(|text| disk_beside(text, folder)).collect(),
        snapshot: file.snapshot,
        cdroms: file
            .cdrom
            .map(Vec::from)
            .unwrap_or_default()
            .iter()
            .map(|path| beside(path.into()))
            .collect(),
        cpus: file.cpus.map(String::from),
        memory: file.memory.map(String::from),
        memory_backing: file.memory_backing,
        console: file.console.map(|text| match text.strip_prefix("file=") {
            Some(path) if !path.is_empty() => {
                format!("file={}", folder.join(path).display())
            }
            _ => text,
        }),
        protocol: file.protocol,
        unpack: file.unpack,
        cache: file.cache,
        reboot: file.reboot,
        time_limit: file.time_limit.map(String::from),
    }
}

/// Puts the folder before the path in `[path=]PATH,...`, whose commas are doubled there.
fn disk_beside(text: &str, folder: &Path) -> String {
    let text = text.strip_prefix("path=").unwrap_or(text);
    let Some(folder) = folder.to_str().filter(|f| !f.is_empty()) else {
        return text.into();
    };
    if text.starts_with('/') || text.is_empty() || elsewhere::is_address(Path::new(text)) {
        return text.into();
    }
    format!("{}/{text}", folder.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Help;

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
            "#,
        )
        .unwrap();
        assert_eq!(layer.kernel, Some("/m/vmlinux".into()));
        assert_eq!(layer.initrd, Some("/abs/initrd".into()));
        assert_eq!(layer.disks, ["/m/root.img,ro"]);
        assert_eq!(layer.snapshot, Some(true));
        assert_eq!(layer.iso, Some("/m/install.iso".into()));
        assert_eq!(layer.cdroms, [PathBuf::from("/m/live.iso")]);
        assert_eq!(layer.cpus.as_deref(), Some("4"));
        assert_eq!(layer.memory_backing, Some(MemoryBacking::Shared));
        assert_eq!(layer.protocol, Some(ProtocolChoice::Pvh));
        assert_eq!(
            (layer.unpack, layer.cache),
            (Some(Unpack::Guest), Some(false))
        );
        assert_eq!(layer.reboot, Some(true));
        assert_eq!(layer.time_limit.as_deref(), Some("30"));
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
    fn columns_count_characters() {
        let error = read("kernel = \"\u{e9}\u{e9}\" x").unwrap_err();
        assert!(error.to_string().contains("line 1, column 15"), "{error}");
        assert_eq!(Position::of("ab", 9), Position { line: 1, column: 3 });
    }

    #[test]
    fn each_key_takes_its_example() {
        for (key, takes, example) in KEYS {
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
