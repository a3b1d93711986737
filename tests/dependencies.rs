//! The libraries that Bantam is made of: each has a row in docs/dependencies.md, a licence and a source of those in
//! deny.toml. cargo itself is asked, offline, as all that it tells was fetched when this test was built.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use common::root;
use serde_json::Value;
use toml::de::{DeTable, DeValue};

/// What cargo knows of all packages that are built here.
fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    serde_json::from_slice(&out.stdout).unwrap()
}

fn packages(metadata: &Value) -> &Vec<Value> {
    metadata["packages"].as_array().unwrap()
}

/// A list in deny.toml.
fn list(table: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("deny.toml")).unwrap();
    let file = DeTable::parse(&text).unwrap();
    let DeValue::Table(table) = file.get_ref().get(table).unwrap().get_ref() else {
        panic!("no table '{table}'")
    };
    let DeValue::Array(words) = table.get(key).unwrap().get_ref() else {
        panic!("no list '{key}'")
    };
    let word = |word: &toml::Spanned<DeValue<'_>>| word.get_ref().as_str().unwrap().to_owned();
    words.iter().map(word).collect()
}

/// The names in the first column of the tables of docs/dependencies.md, and whole lines by them.
fn rows() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let cell = line.strip_prefix("| `")?;
        Some((cell.split_once('`')?.0.to_owned(), line.to_owned()))
    });
    rows.collect()
}

#[test]
fn each_direct_dependency_has_a_row_and_no_row_is_left_over() {
    let metadata = metadata();
    let bantam = packages(&metadata).iter().find(|p| p["name"] == "bantam");
    let wanted: BTreeSet<_> = bantam.unwrap()["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
        .collect();
    let rows = rows();
    let named: BTreeSet<_> = rows.iter().map(|row| row.0.clone()).collect();
    assert_eq!(named.len(), rows.len(), "each has one row");
    assert_eq!(named, wanted);
    for (name, row) in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{name}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{name}");
    }
}

/// Whoever takes a version that its own makers do not call finished has to say why.
#[test]
fn versions_before_a_release_are_named_as_such() {
    let metadata = metadata();
    let rows = rows();
    for package in packages(&metadata) {
        let (name, version) = (&package["name"], package["version"].as_str().unwrap());
        let (number, build) = version.split_once('+').unwrap_or((version, ""));
        if number.contains('-') {
            let row = rows.iter().find(|row| *name == row.0.as_str());
            // What a direct dependency brings with it has the same makers.
            let family = name.as_str().unwrap().split('-').next().unwrap();
            let parent = rows.iter().find(|row| row.0.starts_with(family));
            let row = row
                .or(parent)
                .unwrap_or_else(|| panic!("{name} {version} {build}"));
            assert!(row.1.contains("release candidate"), "{name} {version}");
        }
    }
}

/// Whether a licence expression (SPDX, annex D) can be met with what is `allowed`. Some crates write `/` for OR.
fn meets(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let text = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = text.split_whitespace().peekable();
    let met = either(&mut words, allowed);
    assert_eq!(words.next(), None, "{expression}");
    met
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut met = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= both(words, allowed);
    }
    met
}

fn both(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let word = words.next().unwrap();
    if word == "(" {
        let met = either(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return met;
    }
    match words.next_if_eq(&"WITH") {
        Some(_) => allowed(&format!("{word} WITH {}", words.next().unwrap())),
        None => allowed(word),
    }
}

#[test]
fn all_licences_are_on_the_list() {
    let list = list("licenses", "allow");
    let allowed = |licence: &str| list.iter().any(|one| one == licence);
    // The rule itself.
    assert!(meets("(MIT OR GPL-2.0) AND Zlib", &allowed));
    assert!(meets("GPL-2.0/MIT", &allowed));
    assert!(!meets("MIT AND GPL-2.0 OR LGPL-2.1-or-later", &allowed));
    assert!(!meets("Apache-2.0 WITH Nothing-known", &allowed));
    let metadata = metadata();
    for package in packages(&metadata) {
        let licence = package["license"].as_str();
        let licence = licence.unwrap_or_else(|| panic!("{} has none", package["name"]));
        assert!(meets(licence, &allowed), "{}: {licence}", package["name"]);
    }
}

#[test]
fn all_sources_are_the_registry_or_this_tree() {
    let metadata = metadata();
    let mut registries = BTreeSet::new();
    for package in packages(&metadata) {
        match package["source"].as_str() {
            Some(source) => {
                // Neither a repository (`git+`) nor a registry by another protocol of somebody's own.
                assert!(source.starts_with("registry+"), "{source}");
                registries.insert(source.to_owned());
            }
            None => {
                let manifest = package["manifest_path"].as_str().unwrap();
                assert!(manifest.starts_with(root().to_str().unwrap()), "{manifest}");
            }
        }
    }
    assert_eq!(registries.len(), 1, "{registries:?}");
}
