//! What is refused, and what is left behind then.

use super::*;

#[track_caller]
fn refused(disk: &str, words: &[&str]) {
    let kernel = common::guest::elf().to_str().unwrap();
    let outcome = run(&["run", kernel, "--dry-run", "--disk", disk]);
    assert_eq!(outcome.code(), 3, "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "no '{word}' in {outcome:?}");
    }
}

pub fn backing() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("inside")).unwrap();
    let secret = folder.word("secret.raw");
    std::fs::write(&secret, [1; 4096]).unwrap();
    std::fs::write(folder.path("inside/base.raw"), [2; 4096]).unwrap();
    let image = folder.word("inside/top.qcow2");
    let make = |below: &str, format: &str| {
        let _ = std::fs::remove_file(&image);
        qemu_img(&[
            "create", "-u", "-f", "qcow2", "-b", below, "-F", format, &image, "1M",
        ]);
    };
    make("base.raw", "raw");
    refused(
        &image,
        &["rests on a backing file, 'base.raw'", "backing=on"],
    );
    // A downloaded image names a file of its user's: nothing of that comes into a copy.
    let copy = folder.word("inside/copy.raw");
    let before = std::fs::read(&image).unwrap();
    for words in [
        &["image", "convert", &image, &copy][..],
        &["image", "resize", &image, "+1M"],
    ] {
        let outcome = run(words);
        assert_eq!(outcome.code(), 3, "{outcome:?}");
        let told = "rests on a backing file, 'base.raw'";
        assert!(outcome.stderr.contains(told), "{outcome:?}");
        assert!(outcome.stderr.contains("--backing"), "{outcome:?}");
        assert!(!Path::new(&copy).exists(), "{words:?}");
        assert!(std::fs::read(&image).unwrap() == before, "{words:?}");
    }
    bantam_image(&["convert", "--backing", &image, &copy]);
    assert!(std::fs::read(&copy).unwrap().starts_with(&[2; 4096]));
    let kernel = common::guest::elf().to_str().unwrap();
    let with = format!("{image},backing=on");
    let outcome = run(&["run", kernel, "--dry-run", "--disk", &with]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let new = folder.word("inside/new.qcow2");
    let made = run(&["image", "create", "-b", "../secret.raw", "-F", "raw", &new]);
    assert_eq!(made.code(), 2, "{made:?}");
    assert!(made.stderr.contains("in another folder"), "{made:?}");
    for outside in [secret.as_str(), "../secret.raw"] {
        make(outside, "raw");
        refused(&with, &["in another folder"]);
    }
    std::os::unix::fs::symlink(&secret, folder.path("inside/link.raw")).unwrap();
    make("link.raw", "raw");
    refused(&with, &["in another folder"]);
    make("none.raw", "raw");
    refused(&with, &["'none.raw'", "No such file"]);
    make("base.raw", "vmdk");
    refused(&with, &["'vmdk'"]);
    make("top.qcow2", "qcow2");
    refused(&with, &["rests on the image itself"]);
    let other = folder.word("inside/other.qcow2");
    qemu_img(&[
        "create",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "top.qcow2",
        "-F",
        "qcow2",
        &other,
        "1M",
    ]);
    make("other.qcow2", "qcow2");
    refused(&with, &["rests on the image itself"]);
    // The format is what the header says and not what the content looks like.
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-u",
        "-b",
        &secret,
        "-F",
        "raw",
        &folder.word("inside/evil.raw"),
        "1M",
    ]);
    make("evil.raw", "raw");
    let read = read_by_bantam(&folder, Path::new(&image), Format::Qcow2);
    assert!(read.starts_with(b"QFI"), "a raw image is data");
}

