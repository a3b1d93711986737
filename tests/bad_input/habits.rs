//! Words of QEMU, docker and others: each has its answer, on the real binary. What is taken gives the
//! machine that our own words give; everything else is refused.

use std::fs;

use bantam::cli::habits::{Answer, HABITS, Habit};

use crate::common::{Outcome, TempFile, bantam, run, run_with};
use crate::{USAGE, kernel, refused};

/// `bantam run KERNEL ... --dry-run`
fn dry(words: &[&str]) -> Outcome {
    run(&[&["run", kernel()], words, &["--dry-run"]].concat())
}

const UUID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// Words that are taken, and what they mean in ours. FILE, ISO and INITRD are files.
const TAKEN: &[(&[&str], &[&str])] = &[
    (&["-device", "virtio-rng-pci,rng=rng0"], &["--rng"]),
    (
        &["-object", "rng-random,id=rng0,filename=/dev/urandom"],
        &[],
    ),
    (&["-initrd", "INITRD"], &["--initrd", "INITRD"]),
    (&["--initramfs", "INITRD"], &["--initrd", "INITRD"]),
    (&["-append", "quiet a=b"], &["--append", "quiet a=b"]),
    (&["--params", "quiet"], &["--append", "quiet"]),
    (&["-cdrom", "ISO"], &["--cdrom", "ISO"]),
    (&["-smp", "4"], &["--cpus", "4"]),
    (&["-smp", "cpus=4,threads=2"], &["--cpus", "4,threads=2"]),
    (
        &["-smp", "8,sockets=2,cores=2,threads=2"],
        &["--cpus", "8,sockets=2,cores=2,threads=2"],
    ),
    (&["-m", "1G"], &["--memory", "1024M"]),
    (&["-m", "300"], &["--memory", "300M"]),
    (&["-m", "size=300"], &["--memory", "300M"]),
    (&["-m512M"], &["--memory", "512M"]),
    (&["--mem", "300"], &["--memory", "300M"]),
    (&["-cpus", "2"], &["--cpus", "2"]),
    (&["-memory", "1G"], &["--memory", "1G"]),
    (&["-disk", "FILE"], &["--disk", "FILE"]),
    (&["-uuid", UUID], &["--uuid", UUID]),
    (
        &[
            "-smbios",
            "type=1,uuid=123e4567-e89b-12d3-a456-426614174000",
        ],
        &["--uuid", UUID],
    ),
    (
        &[
            "-smbios",
            "type=11,value=io.systemd.credential:a=b,,c,value=io.systemd.credential.binary:d=ZQo=",
        ],
        &["--credential", "a=b,c", "--credential", "d=e\n"],
    ),
    (
        &["-fw_cfg", "name=opt/io.systemd.credentials/a,string=b"],
        &["--credential", "a=b"],
    ),
    (
        &["-fw_cfg", "opt/io.systemd.credentials/a,file=FILE"],
        &["--credential-file", "a=FILE"],
    ),
    (&["--set-credential", "a:b"], &["--credential", "a=b"]),
    (
        &["--load-credential", "a:FILE"],
        &["--credential-file", "a=FILE"],
    ),
    (
        &["-device", "virtio-balloon-device,free-page-reporting=on"],
        &["--reclaim"],
    ),
    (&["-nographic"], &[]),
    (&["--nographic"], &[]),
    (&["-no-reboot"], &[]),
    (&["--reboot", "-no-reboot"], &[]),
    (&["-enable-kvm"], &[]),
    (&["-nodefaults"], &[]),
    (&["-no-user-config"], &[]),
    (&["-no-fd-bootchk"], &[]),
    (&["-no-hpet"], &[]),
    (&["-accel", "kvm"], &[]),
    (&["-cpu", "host"], &[]),
    (&["-cpu", "max"], &[]),
    (&["-M", "accel=kvm"], &[]),
    (&["-machine", "accel=kvm"], &[]),
    (&["-net", "none"], &[]),
    (&["-nic", "none"], &[]),
    (&["-display", "none"], &[]),
    (&["-vga", "none"], &[]),
    (&["-serial", "stdio"], &[]),
    (&["-serial", "mon:stdio"], &[]),
    (&["-serial", "none"], &["--console", "none"]),
    (&["-serial", "null"], &["--console", "none"]),
    (&["-serial", "pty"], &["--console", "pty"]),
    (&["-serial", "file:/tmp/x"], &["--console", "file=/tmp/x"]),
    (&["-monitor", "none"], &[]),
    (&["-qmp", "none"], &[]),
    (&["-qmp-pretty", "null"], &[]),
    (&["-parallel", "none"], &[]),
    (
        &["-drive", "file=FILE,if=virtio,format=raw"],
        &["--disk", "FILE"],
    ),
    (
        &[
            "-drive",
            "if=virtio,id=a,media=disk,readonly=on,file=FILE,serial=x,cache=none,aio=threads,discard=ignore",
        ],
        &[
            "--disk",
            "FILE,ro,serial=x,cache=none,io=threads,discard=off",
        ],
    ),
    (&["-it"], &[]),
    (&["-ti"], &[]),
    (&["-t"], &[]),
    (&["--tty"], &[]),
    (&["--interactive"], &[]),
    (&["--rm"], &[]),
    (&["--no-api"], &[]),
];

