//! Linux in the machine: real kernels, on this host's KVM or in the lab.
//!
//! They run on this host's KVM or in the lab (tests/common/lab.rs). How machines end is tested in
//! tests/endings.rs.

#[path = "../common/mod.rs"]
mod common;
mod disks;
mod terminals;

use std::process::{Command, Stdio};
use std::time::Duration;

use common::linux::{
    LIMIT, contains, copy_of, exec, missing, path, run_vm, scratch, script, succeeded,
};
use common::pty::Session;
use common::trials::{each, trial};
use common::{bantam, lab, run, run_with};
use libtest_mimic::Trial;

fn main() {
    let needed = [
        "vmlinux",
        "bzImage.xz",
        "initramfs.cpio.gz",
        "root.ext4",
        "stock/vmlinuz",
    ];
    lab::main(missing(&needed), trials)
}

fn trials(ignored: Option<&str>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for image in [
        "vmlinux",
        "pvh",
        "bzImage.lz4",
        "bzImage.gz",
        "bzImage.xz",
        "bzImage.zst",
    ] {
        for cpus in [1, 4] {
            for disk in [false, true] {
                let other_compression = image.starts_with("bzImage") && image != "bzImage.lz4";
                if other_compression && (cpus != 1 || disk) {
                    continue;
                }
                let root = if disk { "root disk" } else { "initrd" };
                let name = format!("{image}_{cpus}_cpus_{}", root.replace(' ', "_"));
                let test = move || boots(image, cpus, disk);
                trials.push(trial(name, ignored, test));
            }
        }
    }
    for image in ["bzImage.lz4", "bzImage.gz", "bzImage.xz", "bzImage.zst"] {
        let name = format!("{image}_unpacks_itself");
        trials.push(trial(name, ignored, move || unpacks_itself(image)));
    }
    let tests: [(&str, fn()); 19] = [
        ("stock_debian_kernel_finds_its_disk_by_acpi", stock),
        ("lscpu_reads_back_the_topology", topology),
        (
            "a_guest_is_a_hypervisor_only_if_asked_for",
            hypervisor_in_guest,
        ),
        ("thirty_two_cpus_come_up", many_cpus),
        ("four_gib_are_there", four_gib),
        ("no_calibration_loop_runs", clocks),
        ("files_survive_a_remount_and_the_next_boot", disks::ext4),
        ("disks_come_in_order_with_serial_and_ro", disks::disks),
        ("the_machine_has_a_number_and_credentials", smbios),
        ("random_bytes_come_from_the_host", rng),
        ("discarded_space_comes_back", disks::trim),
        ("an_iso_boots_its_own_kernel", iso),
        ("the_driver_can_be_unbound_and_bound_again", disks::rebind),
        ("sigterm_powers_the_guest_off", sigterm),
        ("a_pause_is_no_lockup_to_the_guest", pause),
        ("ctrl_a_x_ends_a_shell_on_a_terminal", terminals::shell_quit),
        ("ctrl_c_is_for_what_a_shell_runs", terminals::shell_jobs),
        ("a_pipe_feeds_the_shell", terminals::piped_shell),
        (
            "an_end_of_file_on_stdin_changes_nothing",
            terminals::closed_stdin,
        ),
    ];
    for (name, test) in tests {
        trials.push(trial(name, ignored, test));
    }
    let name = "a_root_file_system_is_on";
    trials.extend(each(name, disks::DISKS, ignored, disks::kind_of_disk));
    let backings: [(&str, &[&str]); 3] = [
        ("anonymous_memory", &["--reclaim"]),
        ("a_memfd", &["--reclaim", "--memory-backing", "shared"]),
        ("not_asked_for", &[]),
    ];
    let name = "memory_that_the_guest_has_freed_goes_back";
    trials.extend(each(name, backings, ignored, reclaim));
    let snapshots = [
        ("raw", ("raw", ",queues=2,iothread")),
        ("qcow2", ("qcow2", "")),
    ];
    let name = "a_snapshot_is_a_root_disk_that_forgets";
    trials.extend(each(name, snapshots, ignored, disks::snapshot));
    trials
}

