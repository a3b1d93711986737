//! Configuration files and command lines: a machine, or an error in words.
//!
//! A configuration that was accepted is written down as another file, each option by itself, and read again: it has to
//! be the same machine. What is typed goes the way that the program's own arguments go, up to the machine that they
//! describe.

use std::ffi::OsString;
use std::path::Path;

use bantam::cli::args::RunArgs;
use bantam::cli::{Cli, words};
use bantam::config::options::{Kind, OPTIONS};
use bantam::config::{Layer, VmConfig, file};
use bantam::error::Help;
use clap::{CommandFactory, FromArgMatches};

use crate::world::{file_of, path_of};

fn read(text: &[u8]) -> Option<Layer> {
    let open = file_of(text);
    let read = match file::read(&path_of(&open)) {
        Ok(read) => read,
        Err(error) => {
            assert!(!error.to_string().is_empty() && !error.help().is_empty());
            return None;
        }
    };
    if let Err(error) = VmConfig::resolve(&read.layer) {
        let located = read.locate(error, &Layer::default());
        assert!(!located.to_string().is_empty() && !located.help().is_empty());
        return None;
    }
    Some(read.layer)
}

/// The text of a file that says what `layer` says.
fn written(layer: &Layer) -> String {
    let mut text = String::new();
    let quoted = |word: &String| {
        let chars = word.chars().map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        });
        format!("\"{}\"", chars.collect::<String>())
    };
    for option in OPTIONS {
        if !layer.says(option.name) {
            continue;
        }
        let value = match option.kind {
            Kind::Switch { .. } => layer.switch(option.name).unwrap_or_default().to_string(),
            kind if kind.is_list() => {
                let words: Vec<_> = layer.texts(option.name).iter().map(quoted).collect();
                format!("[{}]", words.join(", "))
            }
            _ => layer.text(option.name).iter().map(quoted).collect(),
        };
        text += &format!("{} = {value}\n", option.name);
    }
    text
}

/// A file.
pub fn run(data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let Some(layer) = read(data) else { return };
    let text = written(&layer);
    let again =
        read(text.as_bytes()).unwrap_or_else(|| panic!("written again, it is refused:\n{text}"));
    let resolve = |layer| VmConfig::resolve(layer).map(|config| format!("{config:?}"));
    match (resolve(&layer), resolve(&again)) {
        (Ok(first), Ok(second)) => assert_eq!(first, second, "{text}"),
        _ => panic!("both were accepted before"),
    }
}

thread_local! {
    static COMMAND: clap::Command = Cli::command();
}

/// What is typed, a word in each line.
pub fn run_words(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let typed = text.split('\n').take(40).map(OsString::from);
    // A word that is the name of a file is looked for: none of those that the fuzzer may come upon.
    if text.split('\n').any(|word| Path::new(word).is_absolute()) {
        return;
    }
    let arguments = ["bantam".into()].into_iter().chain(typed);
    COMMAND.with(|command| {
        let Ok(ours) = words::translate(command, arguments) else {
            return;
        };
        let Ok(matches) = command.clone().try_get_matches_from(ours) else {
            return;
        };
        let Some(("run", matches)) = matches.subcommand() else {
            return;
        };
        let run = RunArgs::from_arg_matches(matches).expect("what clap has accepted");
        if let Err(error) = VmConfig::resolve(&run.layer) {
            assert!(!error.to_string().is_empty() && !error.help().is_empty());
        }
    });
}
