//! What one source says: the command line, or the file. One layer lies over another, and what comes of
//! both is read by [`VmConfig::resolve`](super::VmConfig::resolve).
//!
//! A layer has a place for each entry of [`OPTIONS`]. Texts are kept as they were written: what they
//! mean is not its question.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::ValueEnum;

use super::options::OPTIONS;

/// What is said of one option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// One text, or several of an option that takes several.
    Texts(Vec<OsString>),
    /// On or off.
    Switch(bool),
}

/// One source of settings; what it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer {
    /// In the order of the table.
    said: [Option<Said>; OPTIONS.len()],
}

impl Layer {
    /// Says something of the option `name`, in place of what was said of it before. No text at all
    /// says nothing.
    pub fn set(&mut self, name: &str, said: Said) {
        let nothing = matches!(&said, Said::Texts(texts) if texts.is_empty());
        let mut places = OPTIONS.iter().zip(&mut self.said);
        match places.find(|(option, _)| option.name == name) {
            Some((_, place)) => *place = (!nothing).then_some(said),
            None => debug_assert!(false, "no option '{name}'"),
        }
    }

    /// Whether anything is said of the option `name`.
    pub fn says(&self, name: &str) -> bool {
        let mut places = OPTIONS.iter().zip(&self.said);
        places.any(|(option, said)| option.name == name && said.is_some())
    }

    /// `self` where it says something, `below` elsewhere; both of an option that adds.
    pub fn over(self, below: Layer) -> Layer {
        let mut said = below.said;
        for ((option, below), above) in OPTIONS.iter().zip(&mut said).zip(self.said) {
            match (below, above) {
                (Some(Said::Texts(below)), Some(Said::Texts(above))) if option.adds => {
                    below.extend(above);
                }
                (below, Some(above)) => *below = Some(above),
                (_, None) => {}
            }
        }
        Layer { said }
    }

    /// The value of a switch.
    pub fn switch(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Said::Switch(on) => Some(*on),
            Said::Texts(_) => {
                debug_assert!(false, "'{name}' is no switch");
                None
            }
        }
    }

    /// The value of an option that takes a text or an amount.
    pub fn text(&self, name: &str) -> Option<String> {
        self.texts(name).into_iter().next_back()
    }

    /// The values of an option that takes texts.
    pub fn texts(&self, name: &str) -> Vec<String> {
        let text = |text: &OsString| text.to_string_lossy().into_owned();
        self.words(name).iter().map(text).collect()
    }

    /// The value of an option that takes a path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.words(name).last().map(PathBuf::from)
    }

    /// The values of an option that takes paths.
    pub fn paths(&self, name: &str) -> Vec<PathBuf> {
        self.words(name).iter().map(PathBuf::from).collect()
    }

    /// The value of a choice, which was checked to be one of its words.
    pub fn choice<T: ValueEnum>(&self, name: &str) -> Option<T> {
        T::from_str(&self.text(name)?, false).ok()
    }

    /// All texts of all options.
    pub fn all_texts(&self) -> impl Iterator<Item = &OsStr> {
        self.said.iter().flatten().flat_map(|said| match said {
            Said::Texts(texts) => texts.iter().map(OsString::as_os_str),
            Said::Switch(_) => [].iter().map(OsString::as_os_str),
        })
    }

    fn words(&self, name: &str) -> &[OsString] {
        match self.get(name) {
            Some(Said::Texts(texts)) => texts,
            None => &[],
            Some(Said::Switch(_)) => {
                debug_assert!(false, "'{name}' is a switch");
                &[]
            }
        }
    }

    fn get(&self, name: &str) -> Option<&Said> {
        let at = OPTIONS.iter().position(|option| option.name == name);
        debug_assert!(at.is_some(), "no option '{name}'");
        self.said.get(at?)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Said {
        Said::Texts(texts.iter().map(OsString::from).collect())
    }

    #[test]
    fn the_upper_layer_replaces_or_adds() {
        let mut below = Layer::default();
        below.set("memory", texts(&["1G"]));
        below.set("append", texts(&["quiet"]));
        below.set("disk", texts(&["a", "b"]));
        below.set("reboot", Said::Switch(true));
        below.set("cpus", texts(&["2"]));
        let mut above = Layer::default();
        above.set("memory", texts(&["2G"]));
        above.set("append", texts(&["panic=5"]));
        above.set("disk", texts(&["c"]));
        above.set("reboot", Said::Switch(false));
        let both = above.over(below);
        assert_eq!(both.text("memory").as_deref(), Some("2G"));
        assert_eq!(both.texts("append"), ["quiet", "panic=5"]);
        assert_eq!(both.texts("disk"), ["c"]);
        assert_eq!(both.switch("reboot"), Some(false));
        assert_eq!(both.text("cpus").as_deref(), Some("2"));
        assert!(!both.says("initrd"));
    }

    #[test]
    fn an_empty_list_says_nothing() {
        let mut layer = Layer::default();
        layer.set("append", texts(&[]));
        assert_eq!(layer, Layer::default());
    }
}
