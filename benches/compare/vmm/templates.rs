//! The table: how each VMM is asked for the same machine.

use super::template::{DiskKind, File, Lacks, Template};

const QEMU: &str = "qemu-system-x86_64";
/// The host's processor, all of it or as much as this QEMU can have of it (see [`super::probe`]).
const QEMU_CPUS: &[&str] = &["host", "host,-arch-capabilities", "max", "kvm64"];
/// An address where no VMM of the table has RAM or a device: the access goes all the way to the
/// VMM, which finds nothing there.
const NOTHING: u64 = 0xd800_0000;

/// What a template says unless it says otherwise: no way to ask for anything.
const PLAIN: Template = Template {
    name: "",
    program: "",
    asked_only: false,
    cpus: &[],
    version: &[],
    base: &[],
    pvh: &[],
    initrd: &[],
    disk: &[],
    file: None,
    cmdline: "",
    virtio_mmio: None,
    mmio_probe: NOTHING,
    disks: 8,
    lacks: &[],
};

/// Bantam first: ratios are its samples over the others'.
pub const TEMPLATES: [Template; 7] = [
    Template {
        name: "bantam",
        version: &["--version"],
        base: &[
            "run",
            "{kernel}",
            "--cmdline",
            "{cmdline}",
            "--cpus",
            "{cpus}",
            "--memory",
            "{memory}M",
        ],
        pvh: &["--protocol", "pvh"],
        initrd: &["--initrd", "{initrd}"],
        disk: &[
            (DiskKind::Cached, &["--disk", "{disk}"]),
            (
                DiskKind::Direct,
                &["--disk", "{disk},cache=direct,iothread"],
            ),
            (DiskKind::Qcow2, &["--disk", "{disk},format=qcow2,iothread"]),
        ],
        cmdline: "pci=off",
        virtio_mmio: Some((0xd000_0000, 0x1000, 16)),
        ..PLAIN
    },
    Template {
        name: "floor",
        base: &["{kernel}", "{cmdline}"],
        initrd: &["{initrd}"],
        cmdline: "pci=off",
        lacks: &[Lacks::Smp, Lacks::BzImage],
        ..PLAIN
    },
    Template {
        name: "qemu-microvm",
        program: QEMU,
        cpus: QEMU_CPUS,
        version: &["--version"],
        // docs/system/i386/microvm.rst, "Running a microvm-based VM", with a serial port.
        base: &[
            "-M",
            "microvm,acpi=off,pit=off,pic=off,rtc=on,x-option-roms=off",
            "-accel",
            "kvm",
            "-cpu",
            "{cpu}",
            "-smp",
            "{cpus}",
            "-m",
            "{memory}",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-monitor",
            "none",
            "-name",
            "guest,debug-threads=on",
            "-global",
            "virtio-mmio.force-legacy=false",
            "-serial",
            "stdio",
            "-kernel",
            "{kernel}",
            "-append",
            "{cmdline}",
        ],
        initrd: &["-initrd", "{initrd}"],
        disk: &[
            (
                DiskKind::Cached,
                &[
                    "-blockdev",
                    "driver=raw,node-name=d{n},file.driver=file,file.filename={disk},file.aio=threads",
                    "-device",
                    "virtio-blk-device,drive=d{n}",
                ],
            ),
            (
                DiskKind::Direct,
                &[
                    "-object",
                    "iothread,id=t{n}",
                    "-blockdev",
                    "driver=raw,node-name=d{n},cache.direct=on,file.driver={driver},file.filename={disk},file.aio=io_uring,file.cache.direct=on",
                    "-device",
                    "virtio-blk-device,drive=d{n},iothread=t{n}",
                ],
            ),
            (
                DiskKind::Qcow2,
                &[
                    "-object",
                    "iothread,id=t{n}",
                    "-blockdev",
                    "driver=qcow2,node-name=d{n},file.driver=file,file.filename={disk},file.aio=threads",
                    "-device",
                    "virtio-blk-device,drive=d{n},iothread=t{n}",
                ],
            ),
        ],
        cmdline: "pci=off",
        virtio_mmio: Some((0xfeb0_0000, 0x200, 24)),
        ..PLAIN
    },
    Template {
        name: "qemu-q35",
        program: QEMU,
        cpus: QEMU_CPUS,
        version: &["--version"],
        base: &[
            "-M",
            "q35",
            "-accel",
            "kvm",
            "-cpu",
            "{cpu}",
            "-smp",
            "{cpus}",
            "-m",
            "{memory}",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-vga",
            "none",
            "-monitor",
            "none",
            "-name",
            "guest,debug-threads=on",
            "-serial",
            "stdio",
            "-kernel",
            "{kernel}",
            "-append",
            "{cmdline}",
        ],
        initrd: &["-initrd", "{initrd}"],
        disk: &[(
            DiskKind::Cached,
            &[
                "-blockdev",
                "driver=raw,node-name=d{n},file.driver=file,file.filename={disk}",
                "-device",
                "virtio-blk-pci,drive=d{n}",
            ],
        )],
        ..PLAIN
    },
    // Firecracker 1.16.
    Template {
        name: "firecracker",
        program: "firecracker",
        asked_only: true,
        version: &["--version"],
        // Its log goes to standard output unless told otherwise, where the guest's console is.
        base: &[
            "--no-api",
            "--config-file",
            "{folder}/firecracker.json",
            "--log-path",
            "/dev/null",
        ],
        file: Some(File {
            name: "firecracker.json",
            text: r#"{"boot-source":{"kernel_image_path":"{kernel}","boot_args":"{cmdline}"{initrd}},
"drives":[{disks}],"machine-config":{"vcpu_count":{cpus},"mem_size_mib":{memory}}}"#,
            initrd: r#","initrd_path":"{initrd}""#,
            // Without "Writeback" it promises a guest's flush and does nothing.
            disk: r#"{"drive_id":"d{n}","path_on_host":"{disk}","is_root_device":false,"is_read_only":false,"cache_type":"Writeback"}"#,
        }),
        // In the file. It opens nothing past the page cache, and knows raw images only.
        disk: &[(DiskKind::Cached, &[])],
        cmdline: "pci=off",
        // MMIO32_MEM_START of its layout: a page for the boot timer, then the devices.
        virtio_mmio: Some((0xc000_0000, 0x1000, 17)),
        lacks: &[Lacks::BzImage],
        ..PLAIN
    },
    // Cloud Hypervisor 53. It writes no first sector of an image whose type it has had to guess.
    Template {
        name: "cloud-hypervisor",
        program: "cloud-hypervisor",
        asked_only: true,
        version: &["--version"],
        base: &[
            "--kernel",
            "{kernel}",
            "--cmdline",
            "{cmdline}",
            "--cpus",
            "boot={cpus}",
            "--memory",
            "size={memory}M",
            "--serial",
            "tty",
            "--console",
            "off",
        ],
        initrd: &["--initramfs", "{initrd}"],
        disk: &[
            (DiskKind::Cached, &["--disk", "path={disk},image_type=raw"]),
            (
                DiskKind::Direct,
                &["--disk", "path={disk},image_type=raw,direct=on"],
            ),
            (DiskKind::Qcow2, &["--disk", "path={disk},image_type=qcow2"]),
        ],
        ..PLAIN
    },
    // kvmtool of 2026. What is not bzImage it starts as a flat binary in real mode. Without
    // --nodefaults it shares folders of the host's and adds words of its own to the command line.
    Template {
        name: "kvmtool",
        program: "lkvm",
        asked_only: true,
        version: &["version"],
        base: &[
            "run",
            "--nodefaults",
            "--network",
            "mode=none",
            "--loglevel",
            "warning",
            "--console",
            "serial",
            "--kernel",
            "{kernel}",
            "--params",
            "{cmdline}",
            "--cpus",
            "{cpus}",
            "--mem",
            "{memory}",
        ],
        initrd: &["--initrd", "{initrd}"],
        disk: &[
            (DiskKind::Cached, &["--disk", "{disk}"]),
            (DiskKind::Direct, &["--disk", "{disk},direct"]),
        ],
        disks: 4,
        lacks: &[Lacks::Elf],
        ..PLAIN
    },
];

/// Not a VMM: the same requests without one.
pub const FIO: Template = Template {
    name: "fio",
    program: "fio",
    version: &["--version"],
    ..PLAIN
};
