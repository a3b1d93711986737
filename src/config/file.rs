//! The configuration file: TOML, with the names of the command line's options.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::ConfigError;
use super::{Layer, MemoryBacking};
use crate::boot::{ProtocolChoice, Unpack};

/// A configuration is a page of text; larger files are something else.
const MAX_BYTES: u64 = 1 << 20;

const KEYS: &[&str] = &[
    "kernel",
    "initrd",
    "append",
    "cmdline",
    "disk",
    "snapshot",
    "cdrom",
    "iso",
    "cpus",
    "memory",
    "memory-backing",
    "console",
    "protocol",
    "unpack",
    "cache",
    "reboot",
    "time-limit",
];

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

/// Reads the file at `path`. Relative paths in it start at its folder.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(path: &Path) -> Result<Layer, ConfigError> {
    let failed = |source| ConfigError::File {
        path: path.into(),
        source,
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() || meta.len() > MAX_BYTES {
        return Err(failed(std::io::Error::other(
            "not a configuration file of at most 1 MiB",
        )));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(&text, path, folder)
}

fn parse(text: &str, path: &Path, folder: &Path) -> Result<Layer, ConfigError> {
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        path: path.into(),
        line: error.span().map_or(1, |span| {
            let before = text.get(..span.start).unwrap_or_default();
            before.matches('\n').count().saturating_add(1)
        }),
        message: error.message().lines().collect::<Vec<_>>().join("; "),
    };
    let table: toml::Table = toml::from_str(text).map_err(syntax)?;
    if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(ConfigError::UnknownKey {
            key: key.clone(),
            place: path.display().to_string(),
            known: KEYS,
        });
    }
    let file: File = toml::from_str(text).map_err(syntax)?;
    let beside = |path: PathBuf| folder.join(path);
    let disks: Vec<String> = file.disk.map(Vec::from).unwrap_or_default();
    Ok(Layer {
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
            .map(|path| folder.join(path))
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
    })
}

/// Puts the folder before the path in `[path=]PATH,...`, whose commas are doubled there.
fn disk_beside(text: &str, folder: &Path) -> String {
    let text = text.strip_prefix("path=").unwrap_or(text);
    let Some(folder) = folder.to_str().filter(|f| !f.is_empty()) else {
        return text.into();
    };
    if text.starts_with('/') || text.is_empty() {
        return text.into();
    }
    format!("{}/{text}", folder.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Help;

    fn read(text: &str) -> Result<Layer, ConfigError> {
        parse(text, Path::new("vm.toml"), Path::new("/m"))
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
        let error = read("memroy = 5").unwrap_err();
        assert_eq!(error.to_string(), "unknown key 'memroy' in vm.toml");
        assert_eq!(error.help(), "did you mean 'memory'?");
    }

    #[test]
    fn mistakes_name_their_line() {
        assert!(matches!(
            read("kernel = \"a\"\ncpus = [1]\n"),
            Err(ConfigError::Syntax { line: 2, .. })
        ));
        assert!(matches!(
            read("kernel = \"a\"\n\n= 5\n"),
            Err(ConfigError::Syntax { line: 3, .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z\\-=\"\\[\\]\n 0-9.,]{0,120}") {
            let _ = read(&text);
        }
    }
}
