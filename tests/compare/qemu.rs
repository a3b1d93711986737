//! QEMU is given a processor that it can have on this host, whatever host that is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;

use crate::adapters::assemble;
use crate::common::{kvm, trials};
use crate::rows::start;
use crate::vmm::{self, Vmm, probe};

pub fn trials() -> Vec<Trial> {
    let no_qemu = vmm::find_program("qemu-system-x86_64").is_none();
    let no_qemu = no_qemu.then(|| "qemu-system-x86_64 is not installed".to_owned());
    let missing = kvm().err().or(no_qemu);
    let tests: [(&str, fn()); 3] = [
        ("qemu_takes_the_model_that_is_found", qemu_takes_the_model),
        (
            "qemu_that_dies_of_a_msr_gets_another_model",
            qemu_gets_another_model,
        ),
        ("qemu_that_takes_no_model_says_why", qemu_that_takes_none),
    ];
    trials::trials(missing.as_deref(), tests)
}

/// A program in front of the real QEMU that ends as QEMU 7.2 does on a processor of AMD under PVM,
/// when `-cpu` is one of `models`.
fn qemu_that_dies_of(folder: &Path, models: &str) -> PathBuf {
    let program = folder.join("qemu");
    let script = format!(
        r#"#!/bin/sh
before=
for word; do
    case "$before $word" in
    {models})
        echo "qemu-system-x86_64: error: failed to set MSR 0x10a to 0xa" >&2
        echo "qemu-system-x86_64: ../target/i386/kvm/kvm.c:3160: kvm_buf_set_msrs: Assertion failed." >&2
        exit 134 ;;
    esac
    before=$word
done
exec qemu-system-x86_64 "$@"
"#
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// Both of QEMU's machines with this program, and what was found for them.
fn probed(program: &Path) -> (Vec<Vmm>, Vec<probe::Found>) {
    let named =
        ["qemu-microvm", "qemu-q35"].map(|name| (name.to_owned(), Some(program.to_owned())));
    let (mut vmms, absent) = assemble(&named);
    assert_eq!(vmms.len(), 2, "{absent:?}");
    let folder = tempfile::tempdir().unwrap();
    let machine = start::machine(&start::payload(folder.path()).unwrap());
    let found = probe::choose(&mut vmms, &machine);
    (vmms, found)
}

/// That a real QEMU starts a guest with what was found is what makes it found; the machine that is
/// then asked for has it as well.
fn qemu_takes_the_model() {
    let (vmms, found) = probed(&vmm::find_program("qemu-system-x86_64").unwrap());
    let [found] = found.as_slice() else {
        panic!("one program, one answer: {found:?}")
    };
    let model = found
        .model
        .unwrap_or_else(|| panic!("no model runs here: {found:?}"));
    assert_eq!(found.names, ["qemu-microvm", "qemu-q35"]);
    for vmm in &vmms {
        let command = vmm
            .command(&start::machine(Path::new("/k")), Path::new("/tmp"))
            .unwrap();
        let words: Vec<&str> = command
            .get_args()
            .map(|word| word.to_str().unwrap())
            .collect();
        let at = words.iter().position(|word| *word == "-cpu").unwrap();
        assert_eq!(words[at + 1], model, "{}", vmm.name());
    }
}

fn qemu_gets_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let (vmms, found) = probed(&qemu_that_dies_of(folder.path(), "'-cpu host'"));
    assert_eq!(found[0].model, Some("host,-arch-capabilities"), "{found:?}");
    assert!(vmms.iter().all(|vmm| vmm.cpu == "host,-arch-capabilities"));
    let line = found[0].line().unwrap();
    let start =
        "qemu-microvm, qemu-q35: with -cpu host,-arch-capabilities, as -cpu host did not finish: ";
    assert!(line.starts_with(start), "{line}");
    assert!(line.contains("failed to set MSR 0x10a"), "{line}");

    // And where that does not help, the next that this QEMU can really have here.
    let both = "'-cpu host' | '-cpu host,-arch-capabilities'";
    let (_, found) = probed(&qemu_that_dies_of(folder.path(), both));
    assert!(matches!(found[0].model, Some("max" | "kvm64")), "{found:?}");
    assert!(found[0].refused.len() >= 2);
}

fn qemu_that_takes_none() {
    let folder = tempfile::tempdir().unwrap();
    let (vmms, found) = probed(&qemu_that_dies_of(folder.path(), "'-cpu '*"));
    assert_eq!(found[0].model, None);
    let line = found[0].line().unwrap();
    let start = "qemu-microvm, qemu-q35: does not start with any of -cpu host, host,-arch-capabilities, max, kvm64: ";
    assert!(line.starts_with(start), "{line}");
    assert!(line.contains("0x10a") && !line.contains('\n'), "{line}");
    // They stay, and each of their figures says what became of it.
    assert_eq!(vmms.len(), 2);
}
