//! What is said of a value or a line of the configuration file that is wrong, and its place. What the
//! keys are and take is in the table of [`options`].

use std::path::Path;

use toml::Spanned;
use toml::de::DeValue;

use super::error::ConfigError;
use super::options::{self, Kind, NAMES, OPTIONS, Opt};
use crate::error::nearest;

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

/// There are no tables.
pub fn no_table(name: &str, place: String) -> ConfigError {
    let (key, example) = OPTIONS.first().map_or(("", ""), |o| (o.name, o.example));
    ConfigError::Syntax {
        place,
        message: format!("there is no table '{name}'"),
        help: format!("the keys stand alone, without tables: {key} = {example}"),
    }
}

/// A value that is TOML, but nothing that `option` takes: `wrong`, which is `value` or a member of it.
/// Both are in `text`, which is the file at `path`.
pub fn wrong_value(
    option: &Opt,
    value: &Spanned<DeValue<'_>>,
    wrong: &Spanned<DeValue<'_>>,
    text: &str,
    path: &Path,
) -> ConfigError {
    let start = wrong.span().start;
    let (key, takes) = (option.name, option.kind.takes());
    let example = format!("write {key} = {}", option.example);
    let (message, help) = match (option.kind, wrong.get_ref()) {
        (Kind::Choice(choices), DeValue::String(text)) => {
            let choices = choices();
            let names: Vec<&str> = choices.iter().map(|choice| choice.get_name()).collect();
            let help = match nearest(text, names.iter().copied()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("it is one of: {}", names.join(", ")),
            };
            (format!("{key} '{text}': there is no such choice"), help)
        }
        (Kind::Amount, DeValue::Integer(number)) => {
            (format!("{key} {number}: the number is too large"), example)
        }
        (_, found) => {
            let kind = match found {
                DeValue::String(_) => "a string",
                DeValue::Integer(_) => "a number",
                DeValue::Float(_) if takes.contains("number") => "a fraction",
                DeValue::Float(_) => "a number",
                DeValue::Boolean(_) => "true or false",
                DeValue::Datetime(_) => "a date or time",
                DeValue::Array(_) => "a list",
                DeValue::Table(_) => "a table",
            };
            let is = match wrong.span() == value.span() {
                true => format!("is {kind}"),
                false => format!("has {kind} in its list"),
            };
            let is_header = matches!(found, DeValue::Table(_))
                && text.get(start..).is_some_and(|rest| rest.starts_with('['));
            let help = match is_header {
                true => syntax_help(text, start, ""),
                false => example,
            };
            (format!("{key} {is}, and takes {takes}"), help)
        }
    };
    ConfigError::Syntax {
        place: Position::of(text, start).in_file(path),
        message,
        help,
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
    let known = nearest(key, NAMES).and_then(options::find);
    let (name, example) = known
        .or(OPTIONS.first())
        .map_or(("", ""), |option| (option.name, option.example));
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
