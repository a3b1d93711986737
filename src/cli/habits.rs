//! What users of QEMU, docker and other programs type from habit, and what becomes of it: one table.
//!
//! A word is *taken* only where Bantam does what the other program would have done: it becomes an
//! option of ours, or nothing where a machine is that way already. Every other word is an error
//! that says what to type instead, or that there is no such thing here. `words`
//! finds the words among the arguments.

use super::habit_values::{
    already, device, drive, fw_cfg, load_credential, object, serial, set_credential, smbios, smp,
};

/// A word of another program.
#[derive(Debug)]
pub struct Habit {
    /// Its spellings. A word of several letters is understood with one dash and with two.
    pub words: &'static [&'static str],
    /// Whether the next argument belongs to it.
    pub value: bool,
    /// What becomes of it.
    pub answer: Answer,
}

/// What becomes of a word.
#[derive(Debug)]
pub enum Answer {
    /// Every machine is that way already: the word goes away.
    Already,
    /// This option of ours means the same.
    Same(&'static str),
    /// The function knows those values that mean something here, and puts them into our words; any
    /// other value gets the other answer, which takes nothing.
    ByValue(fn(&str) -> Option<Vec<String>>, &'static Answer),
    /// Nothing is lost without it, for this reason.
    NotNeeded(&'static str),
    /// This is typed instead; `{}` is its value, `{disk}` a value of `-drive` in the words of `--disk`.
    Use(&'static str),
    /// Missing here: what, and what helps meanwhile.
    NotYet(&'static str, &'static str),
}

use Answer::{Already, ByValue, NotNeeded, NotYet, Same, Use};

const fn flag(words: &'static [&'static str], answer: Answer) -> Habit {
    Habit {
        words,
        value: false,
        answer,
    }
}

const fn with(words: &'static [&'static str], answer: Answer) -> Habit {
    Habit {
        words,
        value: true,
        answer,
    }
}

const NO_NETWORK: Answer = NotYet(
    "a machine has no network",
    "leave it away; what the guest needs goes into a disk (--disk) or an ISO (--cdrom)",
);
const NO_GRAPHICS: Answer = NotYet(
    "a machine has no screen",
    "leave it away: the console is the guest's serial port, in this terminal",
);
const NO_SHARING: Answer = NotYet(
    "folders of the host are not shared with a guest",
    "put the files into an ISO or a disk: 'xorriso -as mkisofs -r -o files.iso FOLDER', then --cdrom files.iso",
);
const NO_MONITOR: Answer = NotYet(
    "a machine has no monitor",
    "leave it away; Ctrl-a c shows the machine's state, Ctrl-a x ends it",
);
const NO_DEBUGGER: Answer = NotYet(
    "no debugger can be attached",
    "leave it away; a vCPU that crashes prints its registers and code",
);
const NO_FIRMWARE: Answer = NotNeeded(
    "kernels are entered directly, without a BIOS or UEFI; a live or installer ISO is booted with --iso",
);
const NO_DEVICES: Answer = NotYet(
    "no other devices can be added",
    "disks are --disk and --cdrom; serial port, clock and power button are always there",
);
const RECLAIM: Answer = Use("'--reclaim': what the guest frees goes back to the host");
const IN_BACKGROUND: Answer = NotYet(
    "a machine stays in the foreground",
    "let the shell do it: bantam run ... --console file=console.log </dev/null &",
);
const NO_CONTAINER: Answer =
    NotNeeded("a guest is a machine of its own, with its own kernel and users");
const DISK_INSTEAD: Answer = Use("'--disk {}': the guest finds it as /dev/vda");
const ANY_CPU: Answer = NotNeeded(
    "a guest has the host's processor, as with QEMU's '-cpu host'; its VMX or SVM too with --nested",
);
const ONE_MACHINE: Answer =
    NotNeeded("there is one kind of machine: virtio-mmio, ACPI, no PCI bus");

/// All of them.
pub const HABITS: &[Habit] = &[
    // ---- QEMU: what is taken
    with(&["-kernel"], Same("--kernel")),
    with(&["-initrd"], Same("--initrd")),
    with(&["-append"], Same("--append")),
    with(&["-cdrom"], Same("--cdrom")),
    with(
        &["-smp"],
        ByValue(smp, &Use("'--cpus N[,sockets=N][,cores=N][,threads=N]'")),
    ),
    with(&["-uuid"], Same("--uuid")),
    with(
        &["-smbios"],
        ByValue(
            smbios,
            &Use("'--credential NAME=VALUE' or '--uuid UUID': SMBIOS says nothing else of yours"),
        ),
    ),
    with(
        &["-fw_cfg"],
        ByValue(
            fw_cfg,
            &NotYet(
                "a machine has no fw_cfg device",
                "leave it away; --credential and --credential-file give systemd what it takes from there",
            ),
        ),
    ),
    flag(&["-nographic"], Already),
    flag(&["-no-reboot"], Same("--no-reboot")),
    flag(&["-snapshot"], Same("--snapshot")),
    flag(&["-enable-kvm"], Already),
    flag(
        &[
            "-nodefaults",
            "-no-user-config",
            "-no-fd-bootchk",
            "-no-hpet",
        ],
        Already,
    ),
    flag(&["-help"], Same("--help")),
    with(
        &["-accel"],
        ByValue(
            |value| already(value, &["kvm", "accel=kvm"]),
            &NotYet(
                "guests run on KVM alone",
                "leave it away; 'bantam check' tells about this host",
            ),
        ),
    ),
    with(
        &["-cpu"],
        ByValue(|value| already(value, &["host", "max"]), &ANY_CPU),
    ),
    with(
        &["-M", "-machine"],
        ByValue(|value| already(value, &["accel=kvm"]), &ONE_MACHINE),
    ),
    with(
        &["-drive"],
        ByValue(
            drive,
            &Use("'--disk {disk}': a virtio disk, which the guest finds as /dev/vda"),
        ),
    ),
    with(
        &["-net", "-nic"],
        ByValue(|value| already(value, &["none"]), &NO_NETWORK),
    ),
    with(
        &["-display", "-vga"],
        ByValue(|value| already(value, &["none"]), &NO_GRAPHICS),
    ),
    with(
        &["-serial"],
        ByValue(
            serial,
            &NotYet(
                "the serial port goes to a terminal, a file or nowhere",
                "give --console stdio, none, pty or file=PATH",
            ),
        ),
    ),
    with(
        &["-monitor", "-qmp", "-qmp-pretty"],
        ByValue(|value| already(value, &["none", "null"]), &NO_MONITOR),
    ),
    with(
        &["-parallel"],
        ByValue(|value| already(value, &["none", "null"]), &NO_DEVICES),
    ),
    // ---- QEMU: what has another name
    with(
        &["-hda", "-hdb", "-hdc", "-hdd", "-sd", "-mtdblock"],
        DISK_INSTEAD,
    ),
    with(&["-blockdev"], Use("'--disk PATH[,format=qcow2][,ro]'")),
    with(&["-mem-path"], Use("'--memory-backing hugetlbfs'")),
    flag(
        &["-mem-prealloc"],
        Use("'--memory-backing hugetlbfs', whose pages are reserved at the start"),
    ),
    with(
        &["-readconfig"],
        Use("'--config vm.toml' (docs/configuration.md has an example)"),
    ),
    flag(&["-version"], Use("'bantam --version'")),
    // ---- QEMU: what nobody needs here
    with(&["-name"], NotNeeded("a machine has no name")),
    with(
        &["-acpitable"],
        NotNeeded("a machine carries no ACPI tables of yours"),
    ),
    with(
        &["-boot"],
        NotNeeded("the kernel is named on the command line; '--iso PATH' boots from a CD or DVD"),
    ),
    with(&["-bios", "-pflash", "-L", "-option-rom"], NO_FIRMWARE),
    flag(
        &["-no-acpi"],
        NotNeeded("add 'acpi=off' to the kernel's words: --append acpi=off"),
    ),
    with(
        &["-rtc"],
        NotNeeded("a guest takes the time from KVM's clock, in UTC"),
    ),
    with(
        &["-overcommit", "-realtime"],
        NotNeeded("guest memory is taken as the guest touches it"),
    ),
    with(
        &["-sandbox", "-runas", "-chroot"],
        NotNeeded("run bantam as the user who may do least: it needs /dev/kvm and its files"),
    ),
    with(
        &["-dtb"],
        NotNeeded("x86 kernels read ACPI tables, which a machine has"),
    ),
    // ---- QEMU: what is missing
    with(&["-netdev"], NO_NETWORK),
    with(&["-device"], ByValue(device, &NO_DEVICES)),
    with(&["-object"], ByValue(object, &NO_DEVICES)),
    with(&["-global", "-chardev", "-tpmdev"], NO_DEVICES),
    with(
        &["-usbdevice", "-audio", "-audiodev", "-soundhw", "-watchdog"],
        NO_DEVICES,
    ),
    flag(&["-usb"], NO_DEVICES),
    with(&["-fda", "-fdb"], NO_DEVICES),
    flag(&["-daemonize"], IN_BACKGROUND),
    with(
        &["-pidfile"],
        NotYet(
            "no file with the process's number is written",
            "let the shell do it: bantam run ... & echo $! >FILE",
        ),
    ),
    with(&["-vnc", "-spice"], NO_GRAPHICS),
    flag(&["-curses", "-sdl", "-gtk", "-full-screen"], NO_GRAPHICS),
    with(&["-mon"], NO_MONITOR),
    flag(&["-S", "-s", "-singlestep"], NO_DEBUGGER),
    with(&["-gdb", "-D", "-trace", "-icount"], NO_DEBUGGER),
    with(&["-virtfs", "-fsdev"], NO_SHARING),
    with(
        &["-numa"],
        NotYet(
            "a machine has one NUMA node",
            "leave it away; --cpus 8,sockets=2 gives it two sockets",
        ),
    ),
    with(
        &["-loadvm", "-incoming"],
        NotYet(
            "a machine's state is neither saved nor loaded",
            "start it from its kernel and disks",
        ),
    ),
    flag(
        &["-no-shutdown"],
        NotYet(
            "a machine ends when its guest powers off",
            "leave it away; --reboot starts it again after a reboot",
        ),
    ),
    with(
        &["-action"],
        NotYet(
            "what follows a reboot or panic cannot be chosen",
            "--reboot starts the machine again; a panic ends it with exit code 4",
        ),
    ),
    // ---- docker, podman
    flag(
        &["-it", "-ti", "-t", "--tty", "--interactive", "--rm"],
        Already,
    ),
    flag(&["--privileged", "--read-only", "--init"], NO_CONTAINER),
    with(
        &[
            "--cap-add",
            "--cap-drop",
            "--security-opt",
            "--ulimit",
            "--userns",
            "-u",
            "--ipc",
            "--pid",
        ],
        NO_CONTAINER,
    ),
    flag(&["-dit", "-itd", "-di", "-td", "--detach"], IN_BACKGROUND),
    with(
        &["-p", "--publish", "--network", "--link", "--dns", "--ip"],
        NO_NETWORK,
    ),
    flag(&["-P", "--publish-all"], NO_NETWORK),
    with(
        &["--volume", "--mount", "--volumes-from", "--tmpfs"],
        NO_SHARING,
    ),
    with(
        &["-e", "--env", "--env-file"],
        NotNeeded(
            "what stands in the kernel's words as NAME=VALUE is in init's environment: --append NAME=VALUE",
        ),
    ),
    with(
        &["--entrypoint"],
        NotNeeded("the first program is the kernel's word 'init=': --append init=/bin/sh"),
    ),
    with(
        &["-w", "--workdir"],
        NotNeeded("the guest's own init decides where a program starts"),
    ),
    with(
        &["-l", "--label", "--hostname", "--add-host"],
        NotNeeded("a guest's name and hosts are set in the guest"),
    ),
    with(
        &["--restart"],
        NotYet(
            "a machine that has ended is not started again",
            "--reboot starts it again when its guest reboots; for more, use a systemd unit",
        ),
    ),
    with(
        &["--platform"],
        NotNeeded("guests are x86_64, as the host is"),
    ),
    with(
        &["--pull"],
        NotNeeded("a kernel and disks are files of yours"),
    ),
    with(&["--gpus"], NO_DEVICES),
    with(
        &["--cpuset-cpus"],
        NotYet(
            "vCPUs are not bound to processors",
            "let the shell do it: taskset -c 0-3 bantam run ...",
        ),
    ),
    with(
        &["--shm-size", "--memory-swap"],
        NotNeeded("--memory is all that a guest has"),
    ),
    // ---- systemd-vmspawn
    with(
        &["--set-credential"],
        ByValue(set_credential, &Use("'--credential NAME=VALUE'")),
    ),
    with(
        &["--load-credential"],
        ByValue(load_credential, &Use("'--credential-file NAME=PATH'")),
    ),
    // ---- Cloud Hypervisor, crosvm, kvmtool, Firecracker
    with(&["--initramfs"], Same("--initrd")),
    with(&["--params"], Same("--append")),
    with(&["--mem"], Same("--memory")),
    with(&["--rwdisk", "--rwroot"], DISK_INSTEAD),
    with(
        &["--root"],
        Use("'--disk {},ro' with the kernel's word root=/dev/vda"),
    ),
    with(
        &["--config-file"],
        Use("'--config vm.toml' (docs/configuration.md has an example)"),
    ),
    flag(&["--no-api"], Already),
    with(&["--api-sock", "--api-socket", "--socket"], NO_MONITOR),
    with(&["--balloon", "-balloon"], RECLAIM),
    with(&["--fs", "--shared-dir", "--9p"], NO_SHARING),
    with(&["--tap-name", "--vsock"], NO_NETWORK),
    flag(&["--disable-sandbox"], NO_CONTAINER),
];