pub fn damaged() {
    let folder = Folder::new();
    std::fs::write(folder.path("a.raw"), content()).unwrap();
    let good = folder.word("good.qcow2");
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        &folder.word("a.raw"),
        &good,
    ]);
    let good = std::fs::read(good).unwrap();
    let image = folder.word("bad.qcow2");
    let be32 = |n: u32| n.to_be_bytes().to_vec();
    let be64 = |n: u64| n.to_be_bytes().to_vec();
    // In an image of 64 KiB clusters out of qemu-img the table of refcounts is the second.
    let first = good[0x10000..0x10008].to_vec();
    let patches: [(&str, usize, Vec<u8>, &[&str]); 26] = [
        ("magic", 0, b"QFJ\xfb".to_vec(), &["not a qcow2 image"]),
        ("version", 4, be32(9), &["version 9"]),
        ("encrypted", 32, be32(1), &["encrypted"]),
        ("luks", 32, be32(2), &["encrypted"]),
        ("cluster bits 5", 20, be32(5), &[]),
        ("cluster bits 60", 20, be32(60), &[]),
        ("unknown feature", 72, be64(1 << 40), &["feature"]),
        ("L1 outside", 40, be64(1 << 50), &[]),
        ("L1 not aligned", 40, be64(12345), &[]),
        ("L1 of 4 billion entries", 36, be32(u32::MAX), &[]),
        ("length 2^63", 24, be64(1 << 63), &["more than its tables"]),
        (
            "length 2^64 - 1",
            24,
            be64(u64::MAX),
            &["more than its tables"],
        ),
        ("odd length", 24, be64(1_000_001), &["sectors of 512"]),
        ("dirty", 72, be64(1), &["dirty"]),
        ("feature names cut", 116, be32(49), &["table of features"]),
        ("refcount table outside", 48, be64(1 << 60), &[]),
        ("refcount table past 2^63", 48, be64(1 << 63), &["outside"]),
        (
            "refcount table of 4 billion clusters",
            56,
            be32(u32::MAX),
            &["refcount table"],
        ),
        (
            "refcounts named twice",
            0x10008,
            first.clone(),
            &["a refcount block is where something else is"],
        ),
        // The block of refcounts is the third cluster, then come L1, L2, data.
        (
            "no refcounts",
            0x10000,
            be64(0),
            &["is not what its flag says", "-r all"],
        ),
        (
            "the header counts as free",
            0x20000,
            vec![0, 0],
            &["cluster 0x0 is used once, and counted as free", ",ro"],
        ),
        (
            "data counts as free",
            0x2000a,
            vec![0, 0],
            &["the refcount of data is not what its flag says"],
        ),
        (
            "the L1 table is shared",
            0x20006,
            vec![0, 2],
            &["cluster 0x3, one of its tables, is counted twice"],
        ),
        (
            "an L2 table is where the L1 table is",
            0x30000,
            be64(1 << 63 | 0x30000),
            &["an L2 table is where something else is (cluster 0x3)"],
        ),
        (
            "data is where the refcounts are",
            0x40000,
            be64(1 << 63 | 0x20000),
            &["data is where something else is (cluster 0x2)"],
        ),
        (
            "data outside",
            0x40000,
            be64(1 << 63 | 1 << 40),
            &["data is outside of the file"],
        ),
    ];
    for (what, at, bytes, words) in patches {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        std::fs::write(&image, &bad).unwrap();
        let kernel = common::guest::elf().to_str().unwrap();
        let outcome = run(&["run", kernel, "--dry-run", "--disk", &image]);
        if words.is_empty() && outcome.code() == 0 {
            // Found later, by the request that needs it.
            survives(&folder, what);
            continue;
        }
        assert_eq!(outcome.code(), 3, "{what}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 2, "{what}: {outcome:?}");
        if matches!(what, "encrypted" | "dirty") {
            let info = bantam_image(&["info", &image]).stdout;
            assert_eq!(info.contains("encrypted"), what == "encrypted", "{info}");
            let resized = run(&["image", "resize", &image, "+1M"]);
            assert_eq!(resized.code(), 3, "{what}: {resized:?}");
            assert!(resized.stderr.contains(words[0]), "{what}: {resized:?}");
        }
        for word in words {
            assert!(outcome.stderr.contains(word), "{what}: {outcome:?}");
        }
    }
    for len in [0, 1, 71, 72, 104, 512, 65536, 200_000] {
        std::fs::write(&image, &good[..len]).unwrap();
        survives(&folder, &format!("cut to {len}"));
    }
    // Tables full of anything: the first four clusters are header, refcounts and L1.
    let rounds = match std::env::var("BANTAM_SOAK") {
        Ok(_) => 2000,
        Err(_) => 60,
    };
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    for round in 0..rounds {
        let mut bad = good.clone();
        for _ in 0..1 + round % 40 {
            let random = numbers.next();
            let at = match round % 3 {
                0 => random % 112,
                1 => random % 0x50000,
                // Where the tables' entries are, by the 64 KiB clusters of this image.
                _ => 0x10000 * (random % 5) + (random >> 40) % 1024,
            };
            bad[at as usize] = (random >> 32) as u8;
        }
        std::fs::write(&image, &bad).unwrap();
        survives(&folder, &format!("round {round}"));
    }
    for (args, words) in [
        (&["-o", "extended_l2=on"][..], "feature"),
        (&["-o", "data_file=data.raw"], "another file"),
    ] {
        let _ = std::fs::remove_file(&image);
        let mut command = Command::new("qemu-img");
        command.current_dir(folder.0.path());
        let out = command
            .args(["create", "-f", "qcow2"])
            .args(args)
            .args([&image, "1M"])
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        refused(&image, &[words]);
    }
}