fn boots(image: &str, cpus: u32, disk: bool) {
    let folder = scratch();
    let (file, protocol) = match image {
        "pvh" => ("vmlinux", "pvh"),
        other => (other, "auto"),
    };
    let cpus_text = cpus.to_string();
    let kernel = path(file);
    let mut args = vec![
        kernel.as_str(),
        "--protocol",
        protocol,
        "--cpus",
        &cpus_text,
    ];
    let (initrd, image);
    if disk {
        image = copy_of("root.ext4", &folder);
        args.extend(["--disk", &image]);
    } else {
        initrd = path("initramfs.cpio.gz");
        args.extend(["--initrd", &initrd]);
    }
    let text =
        "echo kernel=$(uname -r) cpus=$(grep -c ^processor /proc/cpuinfo); grep ' / ' /proc/mounts";
    let out = succeeded(&run_vm(&args, &exec(text)));
    contains(&out, &[&format!("cpus={cpus}"), "kernel=6."]);
    let root = if disk {
        "/dev/root / ext4 rw"
    } else {
        "rootfs / rootfs"
    };
    contains(&out, &[root]);
}

fn unpacks_itself(image: &str) {
    let (kernel, initrd) = (path(image), path("initramfs.cpio.gz"));
    let args = [&kernel, "--initrd", &initrd, "--unpack", "guest"];
    let out = succeeded(&run_vm(&args, &exec("uname -r")));
    contains(&out, &["-bantam"]);
}

fn stock() {
    let folder = scratch();
    let disk = copy_of("root.ext4", &folder);
    let (kernel, initrd) = (path("stock/vmlinuz"), path("stock/initramfs.cpio.gz"));
    let args = [&kernel, "--initrd", &initrd, "--disk", &disk, "--cpus", "2"];
    let args = [&args[..], &["--credential", "a.b=c"]].concat();
    // The last file is where systemd looks for credentials.
    let text = "uname -r; grep ' / ' /proc/mounts; ls -d /sys/bus/acpi/devices/LNRO0005*; echo x >/written; \
                grep -ao 'io.systemd.credential:a.b=c' /sys/firmware/dmi/entries/11-0/raw";
    let append = format!("root=/dev/vda rw {}", exec(text));
    let out = succeeded(&run_vm(&args, &append));
    contains(
        &out,
        &[
            "cloud-amd64",
            "/dev/vda / ext4 rw",
            "LNRO0005:00",
            "io.systemd.credential:a.b=c\n",
        ],
    );
}

/// What SMBIOS says, as Linux has found it: systemd reads the same files.
fn rng() {
    let text = "echo from=$(cat /sys/class/misc/hw_random/rng_current); \
                for n in 1 2 3; do dd if=/dev/hwrng bs=64 count=4 2>/dev/null | md5sum; done";
    let out = script(text, &["--rng"]);
    contains(&out, &["from=virtio_rng.0"]);
    let mut sums: Vec<&str> = out.lines().filter(|line| line.ends_with("  -")).collect();
    sums.sort_unstable();
    sums.dedup();
    // Three times the same, as nothing at all would be, is one.
    assert_eq!(sums.len(), 3, "{out}");
}

fn smbios() {
    let folder = scratch();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, b"from a file\n").unwrap();
    let file = format!("from.file={}", secret.display());
    let uuid = "123e4567-e89b-12d3-a456-426614174000";
    let text = "cd /sys/class/dmi/id; echo id=$(cat sys_vendor product_name bios_version); \
                echo uuid=$(cat product_uuid); \
                strings=$(tr '\\0' '\\n' </sys/firmware/dmi/tables/DMI | grep -ac io.systemd); echo n=$strings; \
                tr '\\0' '\\n' </sys/firmware/dmi/tables/DMI | grep -ao 'io.systemd.*'";
    let args = [
        "--uuid",
        uuid,
        "--credential",
        "a.b=c d",
        "--credential-file",
        &file,
    ];
    let out = script(text, &args);
    let version = env!("CARGO_PKG_VERSION");
    contains(
        &out,
        &[
            &format!("id=Bantam Bantam {version}"),
            &format!("uuid={uuid}"),
            "n=2",
            "io.systemd.credential:a.b=c d\n",
            "io.systemd.credential.binary:from.file=ZnJvbSBhIGZpbGUK\n",
        ],
    );
}

