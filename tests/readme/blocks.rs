//! The blocks of code in the README.

use crate::needs::missing;

#[derive(Debug, Clone)]
pub enum Content {
    /// Commands.
    Shell(Vec<String>),
    /// The lines of a screen.
    Session(Vec<String>),
    /// A fenced block with this word.
    Unknown(String),
}

#[derive(Debug, Clone)]
pub struct Block {
    pub line: usize,
    pub chapter: String,
    pub content: Content,
}

/// The blocks of code, in order.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut chapter = String::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let content = if let Some(title) = line.strip_prefix("## ") {
            chapter = title.to_owned();
            continue;
        } else if let Some(word) = line.strip_prefix("```") {
            let inside = lines
                .by_ref()
                .map(|(_, line)| line.to_owned())
                .take_while(|line| line != "```")
                .collect();
            match word {
                "console" => Content::Session(inside),
                other => Content::Unknown(other.to_owned()),
            }
        } else if let Some(first) = line.strip_prefix("    ") {
            let mut commands = vec![first.to_owned()];
            while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with("    ")) {
                // A command may go on in the next line.
                match commands.last_mut() {
                    Some(last) if last.ends_with('\\') => {
                        last.pop();
                        last.push_str(line.trim_start());
                    }
                    _ => commands.push(line.trim_start().to_owned()),
                }
            }
            Content::Shell(commands)
        } else {
            continue;
        };
        found.push(Block {
            line: index + 1,
            chapter: chapter.clone(),
            content,
        });
    }
    found
}

impl Block {
    /// `line_14_make_run`.
    pub fn name(&self) -> String {
        let first = match &self.content {
            Content::Shell(lines) | Content::Session(lines) => lines.first().unwrap(),
            Content::Unknown(word) => word,
        };
        let words: Vec<String> = first
            .trim_start_matches("$ ")
            .split_whitespace()
            .take(2)
            .map(|word| word.replace(|c: char| !c.is_alphanumeric(), "_"))
            .collect();
        format!("line_{}_{}", self.line, words.join("_"))
    }

    /// Why it cannot be run here.
    pub fn missing(&self) -> Option<String> {
        match &self.content {
            Content::Shell(commands) => commands.iter().find_map(|command| missing(command)),
            Content::Session(lines) => lines
                .iter()
                .filter_map(|line| line.strip_prefix("$ "))
                .find_map(missing),
            Content::Unknown(_) => None,
        }
    }
}