/// A table that counts as free, as a machine leaves it that was killed between two writes, is counted
/// before the image is written to, and by nobody who only looks.
pub fn uncounted() {
    let folder = Folder::new();
    let image = folder.word("killed.qcow2");
    std::fs::write(folder.path("a.raw"), content()).unwrap();
    let plain = folder.word("a.raw");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &plain, &image]);
    let good = std::fs::read(&image).unwrap();
    let mut killed = good.clone();
    killed[0x20006..0x2000a].fill(0); // the L1 table and the L2 table
    std::fs::write(&image, &killed).unwrap();
    let check = try_qemu("qemu-img", &["check", "-f", "qcow2", &image]);
    assert_eq!(check.status.code(), Some(2), "damaged for QEMU: {check:?}");
    let kernel = common::guest::elf().to_str().unwrap();
    for disk in [image.clone(), format!("{image},ro")] {
        let outcome = run(&["run", kernel, "--dry-run", "--disk", &disk]);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        assert!(std::fs::read(&image).unwrap() == killed, "{disk}");
    }
    for cache in [CacheMode::Writeback, CacheMode::Direct] {
        std::fs::write(&image, &killed).unwrap();
        let access = Access {
            format: Format::Qcow2,
            cache,
            ..Access::default()
        };
        drop(open_when_free(Path::new(&image), access).unwrap());
        assert!(std::fs::read(&image).unwrap() == good, "{cache:?}");
    }
}

/// A file that is nearly all hole is walked in good time, up to the number of clusters that is looked
/// at; and an L1 table of all entries that there can be is not followed once it repeats itself.
pub fn endless() {
    let folder = Folder::new();
    let image = folder.word("sparse.qcow2");
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=512",
        &image,
        "100M",
    ]);
    let file = File::options().write(true).open(&image).unwrap();
    file.set_len(512 << 28).unwrap();
    bantam_image(&["resize", &image, "100M"]);
    file.set_len((512 << 28) + 512).unwrap();
    let outcome = run(&["image", "resize", &image, "100M"]);
    assert_eq!(outcome.code(), 3, "{outcome:?}");
    assert!(outcome.stderr.contains("268435457 clusters"), "{outcome:?}");

    // Every entry of the L1 table, all that there can be, names one L2 table, and that one cluster.
    let image = folder.word("one.qcow2");
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=2M",
        &image,
        "16M",
    ]);
    let file = File::options().write(true).open(&image).unwrap();
    let entries: Vec<u8> = (4u64 << 21).to_be_bytes().repeat(1 << 18);
    file.write_all_at(&entries, 4 << 21).unwrap();
    for cluster in 5..21 {
        file.write_all_at(&entries, cluster << 21).unwrap();
    }
    file.write_all_at(&(16u32 << 18).to_be_bytes(), 36).unwrap();
    file.write_all_at(&(5u64 << 21).to_be_bytes(), 40).unwrap();
    let outcome = run(&["image", "resize", &image, "16M"]);
    assert_eq!(outcome.code(), 3, "{outcome:?}");
    let words = "an L2 table is where something else is";
    assert!(outcome.stderr.contains(words), "{outcome:?}");
}

/// Reading all of `bad.qcow2` ends in good time, in success or in one error, and never in a panic.
#[track_caller]
fn survives(folder: &Folder, what: &str) {
    let out = folder.path("survived.raw");
    let _ = std::fs::remove_file(&out);
    // A length that the damage has made up must not fill the test's disk.
    let mut command = ulimit("-f 100000");
    command.args(["image", "convert", "-f", "qcow2", "-O", "raw"]);
    command.args([folder.path("bad.qcow2"), out]);
    let outcome = run_with(command, b"", Duration::from_secs(20));
    let code = outcome.code();
    assert!(code == 0 || code == 2 || code == 3, "{what}: {outcome:?}");
    if code != 0 {
        assert_eq!(outcome.stderr.lines().count(), 2, "{what}: {outcome:?}");
    }
}

pub fn full_disk() {
    let folder = Folder::new();
    let plain = folder.word("plain.raw");
    std::fs::write(&plain, content()).unwrap();
    let new = folder.word("new.qcow2");
    // Every write past 1 MiB fails, as on a disk that is full.
    let mut command = ulimit("-f 1024");
    command.args(["image", "convert", &plain, &new]);
    let outcome = run_with(command, b"", Duration::from_secs(20));
    assert_eq!(outcome.code(), 3, "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:?}");
    let left: Vec<_> = std::fs::read_dir(folder.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["plain.raw"], "nothing is left behind");
}