/// The host of this test has a KVM that can nest, or there is nothing to be kept from the guest.
fn hypervisor_in_guest() {
    let text = "echo flags=$(grep -cwE 'vmx|svm' /proc/cpuinfo)";
    contains(&script(text, &[]), &["flags=0"]);
    let nests = ["kvm_intel", "kvm_amd"].iter().any(|module| {
        let file = format!("/sys/module/{module}/parameters/nested");
        std::fs::read_to_string(file).is_ok_and(|text| text.starts_with(['1', 'Y']))
    });
    let flags = format!("flags={}", u32::from(nests));
    contains(&script(text, &["--nested"]), &[&flags]);
}

fn topology() {
    let out = script("lscpu", &["--cpus", "8,sockets=2,cores=2,threads=2"]);
    let field = |name: &str| {
        let line = out.lines().find(|line| line.trim().starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in {out}"))
            .split(':')
            .nth(1)
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(field("CPU(s)"), "8");
    assert_eq!(field("Socket(s)"), "2");
    assert_eq!(field("Core(s) per socket"), "2");
    assert_eq!(field("Thread(s) per core"), "2");
}

fn many_cpus() {
    // One after the other: side by side, 31 of them spin until their turn comes, which takes minutes
    // where one processor has to run them all.
    let (kernel, initrd) = (path("vmlinux"), path("initramfs.cpio.gz"));
    let text = exec("echo cpus=$(grep -c ^processor /proc/cpuinfo)");
    let out = succeeded(&run_vm(
        &[&kernel, "--initrd", &initrd, "--cpus", "32"],
        &format!("cpuhp.parallel=0 {text}"),
    ));
    contains(&out, &["cpus=32"]);
}

fn four_gib() {
    let out = script(
        "grep MemTotal /proc/meminfo; dd if=/dev/zero of=/dev/shm/x bs=1M count=16 2>&1; dmesg | grep -i 'mem 0x0000000100000000'",
        &["--memory", "4G"],
    );
    let total: u64 = out
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap()
        .parse()
        .unwrap();
    assert!((3_900_000..4_194_304).contains(&total), "{total} KiB");
    contains(&out, &["usable"]);
}

fn clocks() {
    let out = script(
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; cat /proc/interrupts",
        &[],
    );
    contains(
        &out,
        &[
            "kvm-clock",
            "Calibrating delay loop (skipped)",
            "tsc: Detected",
            "TSC deadline timer",
        ],
    );
    assert!(!out.contains("Fast TSC calibration"), "{out}");
}

fn iso() {
    let folder = scratch();
    let tree = folder.path().join("tree/live");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::copy(path("bzImage"), tree.join("vmlinuz-6.1-test")).unwrap();
    std::fs::copy(path("initramfs.cpio.gz"), tree.join("initrd.img-6.1-test")).unwrap();
    let iso = folder.path().join("live.iso");
    let made = std::process::Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-r", "-o"])
        .args([&iso, &folder.path().join("tree")])
        .output()
        .expect("xorriso is there after `make setup`");
    assert!(made.status.success(), "{made:?}");
    let disk = folder.path().join("target.raw");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let args = [
        "--iso",
        iso.to_str().unwrap(),
        "--disk",
        disk.to_str().unwrap(),
    ];
    let text = "uname -r; cat /sys/block/vda/ro /sys/block/vdb/ro; dd if=/dev/vdb bs=1 skip=32769 count=5 2>/dev/null";
    let out = succeeded(&run_vm(&args, &exec(text)));
    contains(&out, &["-bantam", "\n0\n1\nCD001", "boot=live"]);
}

/// A stock kernel with watchdogs that have little patience, busy, is paused for longer than they have.
fn pause() {
    let (kernel, initrd) = (path("stock/vmlinuz"), path("stock/initramfs.cpio.gz"));
    // Two seconds without the watchdog's thread are a soft lockup, three without a grace period a stall.
    let text = "
        echo 1 >/proc/sys/kernel/watchdog_thresh || exit 1
        echo 3 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout || exit 1
        (while :; do :; done) & busy=$!
        lines=$(dmesg | wc -l)
        cut -d' ' -f1 /proc/uptime; echo before
        sleep 5
        kill $busy
        cut -d' ' -f1 /proc/uptime; echo clock=$(cat /sys/devices/system/clocksource/*/current_clocksource)
        dmesg | tail -n +$((lines + 1)) | grep -iE 'lockup|stall|hung|unstable|trace' && echo complaints
        echo after";
    let mut command = Command::new(bantam());
    command
        .args(["run", &kernel, "--initrd", &initrd, "--cpus", "2", "-v"])
        .args(["--append", &exec(text), "--time-limit", LIMIT]);
    let mut child = common::at_work(command, "before\r\n");
    // SAFETY: a signal to a child that has not been waited for.
    let signal = |number| unsafe { libc::kill(child.id() as i32, number) };
    signal(libc::SIGUSR1);
    std::thread::sleep(Duration::from_secs(8));
    signal(libc::SIGUSR2);
    let mut stdout = child.stdout.take().unwrap();
    let rest = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut stdout, &mut text);
        text
    });
    let status = common::wait(&mut child, Duration::from_secs(60)).expect("it ends");
    let said = rest.join().unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    contains(&said, &["after", "guest-exit=0", "clock="]);
    assert!(!said.contains("complaints"), "{said}");
}

/// What the process has in memory falls when the guest removes a file from a file system in its memory, if
/// that was asked for, and only then. Afterwards the guest can use the same memory again.
fn reclaim(words: &[&str]) {
    const FILE_MIB: u64 = 200;
    let text = "
        mkdir /x; mount -t tmpfs -o size=300m tmpfs /x || exit 1
        yes bantam | head -c 2097152 >/two
        fill() { n=0; while [ $((n += 1)) -le 100 ]; do cat /two; done >/x/file; tail -c 16777216 /x/file | md5sum; }
        fill >/sum
        echo full; sleep 3
        rm /x/file; echo gone; sleep 20
        fill | cmp - /sum && echo as before";
    let (kernel, initrd) = (path("vmlinux"), path("initramfs.cpio.gz"));
    let mut command = Command::new(bantam());
    command
        .args(["run", &kernel, "--initrd", &initrd, "-v"])
        .args(words)
        .args(["--append", &exec(text), "--time-limit", LIMIT]);
    let child = common::at_work(command, "full\r\n");
    let resident_mib = || common::resident_kib(child.id()) >> 10;
    let full = resident_mib();
    let fallen = || resident_mib() < full.saturating_sub(FILE_MIB * 3 / 4);
    assert!(full > FILE_MIB, "{full} MiB");
    let began = std::time::Instant::now();
    while !fallen() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let after = began.elapsed();
    println!(
        "{words:?}: {full} MiB, {} MiB after {after:?}",
        resident_mib()
    );
    assert_eq!(
        fallen(),
        words.contains(&"--reclaim"),
        "{} MiB",
        resident_mib()
    );
    let outcome = common::end_of(child, "reclaim");
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    contains(&outcome.stdout, &["gone", "as before", "guest-exit=0"]);
}

fn sigterm() {
    use std::io::{BufRead, BufReader};
    let mut child = Command::new(bantam())
        .args([
            "run",
            &path("vmlinux"),
            "--initrd",
            &path("initramfs.cpio.gz"),
            "-v",
        ])
        .args([
            "--append",
            &format!("quiet {}", exec("echo waiting; sleep 100")),
        ])
        .args(["--time-limit", LIMIT])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("waiting")));
    common::signal(&child, libc::SIGTERM);
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    let status = common::wait(&mut child, Duration::from_secs(30)).expect("it ends");
    assert_eq!(status.code(), Some(0), "{:?}", rest.join());
}
