//! Kernels inside of ISOs, as xorriso makes them: found, and said to be missing.

mod common;

use std::path::Path;
use std::process::Command;

use common::trials::{exit_after, trials};
use common::{Numbers, guest, run};

fn main() {
    let there = common::has_program("xorriso");
    // The dry runs make a machine.
    let kvm = common::kvm().err();
    let missing = match there {
        true => kvm.as_deref(),
        false => Some("xorriso is not installed"),
    };
    let tests: [(&str, fn()); 5] = [
        ("kernels_are_found_where_distributions_keep_them", layouts),
        (
            "labels_are_in_the_command_line_where_they_are_needed",
            labels,
        ),
        ("kernels_are_found_where_boot_loaders_find_them", loaders),
        ("an_iso_without_a_kernel_is_one_clear_error", no_kernel),
        ("what_is_no_iso_is_one_clear_error", no_iso),
    ];
    exit_after(trials(missing, tests));
}

/// An ISO of `files`, as xorriso makes it with these options.
fn iso(folder: &Path, files: &[(&str, &[u8])], options: &[&str]) -> String {
    let tree = folder.join("tree");
    let _ = std::fs::remove_dir_all(&tree);
    std::fs::create_dir(&tree).unwrap();
    for (name, content) in files {
        let path = tree.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let out = folder.join("test.iso");
    let _ = std::fs::remove_file(&out);
    let (program, first) = match options {
        ["genisoimage", ..] => ("genisoimage", &["-quiet"][..]),
        _ => ("xorriso", &["-as", "mkisofs", "-quiet"][..]),
    };
    let options = options.iter().filter(|option| **option != "genisoimage");
    let made = Command::new(program)
        .args(first)
        .args(options)
        .arg("-o")
        .args([&out, &tree])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    out.to_str().unwrap().to_owned()
}

/// What finds the ISO's files in an Alpine Linux.
const ALPINE: &str = "modules=loop,squashfs,virtio_mmio,virtio_blk";

fn layouts() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = std::fs::read(guest::elf()).unwrap();
    let initrd = vec![0x42; 123_457];
    for (kernel_at, initrd_at, append) in [
        ("live/vmlinuz", "live/initrd.img", "boot=live components"),
        (
            "live/vmlinuz-6.1.0-13-amd64",
            "live/initrd.img-6.1.0-13-amd64",
            "boot=live components",
        ),
        ("casper/vmlinuz", "casper/initrd", "boot=casper"),
        ("boot/vmlinuz-virt", "boot/initramfs-virt", ALPINE),
        ("boot/vmlinuz-lts", "boot/initramfs-lts", ALPINE),
        ("install.amd/vmlinuz", "install.amd/initrd.gz", ""),
    ] {
        let files = [
            ("README", &b"something else"[..]),
            (kernel_at, &kernel),
            (initrd_at, &initrd),
        ];
        for options in makers() {
            let iso = iso(folder.path(), &files, &options);
            let kernel = format!("kernel    {iso} (ELF");
            // The command line ends with these words, or with ours where an ISO needs none.
            let cmdline = format!("nr_uarts=1 {append}").trim().to_owned() + "\n";
            boots(&iso, initrd_at, &[&kernel, &cmdline]);
        }
    }
    let files = [("live/vmlinuz", &kernel[..]), ("live/initrd.img", &initrd)];
    let iso = iso(folder.path(), &files, &["-r"]);
    let both = run(&["run", guest::elf().to_str().unwrap(), "--iso", &iso]);
    assert_eq!(both.code(), 2, "{both:?}");
    assert!(both.stderr.contains("--cdrom"), "{both:?}");
}

/// The ways in which an ISO is made here: with what is installed.
fn makers() -> Vec<Vec<&'static str>> {
    let mut makers = vec![vec!["-r"], vec!["-r", "-J", "-iso-level", "3"]];
    match common::has_program("genisoimage") {
        true => makers.push(vec!["genisoimage", "-r", "-J"]),
        false => eprintln!("genisoimage is not installed: only xorriso's ISOs are looked at"),
    }
    makers
}

/// `bantam run --iso` would boot it, with this initrd, the ISO as a disk that is only read, and these
/// words in its report.
#[track_caller]
fn boots(iso: &str, initrd_at: &str, words: &[&str]) {
    let out = run(&["run", "--iso", iso, "--dry-run"]);
    assert_eq!(out.code(), 0, "{out:?}");
    let initrd = format!("initrd    {iso}:/{initrd_at} (");
    let disk = format!("vda: {iso} (");
    for word in [&[&initrd, &disk, "sectors, ro,"], words].concat() {
        assert!(out.stdout.contains(word), "no '{word}' in {out:?}");
    }
}

