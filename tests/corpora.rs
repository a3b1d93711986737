//! What the fuzzer has found worth keeping, run again: each target on its inputs, with the compiler and the checks of
//! every other test. fuzz/README.md says where the inputs are from.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use bantam_targets::{ALL, Target};
use common::root;
use common::trials::{exit_after, trial};

fn main() {
    let mut trials = vec![trial(
        "each_target_has_a_program_and_is_named_in_the_manifest",
        None,
        programs,
    )];
    for target in ALL {
        let name = format!("{}_holds_on_all_inputs_that_were_kept", target.0);
        trials.push(trial(name, None, move || replay(*target)));
    }
    let qemu_img = common::has_program("qemu-img");
    trials.push(trial(
        "qcow2_images_that_were_written_pass_qemu_img_check",
        (!qemu_img).then_some("qemu-img is not installed"),
        images_pass,
    ));
    exit_after(trials);
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = root().join("fuzz").join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay((name, run): Target) {
    let inputs = files(&format!("corpus/{name}"));
    assert!(!inputs.is_empty(), "no inputs of '{name}' were kept");
    // An input that is too short for anything is one as well.
    run(&[]);
    for input in inputs {
        // Shown when the target panics.
        println!("{}", input.display());
        run(&fs::read(&input).unwrap());
    }
}

/// What the target has written to is an image in order to QEMU as well, with no cluster lost or counted wrongly.
fn images_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let mut looked_at = 0;
    for input in files("corpus/qcow2") {
        let Some(image) = bantam_targets::qcow2::play(&fs::read(&input).unwrap()) else {
            continue;
        };
        looked_at += 1;
        fs::copy(bantam_targets::world::path_of(&image), &path).unwrap();
        let check = ["check", "-f", "qcow2", path.to_str().unwrap()];
        let out = Command::new("qemu-img").args(check).output().unwrap();
        assert!(out.status.success(), "{}: {out:?}", input.display());
    }
    assert!(looked_at > 0, "no input leaves an image in order");
}

fn programs() {
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    let mut names: Vec<_> = ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    for name in &names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut programs: Vec<_> = files("fuzz_targets").into_iter().map(stem).collect();
    let mut corpora: Vec<_> = files("corpus").into_iter().map(stem).collect();
    for list in [&mut names, &mut programs, &mut corpora] {
        list.sort();
    }
    assert_eq!(programs, names);
    assert_eq!(corpora, names);
}
