//! The README's commands, as a reader types them: from top to bottom, in a copy of the project.
//!
//! Indented blocks are commands for a shell; blocks called `console` are sessions, whose every
//! line is either typed behind its prompt or compared with what the screen shows (numbers may
//! differ; `...` stands for any lines). A block of another kind, or a command that this test does
//! not know, is a failure. The program is the one that `make install` has put in place, and where
//! this host's KVM runs no Linux, `bantam run` is the lab's, as the README tells.
//!
//! What a block makes, the later ones use: to run one, its predecessors are run first.

mod blocks;
#[path = "../common/mod.rs"]
mod common;
mod needs;
mod screen;
mod walk;

use std::sync::{Arc, Mutex};

use blocks::{Content, blocks};
use common::root;
use libtest_mimic::{Arguments, Trial};
use walk::Walk;

fn main() {
    let args = Arguments::from_args();
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = blocks(&text);
    let walk = Arc::new(Mutex::new(Walk::new(blocks.clone())));
    let mut trials = vec![
        common::trials::trial("the_readme_has_commands_and_sessions", None, {
            let blocks = blocks.clone();
            move || {
                let count = |kind: fn(&Content) -> bool| {
                    blocks.iter().filter(|block| kind(&block.content)).count()
                };
                assert!(count(|c| matches!(c, Content::Shell(_))) >= 3);
                assert!(count(|c| matches!(c, Content::Session(_))) >= 3);
            }
        }),
        common::trials::trial("every_make_target_that_is_named_exists", None, move || {
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
        let trial: Trial = common::trials::trial(block.name(), why.as_deref(), move || {
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