/// Values that make a word one that is taken get another here: `None` where there is no such value.
fn refused_value(word: &str) -> Option<&'static str> {
    match word.trim_start_matches('-') {
        // Any value is one for --cpus, which has its own errors.
        "smp" => None,
        "serial" => Some("tcp::4444"),
        "drive" => Some("file=x.qcow2"),
        _ => Some("tcg"),
    }
}

fn spellings() -> impl Iterator<Item = (&'static Habit, &'static str)> {
    HABITS
        .iter()
        .flat_map(|habit| habit.words.iter().map(move |word| (habit, *word)))
}

#[test]
fn words_that_are_taken_mean_the_same() {
    let file = TempFile::new("disk.img", &[0; 8192]);
    let iso = TempFile::new("a.iso", &[0; 4096]);
    let initrd = TempFile::new("initrd", b"07070100");
    let plain = dry(&[]);
    assert_eq!(plain.code(), 0, "{plain:?}");
    for (theirs, ours) in TAKEN {
        let with_files = |words: &[&str]| -> Vec<String> {
            let files = [("FILE", &file), ("ISO", &iso), ("INITRD", &initrd)];
            let named = |word: &&str| {
                files.iter().fold((*word).to_owned(), |word, (name, file)| {
                    word.replace(name, file.str())
                })
            };
            words.iter().map(named).collect()
        };
        let run = |words: &[&str]| {
            let words = with_files(words);
            dry(&words.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let (got, expected) = (run(theirs), run(ours));
        assert_eq!(got.code(), 0, "{theirs:?}: {got:?}");
        assert_eq!(got.stdout, expected.stdout, "{theirs:?}");
        assert_eq!(got.stderr, "", "{theirs:?}");
        // Our own words change the machine, so that equal reports say something.
        let changes = !matches!(**ours, [] | ["--memory", "512M"]);
        assert_eq!(expected.stdout != plain.stdout, changes, "{ours:?}");
    }
    let four = dry(&["-smp", "4,sockets=2", "-m", "1G", "-append", "x=1"]);
    for words in [
        "cpus      4 (2 sockets, 2 cores, 1 thread)",
        "1024 MiB",
        " x=1\n",
    ] {
        assert!(four.stdout.contains(words), "no '{words}' in {four:?}");
    }
    let kernel_by_flag = run(&["run", "-kernel", kernel(), "--dry-run"]);
    assert_eq!(kernel_by_flag.stdout, plain.stdout);
    let help = run(&["run", "-help"]);
    assert_eq!((help.code(), help.stderr.as_str()), (0, ""));
    assert!(help.stdout.contains("--memory"), "{help:?}");
}

/// Whatever is not taken is refused in two lines that name the word.
#[test]
fn every_word_of_the_table_has_its_answer() {
    let taken: Vec<&str> = TAKEN
        .iter()
        .flat_map(|(theirs, _)| theirs.iter().copied())
        .collect();
    for (habit, word) in spellings() {
        let tested_as_taken = taken.contains(&word) || ["-kernel", "-help"].contains(&word);
        let answer = match &habit.answer {
            Answer::ByValue(_, otherwise) => {
                assert!(tested_as_taken, "no value of {word} is tested");
                otherwise
            }
            answer => answer,
        };
        let value = match &habit.answer {
            Answer::ByValue(..) => match refused_value(word) {
                Some(value) => value,
                None => continue,
            },
            _ => "some-value",
        };
        let words: &[&str] = if habit.value { &[word, value] } else { &[word] };
        let hint = match answer {
            Answer::Already => {
                assert!(tested_as_taken, "{word} is not tested as taken");
                continue;
            }
            Answer::Same(ours) => {
                // Until it exists, an option that is promised is said to be missing.
                let exists = run(&["run", "--help"])
                    .stdout
                    .contains(&format!("{ours}\n"))
                    || run(&["run", "--help"])
                        .stdout
                        .contains(&format!("{ours} <"));
                match exists {
                    true => {
                        assert!(tested_as_taken || *ours == "--snapshot", "{word}");
                        continue;
                    }
                    false => "not there yet",
                }
            }
            Answer::NotNeeded(_) => "is not needed",
            Answer::Use(_) => "help: use",
            Answer::NotYet(..) => "not there yet",
            Answer::ByValue(..) => panic!("{word}: an answer by value behind one"),
        };
        let outcome = dry(words);
        refused(&outcome, USAGE, &[word]);
        assert!(outcome.stderr.contains(hint), "{outcome:?}");
        if habit.value {
            refused(
                &run(&["run", kernel(), word]),
                USAGE,
                &[word, "has no value"],
            );
        }
    }
}

#[test]
fn snapshot_is_ours_or_said_to_be_missing() {
    let ours = run(&["run", "--help"]).stdout.contains("--snapshot");
    let outcome = dry(&["-snapshot"]);
    match ours {
        true => assert_eq!(outcome.stdout, dry(&["--snapshot"]).stdout),
        false => refused(&outcome, USAGE, &["-snapshot", "not there yet"]),
    }
}

#[test]
fn what_people_type_gets_what_helps_them() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["-hda", "debian.raw"], &["use '--disk debian.raw'"]),
        (&["-hdb", "debian.raw"], &["--disk"]),
        (
            &["-drive", "file=a.qcow2,if=ide,format=qcow2,readonly=on"],
            &["use '--disk a.qcow2,format=qcow2,ro'"],
        ),
        (
            &["-drive", "file=a.qcow2,if=virtio,bps=5"],
            &["use '--disk PATH"],
        ),
        (&["-boot", "d"], &["--iso"]),
        (&["-daemonize"], &["not there yet", "--console file="]),
        (&["-display", "gtk"], &["no screen"]),
        (&["-vga", "std"], &["no screen"]),
        (&["-M", "q35"], &["not needed"]),
        (&["-machine", "microvm"], &["not needed"]),
        (&["-cpu", "Haswell"], &["not needed", "host's processor"]),
        (&["-accel", "tcg"], &["KVM alone"]),
        (&["-name", "vm1"], &["not needed"]),
        (&["-net", "nic"], &["no network"]),
        (&["-nic", "user,hostfwd=tcp::2222-:22"], &["no network"]),
        (&["-monitor", "stdio"], &["Ctrl-a c"]),
        (&["-S"], &["debugger"]),
        (&["-s"], &["debugger"]),
        (&["-p", "8080:80"], &["no network"]),
        (&["-v", "/home/me:/data"], &["not shared", "--cdrom"]),
        (&["--volume=/home/me:/data"], &["not shared"]),
        (&["-v", "--disk", "https://example.org/x"], &["an address"]),
        (&["--privileged"], &["not needed"]),
        (&["-e", "A=b"], &["--append"]),
        (&["--name=web"], &["not needed"]),
        // Not ours, and nobody's: the nearest.
        (&["-intrd", "x"], &["unknown option '-intrd'", "--initrd"]),
        (&["--memroy", "1G"], &["--memory"]),
        (&["-machin", "q35"], &["'-machine'"]),
        (&["-nographics"], &["'-nographic'"]),
        (&["--disks", "x"], &["'--disk'"]),
        (
            &["-xyzzy"],
            &["unknown option '-xyzzy'", "bantam run --help"],
        ),
        (&["--xyzzy"], &["unknown option '--xyzzy'"]),
        // What only begins like an option of ours.
        (&["-daemonise"], &["'-daemonize'"]),
        (&["-disk.img"], &["unknown option"]),
        (&["-debian.img"], &["unknown option"]),
        (&["-hdx"], &["unknown option '-hdx'"]),
        (&["-vxyz"], &["unknown option '-vxyz'"]),
        (&["-kvm"], &["unknown option '-kvm'"]),
    ];
    for (words, hints) in cases {
        refused(&dry(words), USAGE, hints);
    }
}