/// Without a boot loader's configuration, by their folders alone.
fn labels() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = std::fs::read(guest::elf()).unwrap();
    for (kernel_at, initrd_at, label, append) in [
        (
            "images/pxeboot/vmlinuz",
            "images/pxeboot/initrd.img",
            "Fedora-WS-Live-39-1-5",
            "root=live:CDLABEL=Fedora-WS-Live-39-1-5 rd.live.image",
        ),
        (
            "boot/x86_64/loader/linux",
            "boot/x86_64/loader/initrd",
            "openSUSE Leap",
            "root=live:CDLABEL=openSUSE\\x20Leap rd.live.image",
        ),
        (
            "arch/boot/x86_64/vmlinuz-linux",
            "arch/boot/x86_64/initramfs-linux.img",
            "ARCH_202511",
            "archisobasedir=arch archisolabel=ARCH_202511",
        ),
    ] {
        for mut options in makers() {
            options.extend(["-V", label]);
            let files = [(kernel_at, &kernel[..]), (initrd_at, b"initrd")];
            let iso = iso(folder.path(), &files, &options);
            boots(&iso, initrd_at, &[append]);
        }
    }
}

/// With configurations as the distributions have them.
fn loaders() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = std::fs::read(guest::elf()).unwrap();
    let nixos = "DEFAULT boot\nLABEL boot\nMENU LABEL NixOS 24.05 Installer\nLINUX /boot/bzImage\n\
                 APPEND init=/nix/store/abc-nixos-system/init  root=LABEL=nixos-24.05 loglevel=4\n\
                 INITRD /boot/initrd\n";
    let arch = "LABEL arch\nTEXT HELP\nBoot the live system.\nENDTEXT\nMENU LABEL Arch\n\
                LINUX /arch/boot/x86_64/vmlinuz-linux\n\
                INITRD /arch/boot/intel-ucode.img,/arch/boot/x86_64/initramfs-linux.img\n\
                APPEND archisobasedir=arch archisosearchuuid=2025-11-01-10-00-00-00\n";
    let fedora = "set default=\"1\"\nmenuentry 'Start Fedora' --class fedora {\n\
                  \tlinux ($root)/boot/x86_64/loader/linux quiet rhgb root=live:CDLABEL=F42 rd.live.image\n\
                  \tinitrd ($root)/boot/x86_64/loader/initrd\n}\n";
    let entries = "title Arch\nsort-key 01\nlinux /arch/boot/x86_64/vmlinuz-linux\n\
                   initrd /arch/boot/x86_64/initramfs-linux.img\noptions archisobasedir=arch x=y\n";
    let suse = "default linux\nlabel harddisk\n  localboot 1\nlabel linux\n  kernel linux\n  \
                append initrd=initrd splash=silent install=cd vga=791\n";
    let own = "include menu.cfg\n";
    let menu = "label gone\nkernel /gone\ninitrd /gone\nlabel own\nkernel /k/Kernel.x\n\
                append initrd=/k/RamDisk console=tty0 me=1 ---\n";
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str, &'a str);
    let cases: [Case; 6] = [
        (
            &[("isolinux/isolinux.cfg", nixos)],
            "boot/bzImage",
            "boot/initrd",
            "init=/nix/store/abc-nixos-system/init root=LABEL=nixos-24.05 loglevel=4\n",
        ),
        (
            &[
                ("boot/syslinux/archiso_sys-linux.cfg", arch),
                ("boot/syslinux/syslinux.cfg", "DEFAULT arch\n"),
            ],
            "arch/boot/x86_64/vmlinuz-linux",
            "arch/boot/x86_64/initramfs-linux.img",
            "archisobasedir=arch archisosearchuuid=2025-11-01-10-00-00-00\n",
        ),
        (
            &[("boot/grub2/grub.cfg", fedora)],
            "boot/x86_64/loader/linux",
            "boot/x86_64/loader/initrd",
            "quiet root=live:CDLABEL=F42 rd.live.image\n",
        ),
        (
            &[("loader/entries/01-archiso-x86_64-linux.conf", entries)],
            "arch/boot/x86_64/vmlinuz-linux",
            "arch/boot/x86_64/initramfs-linux.img",
            "archisobasedir=arch x=y\n",
        ),
        (
            &[("boot/x86_64/loader/isolinux.cfg", suse)],
            "boot/x86_64/loader/linux",
            "boot/x86_64/loader/initrd",
            "nr_uarts=1 install=cd\n",
        ),
        (
            &[("isolinux/isolinux.cfg", own), ("isolinux/menu.cfg", menu)],
            "k/Kernel.x",
            "k/RamDisk",
            "nr_uarts=1 me=1\n",
        ),
    ];
    for (configs, kernel_at, initrd_at, cmdline) in cases {
        for options in makers() {
            let mut files = vec![(kernel_at, &kernel[..]), (initrd_at, b"initrd")];
            files.extend(configs.iter().map(|(at, text)| (*at, text.as_bytes())));
            let iso = iso(folder.path(), &files, &options);
            boots(&iso, initrd_at, &[cmdline]);
        }
    }
}

