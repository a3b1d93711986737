//! The configuration file: TOML, with the names of the command line's options.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::keys::{KEYS, NAMES, Position, in_one_line, syntax_help, wrong_value};
use super::{Layer, MemoryBacking, elsewhere};
use crate::boot::{ProtocolChoice, Unpack};

/// A configuration is a page of text; larger files are something else.
const MAX_BYTES: u64 = 1 << 20;

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