#[test]
fn what_belongs_to_an_option_is_no_word_of_anybody() {
    for value in ["-nographic", "-hda", "--rm", "-daemonize"] {
        let outcome = dry(&["--append", value]);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        assert!(
            outcome.stdout.contains(&format!(" {value}\n")),
            "{outcome:?}"
        );
    }
    // A kernel whose name is a word, behind the end of options.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(kernel(), folder.path().join("-nographic")).unwrap();
    let mut command = std::process::Command::new(bantam());
    command
        .args(["run", "--dry-run", "--", "-nographic"])
        .current_dir(folder.path());
    let outcome = run_with(command, b"", std::time::Duration::from_secs(30));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stdout.contains("kernel    -nographic"));
    // Our own short options, glued to what cannot be another word.
    let disk = TempFile::new("disk.img", &[0; 1024]);
    let outcome = dry(&[&format!("-d{}", disk.str()), "-c2", "-vv"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stdout.contains("vda") && outcome.stdout.contains("cpus      2"));
}

#[test]
fn help_is_what_is_asked_for_and_nothing_else() {
    for args in [
        &["image", "-hda"][..],
        &["check", "-hda"],
        &["-hxyz"],
        &["image", "info", "-help"],
    ] {
        refused(&run(args), USAGE, &["unknown option"]);
    }
    refused(&run(&["-hda", "x"]), USAGE, &["-hda", "bantam run"]);
    refused(&run(&["-kernel", "x"]), USAGE, &["-kernel", "bantam run"]);
    refused(&run(&["-m", "1G", "x"]), USAGE, &["-m", "bantam run"]);
}

/// Names of files may hold anything; a terminal obeys none of it.
#[test]
fn names_are_printed_and_not_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let strange = folder.path().join("a\x1b[2Jb\u{202e}c");
    fs::copy(kernel(), &strange).unwrap();
    let strange = strange.to_str().unwrap();
    let missing = format!("{strange}x");
    for args in [
        &["run", strange, "--dry-run"][..],
        &["inspect", strange],
        &["run", &missing],
        &["inspect", &missing],
        &["run", kernel(), "-hda", strange],
        &["run", kernel(), strange],
        &["run", "--config", strange],
        &["image", "info", &missing],
        &[strange],
    ] {
        let outcome = run(args);
        let said = outcome.stdout + &outcome.stderr;
        assert!(!said.contains(['\x1b', '\u{202e}']), "{args:?}: {said:?}");
        assert!(!said.is_empty());
    }
}
