//! The README's commands, as a reader types them: from top to bottom, in a copy of the project.
//!
//! Indented blocks are commands for a shell; blocks called `console` are sessions, whose every
//! line is either typed behind its prompt or compared with what the screen shows (numbers may
//! differ; `...` stands for any lines). A block of another kind, or a command that this test does
//! not know, is a failure. The program is the one that `make install` has put in place, and where
//! this host's KVM runs no Linux, `bantam run` is the lab's, as the README tells.
//!
//! What a block makes, the later ones use: to run one, its predecessors are run first.

mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bantam::machine::host::{Backend, backend};
use common::pty::Session;
use common::{bantam, has_program, root, run_with, target};
use libtest_mimic::{Arguments, Trial};

/// What is typed at.
const PROMPTS: [&str; 4] = ["$ ", "bantam:/# ", "debian login: ", "root@debian:~# "];
/// For a whole Debian on an emulated processor that others use as well.
const PATIENCE: Duration = Duration::from_secs(400);

fn main() {
    let args = Arguments::from_args();
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = blocks(&text);
    let walk = Arc::new(Mutex::new(Walk::new(blocks.clone())));
    let mut trials = vec![
        common::trial("the_readme_has_commands_and_sessions", None, {
            let blocks = blocks.clone();
            move || {
                let count = |kind: fn(&Content) -> bool| {
                    blocks.iter().filter(|block| kind(&block.content)).count()
                };
                assert!(count(|c| matches!(c, Content::Shell(_))) >= 3);
                assert!(count(|c| matches!(c, Content::Session(_))) >= 3);
            }
        }),
        common::trial("every_make_target_that_is_named_exists", None, move || {
            targets(&text)
        }),
    ];
    let mut missing: Option<(String, String)> = None;
    for (index, block) in blocks.iter().enumerate() {
        // What one block of a chapter cannot make, the later ones of it cannot use.
        let inherited = missing
            .as_ref()
            .filter(|(chapter, _)| *chapter == block.chapter)
            .map(|(_, why)| why.clone());
        let why = inherited.or_else(|| block.missing());
        if let Some(why) = &why {
            missing = Some((block.chapter.clone(), why.clone()));
        }
        let walk = walk.clone();
        let runs = why.is_none();
        walk.lock().unwrap().runs.push(runs);
        let trial: Trial = common::trial(block.name(), why.as_deref(), move || {
            let mut walk = walk.lock().unwrap_or_else(|broken| broken.into_inner());
            walk.until(index);
        });
        trials.push(trial);
    }
    // One reader.
    let mut args = args;
    args.test_threads = Some(1);
    libtest_mimic::run(&args, trials).exit();
}

// ---------------------------------------------------------------- reading

#[derive(Debug, Clone)]
enum Content {
    /// Commands.
    Shell(Vec<String>),
    /// The lines of a screen.
    Session(Vec<String>),
    /// A fenced block with this word.
    Unknown(String),
}

#[derive(Debug, Clone)]
struct Block {
    line: usize,
    chapter: String,
    content: Content,
}

