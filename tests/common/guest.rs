//! Builds the bare-metal guest (tests/guests/), and images of other formats out of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bantam::boot::kernel::KernelFormat;
use bantam::boot::{Kernel, Segment};

/// The guest as an ELF file with a PVH note. Built once per test process.
pub fn elf() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = super::root().join("tests/guests");
        let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("guest-{}.elf", std::process::id()));
        let script = format!("-Wl,-T,{}", folder.join("link.ld").display());
        let link = [
            "-nostdlib",
            "-static",
            "-no-pie",
            "-Wl,--build-id=none",
            "-Wl,-z,max-page-size=4096",
            &script,
        ];
        let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
        command
            .args([
                "--edition",
                "2024",
                "--crate-type",
                "bin",
                "--crate-name",
                "guest",
            ])
            .args(["-C", "opt-level=s", "-C", "panic=abort"])
            .args(["-C", "relocation-model=static"])
            .args(
                link.iter()
                    .flat_map(|arg| ["-C".into(), format!("link-arg={arg}")]),
            )
            .arg("-o")
            .arg(&out)
            .arg(folder.join("guest.rs"));
        let built = command.output().expect("rustc runs");
        assert!(
            built.status.success(),
            "the guest does not build:\n{}",
            String::from_utf8_lossy(&built.stderr)
        );
        out
    })
}

/// The bytes that are loaded at 1 MiB.
pub fn flat() -> Vec<u8> {
    let kernel = Kernel::open(elf()).unwrap();
    let KernelFormat::Elf(image) = &kernel.format else {
        panic!("the guest is an ELF file");
    };
    let [
        Segment {
            offset, file_len, ..
        },
    ] = image.segments[..]
    else {
        panic!("the guest has one segment");
    };
    kernel.source.read(offset, file_len as usize).unwrap()
}

/// A bzImage around the guest: one setup sector, boot protocol 2.15. With `entry_64` it claims
/// the 64-bit entry at 0x200, which the guest has there.
pub fn bzimage(entry_64: bool) -> Vec<u8> {
    bzimage_of(0x020f, entry_64)
}

/// The same of any boot protocol. Behind the end of an older one's header, and in fields that it
/// does not have yet, stand bytes that must not be believed.
pub fn bzimage_of(version: u16, entry_64: bool) -> Vec<u8> {
    let mut kernel = flat();
    kernel.resize(kernel.len().next_multiple_of(16), 0);
    let header_end = match version {
        ..0x0203 => 0x22c,
        0x0203 | 0x0204 => 0x230,
        0x0205 => 0x238,
        0x0206 => 0x23c,
        0x0207 => 0x248,
        0x0208 => 0x250,
        0x0209 => 0x258,
        0x020a => 0x264,
        _ => 0x26c,
    };
    let mut image = vec![0u8; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &(kernel.len() as u32 / 16).to_le_bytes()); // syssize
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, (header_end - 0x202) as u8]); // jump over the header
    put(0x202, b"HdrS");
    put(0x206, &version.to_le_bytes());
    put(0x211, &[1]); // LOADED_HIGH
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x10_0000u32.to_le_bytes()); // kernel_alignment
    put(0x236, &u16::from(entry_64).to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x10_0000u64.to_le_bytes()); // pref_address
    put(0x260, &0x10_0000u32.to_le_bytes()); // init_size
    if version < 0x0204 {
        put(0x1f6, &[0xff; 2]); // swap_dev, the upper half of syssize since
    }
    image[header_end..].fill(0xff);
    image.extend(kernel);
    image
}
