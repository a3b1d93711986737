//! A reader who types one block after the other.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::blocks::{Block, Content};
use crate::common::pty::Session;
use crate::common::{bantam, root, run_with, target};
use crate::needs::runs_linux;
use crate::screen::{compare, plain};

/// What is typed at.
const PROMPTS: [&str; 4] = ["$ ", "bantam:/# ", "debian login: ", "root@debian:~# "];
/// For a whole Debian on an emulated processor that others use as well.
const PATIENCE: Duration = Duration::from_secs(400);

/// A reader who has come so far.
pub struct Walk {
    blocks: Vec<Block>,
    /// Which of them can be run here.
    pub runs: Vec<bool>,
    done: usize,
    folder: Option<tempfile::TempDir>,
}

impl Walk {
    pub fn new(blocks: Vec<Block>) -> Self {
        Walk {
            blocks,
            runs: Vec::new(),
            done: 0,
            folder: None,
        }
    }

    /// Does all blocks up to this one.
    pub fn until(&mut self, index: usize) {
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