/// The blocks of code, in order.
fn blocks(text: &str) -> Vec<Block> {
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
    fn name(&self) -> String {
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
    fn missing(&self) -> Option<String> {
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

/// Why this host cannot run a command; `None` also for one that is not known.
fn missing(command: &str) -> Option<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let needs =
        |program: &str| (!has_program(program)).then(|| format!("{program} is not installed"));
    match words[..] {
        ["make", "run", ..] => needs("make").or_else(no_guests).or_else(no_lab),
        ["make", "install" | "uninstall", ..] => needs("make"),
        ["apt-get", "install", ..] => words[2..]
            .iter()
            .find(|package| common::admin("dpkg", &["-s", package]).is_err())
            .map(|package| format!("{package} is not installed, and a test installs nothing")),
        ["mmdebstrap", ..] => needs("mmdebstrap").or_else(|| {
            (common::admin("id", &["-u"]).as_deref() != Ok("0"))
                .then(|| "only root makes a Debian".to_owned())
        }),
        ["bantam", "run", .., "--dry-run"] => no_guests(),
        ["bantam", "run", ..] => no_guests().or_else(no_lab),
        _ => None,
    }
}

/// The files that `make run` fetches and makes.
fn no_guests() -> Option<String> {
    fresh(&["stock", "rootdisk"]).err()
}

fn no_lab() -> Option<String> {
    if runs_linux() {
        return None;
    }
    fresh(&["lab"]).or_else(|_| fresh(&["lab-stock"])).err()
}

fn runs_linux() -> bool {
    matches!(backend(), Backend::Vmx | Backend::Svm) && common::kvm().is_ok()
}

fn fresh(steps: &[&str]) -> Result<(), String> {
    let status = Command::new(root().join("resources/guest/build.sh"))
        .arg("--fresh")
        .args(steps)
        .output()
        .unwrap()
        .status;
    match status.success() {
        true => Ok(()),
        false => Err(format!(
            "{} is missing or out of date: make guests",
            steps.join(", ")
        )),
    }
}

// ---------------------------------------------------------------- walking

/// A reader who has come so far.
struct Walk {
    blocks: Vec<Block>,
    /// Which of them can be run here.
    runs: Vec<bool>,
    done: usize,
    folder: Option<tempfile::TempDir>,
}

impl Walk {
    fn new(blocks: Vec<Block>) -> Self {
        Walk {
            blocks,
            runs: Vec::new(),
            done: 0,
            folder: None,
        }
    }

    /// Does all blocks up to this one.
    fn until(&mut self, index: usize) {
        if self.folder.is_none() {
            self.folder = Some(copy_of_the_project());
        }
        while self.done <= index {
            let block = self.blocks[self.done].clone();
            let runs = self.runs[self.done];
            self.done += 1;
            if !runs {
                continue;
            }
            match &block.content {
                Content::Shell(commands) => self.shell(commands),
                Content::Session(lines) => self.session(lines),
                Content::Unknown(word) => panic!(
                    "README.md, line {}: this test does not know how to try a block of '{word}'",
                    block.line
                ),
            }
        }
    }

    fn folder(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    /// In the project's folder, at home in another one.
    fn environment(&self, command: &mut Command) {
        let home = self.folder().join("home");
        let path = std::env::var("PATH").unwrap();
        command
            .current_dir(self.folder().join("project"))
            .env("HOME", &home)
            .env("PATH", format!("{}/bin:{path}", self.folder().display()))
            .env("TERM", "dumb");
        for variable in [
            "CARGO_TARGET_DIR",
            "XDG_CACHE_HOME",
            "MAKEFLAGS",
            "MAKELEVEL",
        ] {
            command.env_remove(variable);
        }
    }

    fn shell(&self, commands: &[String]) {
        for line in commands {
            let mut command = Command::new("bash");
            command.args(["-e", "-o", "pipefail", "-c", &as_run(line)]);
            self.environment(&mut command);
            let outcome = run_with(command, b"", PATIENCE);
            assert_eq!(outcome.code(), 0, "{line}: {outcome:?}");
        }
    }

    /// Types the block at a shell, and compares the screen with it.
    fn session(&self, lines: &[String]) {
        let mut bash = Command::new("bash");
        bash.args(["--norc", "--noprofile", "--noediting", "-i"])
            .env("PS1", "$ ");
        self.environment(&mut bash);
        let mut screen = Session::of(bash);
        screen.patience = PATIENCE;
        let mut after = 0;
        for line in lines {
            let Some(prompt) = PROMPTS.iter().find(|prompt| line.starts_with(**prompt)) else {
                continue;
            };
            if let Some(command) = line.strip_prefix("$ ") {
                // Refuses what it does not know.
                as_run(command);
            }
            wait_for(&mut screen, after, prompt);
            after = screen.seen().len();
            screen.send(format!("{}\n", &line[prompt.len()..]).as_bytes());
        }
        wait_for(&mut screen, after, "$ ");
        // A dry run of a stock kernel ends with an error where the host is PVM.
        screen.send(b"exit 0\n");
        let status = screen.finish();
        assert_eq!(status.code(), Some(0), "{:?}", screen.seen());
        compare(lines, &plain(screen.seen()));
    }
}

/// Waits until the last line that the screen shows is this prompt.
#[track_caller]
fn wait_for(screen: &mut Session, after: usize, prompt: &str) {
    screen.expect_by(prompt, |seen| {
        plain(&seen[after..])
            .last()
            .is_some_and(|line| line == prompt.trim_end())
    });
}

/// A command as this test runs it.
fn as_run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        // With the program that is there: nobody builds it again.
        ["make", "install" | "run", ..] => format!("{command} BIN={}", bantam()),
        ["make", "uninstall", ..] | ["bantam" | "mmdebstrap" | "mke2fs" | "echo", ..] => {
            command.to_owned()
        }
        // What is missing was asked before.
        ["apt-get", "install", ..] => "true".into(),
        _ => panic!("this test does not know how to run '{command}'"),
    }
}

/// Makefile and scripts, with the real target folder; a home; and a bantam that goes to the lab
/// where it has to.
fn copy_of_the_project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path().join("project");
    std::fs::create_dir(&project).unwrap();
    for name in ["home", "bin"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let copied = Command::new("cp")
        .arg("-a")
        .args(["Makefile", "README.md", "Cargo.toml", "resources"].map(|name| root().join(name)))
        .arg(&project)
        .status();
    assert!(copied.unwrap().success());
    symlink(
        std::path::absolute(target()).unwrap(),
        project.join("target"),
    )
    .unwrap();
    let installed = folder.path().join("home/.local/bin/bantam");
    let lab = match runs_linux() {
        true => String::new(),
        false => format!(
            "case \" $* \" in *' --dry-run '*) ;; ' run '*) exec '{}' -- '{1}' \"$@\" ;; esac\n",
            project.join("resources/lab/lab").display(),
            installed.display(),
        ),
    };
    let wrapper = folder.path().join("bin/bantam");
    let script = format!("#!/bin/sh\n{lab}exec '{}' \"$@\"\n", installed.display());
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

// ---------------------------------------------------------------- comparing

/// The lines that a screen shows, without colours and other orders to the terminal.
fn plain(screen: &str) -> Vec<String> {
    let mut text = String::new();
    let mut chars = screen.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\x1b' {
            text.push(c);
            continue;
        }
        match chars.next() {
            // CSI: up to its letter.
            Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
            // OSC: up to BEL or ST.
            Some(']') => while chars.next().is_some_and(|c| c != '\x07' && c != '\\') {},
            _ => {}
        }
    }
    text.split('\n')
        .map(|line| line.trim_end_matches('\r'))
        .map(|line| {
            line.rsplit('\r')
                .next()
                .unwrap_or(line)
                .trim_end()
                .to_owned()
        })
        .collect()
}