#[track_caller]
fn refused(path: &str, words: &[&str]) {
    let out = run(&["run", "--iso", path, "--dry-run"]);
    assert_eq!(out.code(), 3, "{out:?}");
    assert_eq!(out.stderr.lines().count(), 2, "{out:?}");
    for word in words {
        assert!(out.stderr.contains(word), "no '{word}' in {out:?}");
    }
}

fn no_kernel() {
    let folder = tempfile::tempdir().unwrap();
    for files in [
        &[("music/song.flac", &b"la la"[..])][..],
        &[("live/vmlinuz", b"a kernel without its initrd")],
    ] {
        let iso = iso(folder.path(), files, &["-r"]);
        refused(&iso, &[&iso, "no kernel is found", "/casper", "--cdrom"]);
    }
    let files = [
        ("live/vmlinuz", &b"no kernel"[..]),
        ("live/initrd.img", b"x"),
    ];
    let iso = iso(folder.path(), &files, &["-r"]);
    refused(&iso, &["/live/vmlinuz"]);
}

fn no_iso() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.iso");
    let name = path.to_str().unwrap();
    for content in [&b"short"[..], &[0; 100_000], &[0xff; 100_000]] {
        std::fs::write(&path, content).unwrap();
        refused(name, &[name, "is not an ISO image"]);
    }
    for (content, words) in [
        (
            &std::fs::read(guest::elf()).unwrap()[..],
            ["an ELF file", "bantam run"],
        ),
        (b"QFI\xfb\0\0\0\x03", ["a qcow2 disk image", "--disk"]),
        (b"07070100", ["a cpio archive", "--initrd"]),
    ] {
        std::fs::write(&path, content).unwrap();
        refused(name, &words);
    }
    // Where another file belongs, an ISO is told from it.
    let good = iso(folder.path(), &[("README", b"x")], &["-r"]);
    for (args, code) in [
        (&["run", &good][..], 3),
        (&["run", "--kernel", &good], 3),
        (&["inspect", &good], 3),
        (
            &["run", guest::elf().to_str().unwrap(), "--initrd", &good],
            3,
        ),
        (&["run", "--cdrom", &good], 2),
    ] {
        let out = run(args);
        assert_eq!(out.code(), code, "{out:?}");
        assert!(out.stderr.contains(&format!("--iso {good}")), "{out:?}");
    }
    refused("/nonexistent.iso", &["/nonexistent.iso"]);
    refused("/tmp", &["/tmp"]);

    // Cut anywhere, and bytes changed anywhere: an error or a machine, and never a panic.
    let kernel = std::fs::read(guest::elf()).unwrap();
    let files = [("live/vmlinuz", &kernel[..]), ("live/initrd.img", b"x")];
    let good = std::fs::read(iso(folder.path(), &files, &["-r", "-J"])).unwrap();
    let survives = |what: &str, bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let out = run(&["run", "--iso", name, "--dry-run"]);
        assert!(matches!(out.code(), 0 | 2 | 3), "{what}: {out:?}");
    };
    for len in [32_768, 34_816, 36_864, 50_000, good.len() - 1] {
        survives(&format!("cut to {len}"), &good[..len]);
    }
    let mut numbers = Numbers(0x1357_9bdf_0246_8ace);
    for round in 0..60 {
        let mut bad = good.clone();
        for _ in 0..20 {
            let random = numbers.next();
            // Descriptors and directories are in front.
            bad[0x8000 + (random % 0x10000) as usize] = (random >> 40) as u8;
        }
        survives(&format!("round {round}"), &bad);
    }
}
