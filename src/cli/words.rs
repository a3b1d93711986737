//! The arguments before clap reads them: words of other programs are put into ours or refused with
//! an answer, and so is whatever only looks like one of our short options.
//!
//! clap reads `-daemonize` as `-d aemonize`, a disk, and `-hda` as a wish for help. So every argument
//! that begins with a dash is looked at here first. What belongs to the option before it is left
//! alone, as is everything behind `--`. Which options there are, and which of them take a value, is
//! asked of clap's own description of the commands.

use std::ffi::OsString;
use std::path::Path;

use clap::{Arg, Command};

use super::habit_values::instead;
use super::habits::{Answer, HABITS, Habit};
use crate::error::{ExitStatus, Failure, nearest};

/// What an argument is.
enum Found<'a> {
    /// An option of ours, in our spelling, and whether the next argument is its value.
    Ours(String, bool),
    /// A word of another program, and what stands behind its `=`.
    Theirs(&'static Habit, Option<&'a str>),
    /// No option.
    Plain,
    /// Neither.
    Unknown,
}

/// The arguments, for clap.
///
/// # Errors
/// A word that is not for us, with what to do instead.
pub fn translate(
    cli: &Command,
    args: impl Iterator<Item = OsString>,
) -> Result<Vec<OsString>, Failure> {
    let mut args = args.peekable();
    let mut ours: Vec<OsString> = args.next().into_iter().collect();
    let mut place = Place::top(cli);
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else {
            // A path in another encoding.
            ours.push(arg);
            continue;
        };
        if text == "--" {
            ours.push(arg);
            break;
        }
        let next = args.peek().and_then(|next| next.to_str());
        match place.find(text, next) {
            Found::Ours(word, takes_next) => {
                ours.push(word.into());
                if takes_next {
                    ours.extend(args.next());
                }
            }
            Found::Theirs(habit, behind) => {
                let value = match behind {
                    Some(value) => value.to_owned(),
                    None if habit.value => {
                        let next = args.next().unwrap_or_default();
                        next.to_string_lossy().into_owned()
                    }
                    None => String::new(),
                };
                let words = place.answer(text, habit, &habit.answer, &value)?;
                ours.extend(words.into_iter().map(OsString::from));
            }
            Found::Plain => {
                let no_command = place.command.is_none()
                    && place.current().find_subcommand(text).is_none()
                    && text != "help";
                if no_command && Path::new(text).is_file() {
                    return Err(usage(
                        format!("'{text}' is a file, and no command"),
                        format!("a machine is started by 'bantam run {text}'"),
                    ));
                }
                place.descend(text);
                ours.push(arg);
            }
            Found::Unknown => return Err(place.unknown(text)),
        }
    }
    ours.extend(args);
    Ok(ours)
}

/// Which command the arguments have reached.
struct Place<'a> {
    top: &'a Command,
    /// `None` before a command is named.
    command: Option<&'a Command>,
}

impl<'a> Place<'a> {
    fn top(cli: &'a Command) -> Self {
        Place {
            top: cli,
            command: None,
        }
    }

    /// Goes on to the subcommand of this name, where there is one.
    fn descend(&mut self, name: &str) {
        if let Some(below) = self.current().find_subcommand(name) {
            self.command = Some(below);
        }
    }

