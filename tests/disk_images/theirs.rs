//! What qemu-img and qemu-io make, and what they hold.

use super::*;

pub fn corpus() {
    let folder = Folder::new();
    let bytes = content();
    std::fs::write(folder.path("plain.raw"), &bytes).unwrap();
    let plain = folder.word("plain.raw");
    let image = folder.word("image.qcow2");
    let kinds: [&[&str]; 14] = [
        &[],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=4k"],
        &["-o", "cluster_size=2M"],
        &["-o", "compat=0.10"],
        &["-o", "lazy_refcounts=on"],
        &["-o", "refcount_bits=1"],
        &["-o", "refcount_bits=64"],
        &["-o", "preallocation=metadata"],
        &["-o", "preallocation=falloc"],
        &["-c"],
        &["-c", "-o", "cluster_size=4k"],
        &["-c", "-o", "cluster_size=2M,compat=0.10"],
        &["-S", "0"],
    ];
    for kind in kinds {
        let args = [
            &["convert", "-f", "raw", "-O", "qcow2"],
            kind,
            &[&plain, &image],
        ]
        .concat();
        qemu_img(&args);
        let read = read_by_bantam(&folder, Path::new(&image), Format::Qcow2);
        assert!(read == bytes, "{kind:?}");
    }
    // Clusters that say zero, and a snapshot inside, whose content must not be seen.
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &plain, &image]);
    qemu_img(&["snapshot", "-c", "before", &image]);
    let writes = ["write -z 1M 3M", "write -P 77 2M 100k", "discard 6M 1M"];
    for write in writes {
        let out = try_qemu("qemu-io", &["-f", "qcow2", "-c", write, &image]);
        assert!(out.status.success(), "{out:?}");
    }
    let back = folder.word("back.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &image, &back]);
    let read = read_by_bantam(&folder, Path::new(&image), Format::Qcow2);
    assert!(read == std::fs::read(back).unwrap());
}

pub fn chains() {
    let folder = Folder::new();
    std::fs::write(folder.path("base.raw"), content()).unwrap();
    for (below, format, name, size) in [
        ("base.raw", "raw", "middle.qcow2", "12M"),
        ("middle.qcow2", "qcow2", "top.qcow2", "20M"),
    ] {
        let image = folder.word(name);
        qemu_img(&[
            "create", "-f", "qcow2", "-b", below, "-F", format, &image, size,
        ]);
        for write in [
            "write -P 5 1M 64k",
            "write -z 512k 100k",
            "write -P 9 11M 1M",
        ] {
            let write = write.replace("P 5", if name == "top.qcow2" { "P 6" } else { "P 5" });
            let out = try_qemu("qemu-io", &["-f", "qcow2", "-c", &write, &image]);
            assert!(out.status.success(), "{out:?}");
        }
    }
    let top = folder.word("top.qcow2");
    let back = folder.word("back.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &top, &back]);
    let read = read_by_bantam(&folder, Path::new(&top), Format::Qcow2);
    assert!(read == std::fs::read(&back).unwrap());

    // Writes go to the top alone.
    let before = std::fs::read(folder.path("middle.qcow2")).unwrap();
    let access = Access {
        format: Format::Qcow2,
        backing: true,
        ..Access::default()
    };
    let opened = open::open(Path::new(&top), access).unwrap();
    let guest = Guest::new(&*opened.image);
    guest.write(512, &[0x42; 1024]);
    guest.write(19 << 20, &[0x43; 4096]);
    guest.run(Work::Flush);
    drop(opened);
    assert!(std::fs::read(folder.path("middle.qcow2")).unwrap() == before);
    let mut wanted = read;
    wanted[512..1536].fill(0x42);
    wanted[19 << 20..(19 << 20) + 4096].fill(0x43);
    std::fs::write(&back, &wanted).unwrap();
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &top, &back]);
    qemu_img(&["check", "-f", "qcow2", &top]);
}

/// Images of version 2 have no clusters that say zero; and what is only looked at does not change.
pub fn old_version() {
    let folder = Folder::new();
    std::fs::write(folder.path("a.raw"), content()).unwrap();
    let image = folder.word("old.qcow2");
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compat=0.10",
        &folder.word("a.raw"),
        &image,
    ]);
    let access = Access {
        format: Format::Qcow2,
        ..Access::default()
    };
    let opened = open::open(Path::new(&image), access).unwrap();
    let guest = Guest::new(&*opened.image);
    let mut wanted = content();
    for (offset, unmap) in [(512u64, false), (1 << 20, true)] {
        let len = 200 << 10;
        guest.run(Work::Zero { offset, len, unmap });
        wanted[offset as usize..(offset + len) as usize].fill(0);
    }
    guest.run(Work::Discard {
        offset: 9 << 20,
        len: 4096,
    });
    let whole = guest.read(0, 9 << 20);
    assert!(whole == wanted[..9 << 20]);
    drop(opened);
    qemu_img(&["check", "-f", "qcow2", &image]);

    let marked = folder.word("marked.qcow2");
    qemu_img(&["create", "-f", "qcow2", &marked, "1M"]);
    qemu_img(&["bitmap", "--add", &marked, "b"]);
    let before = std::fs::read(&marked).unwrap();
    let kernel = common::guest::elf().to_str().unwrap();
    for options in ["", ",cache=direct"] {
        let disk = format!("{marked}{options}");
        let outcome = run(&["run", kernel, "--dry-run", "--disk", &disk]);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        assert!(
            std::fs::read(&marked).unwrap() == before,
            "--dry-run{options}"
        );
    }
}

/// QEMU's locks and ours exclude each other, but for readers.
pub fn locks() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;
    let folder = Folder::new();
    let image = folder.word("a.qcow2");
    bantam_image(&["create", &image, "1M"]);
    for (mode, ours_may_read) in [(&[][..], false), (&["-r"][..], true)] {
        let mut qemu = Command::new("qemu-io")
            .args(mode)
            .args(["-f", "qcow2", &image])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = qemu.stdin.take().unwrap();
        stdin.write_all(b"read 0 512\n").unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(qemu.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("read 512/512"), "{line}");
        let access = |read_only| Access {
            format: Format::Qcow2,
            read_only,
            ..Access::default()
        };
        let path = Path::new(&image);
        assert!(
            open::open(path, access(false)).is_err(),
            "a writer beside {mode:?}"
        );
        let reader = open::open(path, access(true));
        assert_eq!(reader.is_ok(), ours_may_read, "a reader beside {mode:?}");
        drop(stdin);
        assert!(qemu.wait().unwrap().success());
    }
    for (read_only, qemu_may) in [(true, true), (false, false)] {
        let access = Access {
            format: Format::Qcow2,
            read_only,
            ..Access::default()
        };
        let held = open_when_free(Path::new(&image), access).unwrap();
        let read = try_qemu(
            "qemu-io",
            &["-r", "-f", "qcow2", "-c", "read 0 512", &image],
        );
        assert_eq!(read.status.success(), qemu_may, "{read:?}");
        let write = try_qemu("qemu-io", &["-f", "qcow2", "-c", "read 0 512", &image]);
        assert!(!write.status.success(), "QEMU writes beside us: {write:?}");
        drop(held);
    }
}
