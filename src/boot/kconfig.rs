//! A kernel's configuration: from inside the image (CONFIG_IKCONFIG) or from a file beside it.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::source::Source;

/// Around the gzip stream that kernel/configs.c embeds.
const START: &[u8] = b"IKCFG_ST";
const END: &[u8] = b"IKCFG_ED";
/// Debian's configuration has 270 KiB.
const MAX_BYTES: u64 = 8 << 20;

/// `CONFIG_...` and its value; options that are not set are absent.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Kconfig(HashMap<String, String>);

impl Kconfig {
    /// Reads the text of a `.config`.
    pub fn parse(text: &str) -> Self {
        Kconfig(
            text.lines()
                .filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect(),
        )
    }

    /// The configuration inside an unpacked vmlinux.
    pub fn embedded(vmlinux: &[u8]) -> Option<Self> {
        let start = find(vmlinux, START)?.checked_add(START.len())?;
        let rest = vmlinux.get(start..)?;
        let packed = rest.get(..find(rest, END)?)?;
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed)
            .take(MAX_BYTES)
            .read_to_string(&mut text)
            .ok()?;
        Some(Kconfig::parse(&text))
    }

    /// The configuration file that belongs to the image at `path`: `config-VERSION` beside
    /// `vmlinuz-VERSION`, as distributions have it, or `config` and `.config`, as builds do.
    pub fn beside(path: &Path) -> Option<(PathBuf, Self)> {
        let folder = path.parent()?;
        let name = path.file_name()?.to_str()?;
        let version = name.split_once('-').map(|(_, version)| version);
        let candidates = version
            .map(|version| format!("config-{version}"))
            .into_iter()
            .chain(["config".to_owned(), ".config".to_owned()]);
        candidates
            .map(|candidate| folder.join(candidate))
            .find_map(|candidate| {
                let source = Source::open(&candidate).ok()?;
                let bytes = source.read_up_to(0, MAX_BYTES as usize);
                let text = String::from_utf8(bytes).ok()?;
                Some((candidate, Kconfig::parse(&text)))
            })
    }

    /// `y`, `m`, a number or a text; `None` where the option is not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Built in.
    pub fn built_in(&self, name: &str) -> bool {
        self.get(name) == Some("y")
    }

    /// Options that are set.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing is set: not a configuration.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Where `needle` begins.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn options_are_read() {
        let config =
            Kconfig::parse("# x\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\nCONFIG_D=\"t\"\n");
        assert!(config.built_in("A"));
        assert_eq!(config.get("B"), None);
        assert_eq!(config.get("C"), Some("m"));
        assert_eq!(config.len(), 3);
    }

    #[test]
    fn an_embedded_configuration_is_found() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"CONFIG_A=y\n").unwrap();
        let mut image = b"....".to_vec();
        image.extend(START);
        image.extend(gz.finish().unwrap());
        image.extend(END);
        assert!(Kconfig::embedded(&image).unwrap().built_in("A"));
        assert_eq!(Kconfig::embedded(b"nothing"), None);
        assert_eq!(Kconfig::embedded(START), None);
    }
}