    fn current(&self) -> &'a Command {
        self.command.unwrap_or(self.top)
    }

    /// Habits are for the command that starts a machine.
    fn runs(&self) -> bool {
        self.command
            .is_some_and(|command| command.get_name() == "run")
    }

    fn long(&self, name: &str) -> Option<&'a Arg> {
        let mut args = self.current().get_arguments();
        args.find(|arg| arg.get_long() == Some(name))
    }

    fn short(&self, letter: char) -> Option<&'a Arg> {
        let mut args = self.current().get_arguments();
        args.find(|arg| arg.get_short() == Some(letter))
    }

    /// What `text` is; `next` is what follows.
    fn find<'t>(&self, text: &'t str, next: Option<&str>) -> Found<'t> {
        if let Some(word) = text.strip_prefix("--") {
            self.long_word(text, word)
        } else if let Some(word) = text.strip_prefix('-') {
            // A dash alone, or a number below zero: clap knows where those are allowed.
            match word.chars().next() {
                None | Some('0'..='9') => Found::Plain,
                Some(first) => self.short_word(text, word, first, next),
            }
        } else {
            Found::Plain
        }
    }

    fn long_word<'t>(&self, text: &'t str, word: &'t str) -> Found<'t> {
        let (name, value) = split(word);
        if let Some(arg) = self.long(name) {
            return Found::Ours(text.to_owned(), takes_value(arg) && value.is_none());
        }
        match name {
            "help" => Found::Ours(text.to_owned(), false),
            "version" if self.command.is_none() => Found::Ours(text.to_owned(), false),
            _ => self.foreign(name, value),
        }
    }

    fn short_word<'t>(
        &self,
        text: &'t str,
        word: &'t str,
        first: char,
        next: Option<&str>,
    ) -> Found<'t> {
        let rest = word.get(first.len_utf8()..).unwrap_or_default();
        let arg = self.short(first);
        if rest.is_empty() {
            // docker's -v takes a folder of the host and its place in the guest.
            if self.runs() && first == 'v' && next.is_some_and(is_volume) {
                return self.foreign("volume", None);
            }
            return match (arg, first) {
                (Some(arg), _) => Found::Ours(text.to_owned(), takes_value(arg)),
                (None, 'h') => Found::Ours(text.to_owned(), false),
                (None, 'V') if self.command.is_none() => Found::Ours(text.to_owned(), false),
                _ => self.foreign(word, None),
            };
        }
        let (name, value) = split(word);
        if !self.runs() {
            // Nobody's habit, and clap would print the help.
            return match (self.command, first) {
                (None, _) | (_, 'h') => Found::Unknown,
                _ => Found::Ours(text.to_owned(), false),
            };
        }
        if let theirs @ Found::Theirs(..) = self.foreign(name, value) {
            return theirs;
        }
        if let Some(arg) = self.long(name) {
            return Found::Ours(format!("--{word}"), takes_value(arg) && value.is_none());
        }
        // -m2G, -d/dev/sdb, -vv; but a letter behind the option's is another word.
        match arg {
            Some(arg) if takes_value(arg) && !rest.starts_with(char::is_alphabetic) => {
                Found::Ours(text.to_owned(), false)
            }
            Some(arg) if !takes_value(arg) && rest.chars().all(|letter| letter == first) => {
                Found::Ours(text.to_owned(), false)
            }
            _ => Found::Unknown,
        }
    }

    /// A word that is none of ours.
    fn foreign<'t>(&self, name: &str, value: Option<&'t str>) -> Found<'t> {
        let habit = HABITS.iter().find(|habit| {
            let mut words = habit.words.iter();
            words.any(|word| word.trim_start_matches('-') == name)
        });
        match habit {
            Some(habit) if self.runs() => Found::Theirs(habit, value),
            _ => Found::Unknown,
        }
    }

    /// What `word` becomes in our words.
    fn answer(
        &self,
        word: &str,
        habit: &Habit,
        answer: &Answer,
        value: &str,
    ) -> Result<Vec<String>, Failure> {
        let shown = match habit.value && !word.contains('=') {
            true => format!("{word} {value}"),
            false => word.to_owned(),
        };
        if habit.value && value.is_empty() {
            return Err(usage(
                format!("'{word}' has no value"),
                "write it behind the option, or leave both away".into(),
            ));
        }
        match answer {
            Answer::Already => Ok(Vec::new()),
            Answer::Same(ours) if self.has(ours) => {
                let value = habit.value.then(|| value.to_owned());
                Ok(std::iter::once((*ours).to_owned()).chain(value).collect())
            }
            Answer::Same(ours) => Err(usage(
                format!("'{shown}': not there yet: there is no '{ours}'"),
                "leave it away".into(),
            )),
            Answer::ByValue(take, otherwise) => match take(value) {
                Some(words) => Ok(words),
                None => self.answer(word, habit, otherwise, value),
            },
            Answer::NotNeeded(why) => Err(usage(
                format!("'{shown}' is not needed: leave it away"),
                (*why).to_owned(),
            )),
            Answer::Use(what) => Err(usage(
                format!("'{shown}' is not an option of 'bantam run'"),
                format!("use {}", instead(what, value)),
            )),
            Answer::NotYet(what, help) => Err(usage(
                format!("'{shown}': not there yet: {what}"),
                (*help).to_owned(),
            )),
        }
    }

    fn has(&self, option: &str) -> bool {
        let name = option.trim_start_matches('-');
        name == "help" || self.long(name).is_some()
    }

    fn unknown(&self, text: &str) -> Failure {
        let name = split(text.trim_start_matches('-')).0;
        let command = match self.command {
            Some(command) => format!("bantam {}", command.get_name()),
            None => "bantam".to_owned(),
        };
        let run = self.top.find_subcommand("run");
        let belongs_to_run = Place {
            top: self.top,
            command: run,
        };
        if self.command.is_none() && !matches!(belongs_to_run.find(text, None), Found::Unknown) {
            return usage(
                format!("'{text}' stands before a command"),
                "a machine is started by 'bantam run': write its options behind that".into(),
            );
        }
        let ours = self.current().get_arguments().filter_map(Arg::get_long);
        let ours = ours.map(|long| (long, format!("--{long}")));
        let habits = HABITS.iter().filter(|_| self.runs());
        let theirs = habits
            .flat_map(|habit| habit.words)
            .map(|word| (word.trim_start_matches('-'), (*word).to_owned()));
        // Ours first: of two that are as near, the first is taken.
        let known: Vec<_> = ours
            .chain(theirs)
            .filter(|(name, _)| name.len() > 1)
            .collect();
        let near = nearest(name, known.iter().map(|(name, _)| *name))
            .and_then(|near| known.iter().find(|(name, _)| *name == near));
        usage(
            format!("unknown option '{text}'"),
            match near {
                Some((_, word)) => format!("did you mean '{word}'?"),
                None => format!("'{command} --help' lists the options"),
            },
        )
    }
}

/// What is said to somebody who has typed no command, or only the first of two: those there are, one
/// line for each.
pub fn commands(cli: &Command, args: &[OsString]) -> String {
    let mut place = Place::top(cli);
    let mut path = cli.get_name().to_owned();
    for arg in args.iter().skip(1).filter_map(|arg| arg.to_str()) {
        if place.current().find_subcommand(arg).is_some() {
            place.descend(arg);
            path = format!("{path} {arg}");
        }
    }
    let line = |command: &Command| {
        let about = command.get_about().map(ToString::to_string);
        format!(
            "  {path} {:<12} {}\n",
            command.get_name(),
            about.unwrap_or_default()
        )
    };
    let lines: String = place.current().get_subcommands().map(line).collect();
    format!("{lines}'{path} COMMAND --help' tells about one of them")
}

fn usage(error: String, help: String) -> Failure {
    Failure {
        status: ExitStatus::Usage,
        error,
        help,
    }
}

/// A folder and its place, and no address.
fn is_volume(text: &str) -> bool {
    text.contains(":/") && !text.contains("://")
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// `name=value`.
fn split(word: &str) -> (&str, Option<&str>) {
    match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    }
}
