//! docs/threat-model.md: every promise there names a test, and that test exists.

#[path = "common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::root;

/// Rust files at or below `path`.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.into()];
    }
    let entries = std::fs::read_dir(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let mut files: Vec<PathBuf> = entries
        .flat_map(|entry| sources(&entry.unwrap().path()))
        .collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "rs"));
    files
}

/// The file or folder that a row calls by this name: a path, or a test beside this one.
fn place(name: &str) -> PathBuf {
    let tests = root().join("tests");
    let candidates = [
        root().join(name),
        tests.join(format!("{name}.rs")),
        tests.join(name),
    ];
    let found = candidates.iter().find(|path| path.exists());
    found
        .unwrap_or_else(|| panic!("docs/threat-model.md: no test file is called '{name}'"))
        .clone()
}

/// The rows of tables with the header `promise`: their cells.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let mut rows = Vec::new();
    let mut promises = false;
    for line in page.lines() {
        let Some(row) = line.strip_prefix("| ") else {
            promises = promises && line.starts_with('|');
            continue;
        };
        let cells: Vec<&str> = row
            .trim_end_matches('|')
            .split(" | ")
            .map(str::trim)
            .collect();
        if cells.first() == Some(&"promise") {
            promises = true;
        } else if promises {
            rows.push(cells);
        }
    }
    rows
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let page = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let rows = rows(&page);
    assert!(rows.len() > 30, "only {} rows were found", rows.len());
    let mut missing = Vec::new();
    for cells in rows {
        let [promise, _how, tests] = cells[..] else {
            panic!("a row of {} cells: {cells:?}", cells.len());
        };
        // `file: name`, `file: name`
        let mut named = 0;
        for test in tests.split('`').skip(1).step_by(2) {
            let (file, name) = test
                .split_once(": ")
                .unwrap_or_else(|| panic!("'{promise}': '{test}' is not 'file: name'"));
            named += 1;
            if file == "corpora" {
                // A target of the fuzzer, whose inputs tests/corpora.rs runs again.
                let inputs = std::fs::read_dir(root().join("fuzz/corpus").join(name));
                assert!(
                    inputs.is_ok_and(|inputs| inputs.count() > 0),
                    "'{promise}': no inputs of '{name}' are kept"
                );
                continue;
            }
            let texts = sources(&place(file));
            let has = |path: &PathBuf| std::fs::read_to_string(path).unwrap().contains(name);
            if !texts.iter().any(has) {
                missing.push(format!("'{promise}': no test '{name}' in {file}"));
            }
        }
        assert!(named > 0, "'{promise}' names no test");
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