/// Without what differs from run to run and from machine to machine: numbers, and how wide
/// they are. A line that is a number is an answer, and stays.
fn shape(line: &str) -> String {
    if line.parse::<u64>().is_ok() {
        return line.to_owned();
    }
    let mut out = String::new();
    for word in line.split_whitespace() {
        let mut number = false;
        if !out.is_empty() {
            out.push(' ');
        }
        let hex = word.len() >= 12 && word.chars().all(|c| c.is_ascii_hexdigit() || c == ')');
        for c in word.chars() {
            let digit = c.is_ascii_digit() || (hex && c != ')');
            if !(digit && number) {
                out.push(if digit { 'N' } else { c });
            }
            number = digit;
        }
    }
    // Kernels put their time into brackets of a fixed width.
    out.replace("[ N", "[N")
}

/// Are these lines on the screen, one after the other, but for `...`?
fn compare(lines: &[String], screen: &[String]) {
    let mut screen = screen.iter();
    let mut skip = true;
    let mut shown = Vec::new();
    for line in lines {
        if line.trim() == "..." {
            skip = true;
            continue;
        }
        let wanted = shape(line);
        loop {
            let Some(next) = screen.next() else {
                panic!("the screen does not show '{line}'; what it shows: {shown:#?}");
            };
            shown.push(next);
            if shape(next) == wanted {
                break;
            }
            assert!(
                skip,
                "the README says '{line}', the screen '{next}'; before it: {shown:#?}"
            );
        }
        skip = false;
    }
}

/// `make WORD` in the running text.
fn targets(text: &str) {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let mut found = 0;
    for code in text.split('`').skip(1).step_by(2) {
        let Some(rest) = code
            .strip_prefix("make ")
            .or(code.strip_prefix("sudo make "))
        else {
            continue;
        };
        let target = rest.split_whitespace().next().unwrap();
        let rule = format!("{target}:");
        assert!(
            makefile.lines().any(|line| line.starts_with(&rule)),
            "`{code}`: there is no such target"
        );
        found += 1;
    }
    assert!(found > 2, "{found} are named");
}
