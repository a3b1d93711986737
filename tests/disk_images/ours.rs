//! What Bantam makes and changes.

use super::*;

pub fn writes() {
    let folder = Folder::new();
    let shadow = folder.word("shadow.raw");
    for cluster in ["512", "4k", "64k", "2M"] {
        let image = folder.word(&format!("w{cluster}.qcow2"));
        bantam_image(&["create", "--cluster-size", cluster, &image, "12M"]);
        let mut wanted = vec![0u8; LEN];
        {
            let access = Access {
                format: Format::Qcow2,
                ..Access::default()
            };
            let opened = open::open(Path::new(&image), access).unwrap();
            let guest = Guest::new(&*opened.image);
            let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
            let mut below = |end| numbers.below(end);
            for _ in 0..400 {
                let len = (1 + below(300)) * 512;
                let offset = below((LEN as u64 - len) / 512) * 512;
                let span = offset as usize..(offset + len) as usize;
                match below(8) {
                    0..5 => {
                        let byte = below(255) as u8 + 1;
                        guest.write(offset, &vec![byte; len as usize]);
                        wanted[span].fill(byte);
                    }
                    5 => {
                        let unmap = below(2) == 0;
                        guest.run(Work::Zero { offset, len, unmap });
                        wanted[span].fill(0);
                    }
                    6 => {
                        guest.run(Work::Discard { offset, len });
                        // What is there now is anybody's guess: look, and go on from that.
                        let now = guest.read(offset, len as usize);
                        wanted[span].copy_from_slice(&now);
                    }
                    _ => {
                        guest.run(Work::Flush);
                        let read = guest.read(offset, len as usize);
                        assert!(read == wanted[span], "clusters of {cluster}: at {offset}");
                    }
                }
            }
            // Longer than what imago gets at a time.
            let long: Vec<u8> = (0..(3u32 << 20) + 512).map(|n| (n % 251) as u8).collect();
            guest.write(1536, &long);
            wanted[1536..][..long.len()].copy_from_slice(&long);
            guest.run(Work::Flush);
            assert!(guest.read(0, LEN) == wanted, "clusters of {cluster}");
        }
        std::fs::write(&shadow, &wanted).unwrap();
        qemu_img(&["check", "-f", "qcow2", &image]);
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &image, &shadow]);
    }
}

pub fn made() {
    let folder = Folder::new();
    for (args, size) in [
        (&["create", "-f", "qcow2"][..], "20G"),
        (&["create", "--cluster-size", "512"], "100M"),
        (&["create", "--cluster-size", "2M"], "1T"),
        (&["create"], "513"),
    ] {
        let image = folder.word("made.qcow2");
        bantam_image(&[args, &[&image, size]].concat());
        qemu_img(&["check", "-f", "qcow2", &image]);
        let ours = bantam_image(&["info", "--json", &image]).stdout;
        let theirs = qemu_img(&["info", "-f", "qcow2", "--output=json", &image]);
        let ours: serde_json::Value = serde_json::from_str(&ours).unwrap();
        let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
        for key in ["format", "virtual-size", "actual-size", "cluster-size"] {
            assert_eq!(ours[key], theirs[key], "{key} of {args:?}");
        }
        std::fs::remove_file(image).unwrap();
    }
    let raw = folder.word("made.img");
    bantam_image(&["create", &raw, "3G"]);
    assert_eq!(std::fs::metadata(&raw).unwrap().len(), 3 << 30);
    let again = run(&["image", "create", &raw, "3G"]);
    assert_eq!(again.code(), 3, "{again:?}");
    assert!(again.stderr.contains("is there already"), "{again:?}");

    let top = folder.word("top.qcow2");
    bantam_image(&["create", "-b", "made.img", "-F", "raw", &top]);
    qemu_img(&["check", "-f", "qcow2", &top]);
    let info = qemu_img(&["info", "-f", "qcow2", &top]);
    assert!(info.contains("backing file: made.img"), "{info}");
    assert!(info.contains("backing file format: raw"), "{info}");
}

pub fn conversions() {
    let folder = Folder::new();
    std::fs::write(folder.path("a.raw"), content()).unwrap();
    // A file with holes, whose end is one.
    let sparse = File::create(folder.path("sparse.raw")).unwrap();
    sparse.set_len(200 << 20).unwrap();
    sparse.write_all_at(&[7; 5000], 100 << 20).unwrap();
    for name in ["a", "sparse"] {
        let raw = folder.word(&format!("{name}.raw"));
        let qcow2 = folder.word(&format!("{name}.qcow2"));
        let back = folder.word(&format!("{name}.back"));
        bantam_image(&["convert", &raw, &qcow2]);
        qemu_img(&["check", "-f", "qcow2", &qcow2]);
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow2]);
        bantam_image(&["convert", &qcow2, &back]);
        assert!(std::fs::read(&raw).unwrap() == std::fs::read(&back).unwrap());
        let into = run(&["image", "convert", &raw, &qcow2]);
        assert_eq!(into.code(), 3, "no image is overwritten: {into:?}");
    }
    use std::os::unix::fs::MetadataExt;
    for name in ["sparse.qcow2", "sparse.back"] {
        let blocks = std::fs::metadata(folder.path(name)).unwrap().blocks();
        assert!(blocks < 4096, "{name} takes {blocks} blocks");
    }
}

pub fn resizes() {
    let folder = Folder::new();
    std::fs::write(folder.path("a.raw"), content()).unwrap();
    let (raw, qcow2) = (folder.word("a.raw"), folder.word("a.qcow2"));
    bantam_image(&["convert", &raw, &qcow2]);
    for image in [&raw, &qcow2] {
        bantam_image(&["resize", image, "+8M"]);
        let refused = run(&["image", "resize", image, "6M"]);
        assert_eq!(refused.code(), 2, "{refused:?}");
        assert!(refused.stderr.contains("--shrink"), "{refused:?}");
        bantam_image(&["resize", "--shrink", image, "6M"]);
        bantam_image(&["resize", image, "10M"]);
    }
    qemu_img(&["check", "-f", "qcow2", &qcow2]);
    qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow2]);
    let bytes = std::fs::read(&raw).unwrap();
    assert!(bytes[..6 << 20] == content()[..6 << 20]);
    assert!(bytes[6 << 20..].iter().all(|b| *b == 0) && bytes.len() == 10 << 20);

    // A last cluster that is not a whole one keeps what lies below it.
    let odd = folder.word("odd.qcow2");
    std::fs::write(folder.path("odd.raw"), vec![3; (1 << 20) + 4096]).unwrap();
    bantam_image(&["create", "-b", "odd.raw", "-F", "raw", &odd]);
    bantam_image(&["resize", "--backing", &odd, "+1M"]);
    let read = read_by_bantam(&folder, Path::new(&odd), Format::Qcow2);
    let end = (1 << 20) + 4096;
    assert!(read[..end].iter().all(|b| *b == 3), "the old disk");
    assert!(read[end..].iter().all(|b| *b == 0), "the new part");
    qemu_img(&["check", "-f", "qcow2", &odd]);

    // What lies below past the old end does not show through.
    let top = folder.word("top.qcow2");
    std::fs::write(folder.path("below.raw"), vec![3; 4 << 20]).unwrap();
    bantam_image(&["create", "-b", "below.raw", "-F", "raw", &top, "1M"]);
    bantam_image(&["resize", "--backing", &top, "3M"]);
    let read = read_by_bantam(&folder, Path::new(&top), Format::Qcow2);
    assert!(read[..1 << 20].iter().all(|b| *b == 3));
    assert!(read[1 << 20..].iter().all(|b| *b == 0));
}
