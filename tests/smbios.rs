//! The SMBIOS tables as another program reads them: dmidecode, which knows the specification and
//! complains of what does not follow it. That Linux finds them is tested in tests/linux.

mod common;

use bantam::arch::x86_64::smbios::{Identity, image};
use common::trials::trial;
use common::{TempFile, admin};
use libtest_mimic::Arguments;
use uuid::Uuid;

fn main() {
    let missing = admin("dmidecode", &["--version"]).err();
    let missing = missing.map(|_| "dmidecode is not installed");
    let tests: [(&str, fn()); 2] = [
        ("dmidecode_reads_back_what_was_said", read_back),
        ("dmidecode_finds_no_fault_with_many_strings", many_strings),
    ];
    let trials = tests.map(|(name, test)| trial(name, missing, test));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit()
}

const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";

/// What dmidecode says of tables with these strings.
fn decoded(oem_strings: &[String], words: &[&str]) -> String {
    let uuid = Uuid::parse_str(UUID).unwrap();
    // Tables for address 0 are what `dmidecode --dump-bin` writes.
    let dump = TempFile::new("dump", &image(Identity { uuid, oem_strings }, 0));
    let from = ["--from-dump", dump.str()];
    admin("dmidecode", &[&from, words].concat()).unwrap()
}

fn read_back() {
    let text = "io.systemd.credential:a=b c".to_owned();
    let all = decoded(std::slice::from_ref(&text), &[]);
    for line in [
        "SMBIOS 3.6.0 present.",
        "BIOS Information",
        "System is a virtual machine",
        "Manufacturer: Bantam",
        "Product Name: Bantam",
        &format!("UUID: {UUID}"),
        "Wake-up Type: Power Switch",
        &format!("String 1: {text}"),
        "End Of Table",
    ] {
        assert!(all.contains(line), "no '{line}' in {all}");
    }
    let version = decoded(&[], &["-s", "bios-version"]);
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let date = decoded(&[], &["-s", "bios-release-date"]);
    assert_eq!(date.split('/').count(), 3, "month/day/year: {date}");
}

fn many_strings() {
    let strings: Vec<String> = (0..600).map(|n| format!("string-{n}-")).collect();
    let all = decoded(&strings, &[]);
    for string in &strings {
        assert_eq!(all.matches(string.as_str()).count(), 1, "{string}");
    }
    // What it says of tables that are cut off or do not count right.
    for word in [
        "BAD INDEX",
        "TRUNCATED",
        "Wrong",
        "Invalid",
        "<OUT OF SPEC>",
    ] {
        assert!(!all.contains(word), "{all}");
    }
}
