//! The keys of the configuration file: what each takes, and what is said of a value or a line that is
//! wrong, with its place.

use std::path::Path;

use toml::de::DeValue;

use super::error::ConfigError;
use crate::error::nearest;

/// The keys, each with what it takes and an example of it.
pub const KEYS: [(&str, &str, &str); 17] = [
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
pub const NAMES: [&str; KEYS.len()] = {
    let mut names = [""; KEYS.len()];
    let mut at = 0;
    while at < KEYS.len() {
        names[at] = KEYS[at].0;
        at += 1;
    }
    names
};

/// Line and column, both counted from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// From the top.
    pub line: usize,
    /// From the left.
    pub column: usize,
}

impl Position {
    /// Where this byte of the text is.
    pub fn of(text: &str, byte: usize) -> Position {
        // An error at the end may point behind it.
        let before = text.get(..byte).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Position {
            line: before.matches('\n').count().saturating_add(1),
            column: line.chars().count().saturating_add(1),
        }
    }

    /// For messages.
    pub fn in_file(self, path: &Path) -> String {
        let Position { line, column } = self;
        format!("{}, line {line}, column {column}", path.display())
    }
}

/// The parser's words in one line.
pub fn in_one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join("; ")
}

/// A value that is TOML, but nothing for its key.
pub fn wrong_value(key: &str, value: &DeValue<'_>, place: String, message: &str) -> ConfigError {
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
pub fn syntax_help(text: &str, byte: usize, message: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let text = "a\n\u{e9}\u{e9}x";
        assert_eq!(Position::of(text, 6), Position { line: 2, column: 3 });
        assert_eq!(Position::of(text, 99), Position { line: 2, column: 4 });
    }

    proptest::proptest! {
        #[test]
        fn any_line_gets_help(text in "[a-z\\-=\"\\[\\]\n 0-9.,\u{e9}]{0,60}", byte in 0usize..80) {
            proptest::prop_assert!(!syntax_help(&text, byte, "").is_empty());
        }
    }
}
