//! Disks as Linux finds them, reads and writes them, and lets them go.

use super::*;

/// Format, options, and how many queues Linux sees.
pub type Disk = (&'static str, &'static str, u32);

pub const DISKS: [(&str, Disk); 4] = [
    ("qcow2", ("qcow2", "", 1)),
    ("qcow2_with_an_io_thread", ("qcow2", ",iothread", 1)),
    (
        "two_queues_with_io_threads",
        ("raw", ",queues=2,iothread", 2),
    ),
    ("two_queues_by_threads", ("raw", ",queues=2,io=threads", 2)),
];

pub fn ext4() {
    let folder = scratch();
    let disk = copy_of("root.ext4", &folder);
    let text = "set -e
mkdir -p /m; mount -t ext4 /dev/vda /m
dd if=/dev/urandom of=/m/data bs=64k count=64 2>/dev/null
md5sum /m/data; umount /m; mount -t ext4 -o ro /dev/vda /m; md5sum /m/data; umount /m";
    let sums = |out: &str| -> Vec<String> {
        let lines = out.lines().filter(|line| line.ends_with("  /m/data"));
        lines.map(str::to_owned).collect()
    };
    let first = sums(&script(text, &["--disk", &disk]));
    assert_eq!(first.len(), 2);
    assert_eq!(first[0], first[1], "after the remount");
    let again = "mkdir -p /m; mount -t ext4 -o ro /dev/vda /m && md5sum /m/data";
    let second = sums(&script(again, &["--disk", &format!("{disk},ro")]));
    assert_eq!(second, [first[0].clone()], "after the next boot");
    let check = Command::new("e2fsck")
        .args(["-fn", &disk])
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
}

pub fn disks() {
    let folder = scratch();
    let make = |name: &str, mib: u64| {
        let path = folder.path().join(name);
        std::fs::File::create(&path)
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (a, b, c) = (make("a", 1), make("b", 2), make("c", 3));
    let out = script(
        "cd /sys/block; for d in vda vdb vdc; do echo $d $(cat $d/size) $(cat $d/ro) [$(cat $d/serial)]; done
dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>/dev/null || echo refused",
        &["--disk", &format!("{a},serial=first"), "--disk", &format!("{b},ro"), "--disk", &c],
    );
    contains(
        &out,
        &[
            "vda 2048 0 [first]",
            "vdb 4096 1 [",
            "vdc 6144 0 [",
            "refused",
        ],
    );
}

pub fn kind_of_disk((format, options, queues): Disk) {
    let folder = scratch();
    let disk = folder.path().join("disk");
    let disk = disk.to_str().unwrap();
    let root = path("root.ext4");
    let made = run(&["image", "convert", "-O", format, &root, disk]);
    assert_eq!(made.code(), 0, "{made:?}");
    let disk_arg = format!("{disk},format={format}{options}");
    let kernel = path("vmlinux");
    let args = [kernel.as_str(), "--cpus", "2", "--disk", &disk_arg];
    let first = "ls /sys/block/vda/mq | wc -w; cat /sys/block/vda/queue/physical_block_size
dd if=/dev/urandom of=/big bs=64k count=48 2>/dev/null && md5sum /big >/sum && echo written";
    let out = succeeded(&run_vm(&args, &exec(first)));
    contains(&out, &[&format!("\n{queues}\n4096\n"), "written"]);
    let out = succeeded(&run_vm(&args, &exec("md5sum -c /sum; rm /big")));
    contains(&out, &["big: OK"]);
    let info = run(&["image", "info", "-f", format, disk]);
    assert_eq!(info.code(), 0, "{info:?}");
}

pub fn trim() {
    use std::os::unix::fs::MetadataExt;
    let folder = scratch();
    let disk = folder.path().join("trim.raw");
    std::fs::write(&disk, vec![0x5a; 16 << 20]).unwrap();
    let before = std::fs::metadata(&disk).unwrap().blocks();
    let out = script(
        "cat /sys/block/vda/queue/discard_max_bytes; blkdiscard -o 4194304 -l 8388608 /dev/vda && echo gone",
        &["--disk", disk.to_str().unwrap()],
    );
    contains(&out, &["2147483648", "gone"]);
    let after = std::fs::metadata(&disk).unwrap();
    assert_eq!(after.len(), 16 << 20);
    assert!(after.blocks() + 16384 <= before, "8 MiB came back");
}

pub fn snapshot((format, options): (&'static str, &'static str)) {
    let folder = scratch();
    let sum = |file: &str| {
        let out = Command::new("sha256sum").arg(file).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let disk = folder.path().join(format!("root.{format}"));
    let disk = disk.to_str().unwrap();
    let root = path("root.ext4");
    let made = run(&["image", "convert", "-O", format, &root, disk]);
    assert_eq!(made.code(), 0, "{made:?}");
    let before = sum(disk);
    // The first life is not ended cleanly: the second finds what it has written, and mends it.
    let text = "if [ -e /big ]; then md5sum -c /sum && rm /big && fstrim / && df / && echo lived on
else dd if=/dev/urandom of=/big bs=64k count=64 && md5sum /big >/sum && sync && echo written && busybox reboot -f; sleep 60; fi";
    let (kernel, disk_arg) = (path("vmlinux"), format!("{disk},snapshot{options}"));
    let args = [&kernel, "--cpus", "2", "--disk", &disk_arg, "--reboot"];
    let out = succeeded(&run_vm(&args, &exec(text)));
    let words = ["written", "recovery complete", "big: OK", "lived on"];
    contains(&out, &words);
    assert_eq!(sum(disk), before, "the image has changed");
    let out = succeeded(&run_vm(&args, &exec("[ ! -e /big ] && echo forgotten")));
    contains(&out, &["forgotten"]);
    assert_eq!(sum(disk), before, "the image has changed");
}

pub fn rebind() {
    let folder = scratch();
    let disk = copy_of("root.ext4", &folder);
    let out = script(
        "cd /sys/bus/virtio/drivers/virtio_blk; sum() { dd if=/dev/vda bs=1M 2>/dev/null | md5sum; }; sum
for i in 1 2 3; do echo virtio0 >unbind; ls /dev/vda 2>&1; echo virtio0 >bind; echo 3 >/proc/sys/vm/drop_caches; sum; done",
        &["--disk", &format!("{disk},ro")],
    );
    let sums: Vec<_> = out.lines().filter(|line| line.ends_with("  -")).collect();
    assert_eq!(sums.len(), 4, "{out}");
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    assert_eq!(out.matches("No such file").count(), 3, "{out}");
}
