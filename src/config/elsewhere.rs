//! What is typed where the name of a file belongs, and names something elsewhere: an address on the
//! network, or a container image.

use std::path::Path;

use super::error::ConfigError;

/// Names that everybody types after `docker run`.
const WELL_KNOWN: [&str; 14] = [
    "alpine",
    "archlinux",
    "busybox",
    "centos",
    "debian",
    "fedora",
    "hello-world",
    "nginx",
    "nixos",
    "opensuse",
    "postgres",
    "python",
    "redis",
    "ubuntu",
];

/// Checks that `path`, given to `option`, can be meant as a file. One that exists is one.
///
/// # Errors
/// [`ConfigError::Value`], with what the option takes instead.
pub fn check(option: &'static str, path: &Path) -> Result<(), ConfigError> {
    let Some(text) = path.to_str() else {
        return Ok(());
    };
    let (what, help) = if let Some((scheme, rest)) = text.split_once("://") {
        let name = rest.rsplit('/').next().filter(|name| !name.is_empty());
        let name = name.unwrap_or("FILE");
        match scheme {
            "http" | "https" | "ftp" => (
                "an address on the network, and no file",
                format!("download it first: curl -LO '{text}', then give '{name}'"),
            ),
            "file" => (
                "an address, and no file",
                format!("give the path alone: {rest}"),
            ),
            _ => ("an address, and no file", takes(option)),
        }
    } else if is_container(text) {
        ("the name of a container image, and no file", takes(option))
    } else {
        return Ok(());
    };
    if path.exists() {
        return Ok(());
    }
    Err(super::values::wrong(option, text, what, help))
}

/// Whether a path is an address, which has no folder to start from.
pub fn is_address(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains("://"))
}

fn takes(option: &str) -> String {
    match option {
        "--disk" => {
            "it takes a disk image: docs/disks.md and README make one of a container or of packages"
        }
        "--iso" | "--cdrom" => "it takes an ISO image, downloaded from its distribution",
        "--initrd" => "it takes an initramfs, such as Debian's /boot/initrd.img-*",
        "image" => "it takes a disk image, raw or qcow2",
        _ => {
            "it takes a kernel, such as Debian's /boot/vmlinuz-*; a container's files become a disk: \
             'docker export' into a folder, then 'mke2fs -t ext4 -d FOLDER disk.raw 2G'"
        }
    }
    .into()
}

/// `debian:12`, `docker.io/library/alpine`, `registry:5000/a/b@sha256:...`: as registries name them.
fn is_container(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    if !text.chars().all(good) || text.starts_with(['/', '.', '-']) {
        return false;
    }
    let (name, tag) = match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    };
    let registry = name.split_once('/').map(|(first, _)| first);
    WELL_KNOWN.contains(&name)
        || tag.is_some_and(|tag| !tag.is_empty()) && !name.is_empty()
        || registry
            .is_some_and(|first| first.contains(':') || first == "localhost" || is_host(first))
}

/// Whether the first part of a path is more likely a registry than a folder.
fn is_host(name: &str) -> bool {
    const ENDS: [&str; 7] = ["io", "com", "org", "net", "dev", "app", "cloud"];
    name.rsplit_once('.')
        .is_some_and(|(before, end)| !before.is_empty() && ENDS.contains(&end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_addresses_are_no_files() {
        for name in [
            "debian:12",
            "alpine",
            "docker.io/library/alpine",
            "ghcr.io/a/b:latest",
            "registry:5000/a/b",
            "localhost/x",
            "a/b:1.2",
            "https://example.org/vmlinuz",
            "docker://alpine",
            "file:///boot/vmlinuz",
        ] {
            assert!(check("KERNEL", Path::new(name)).is_err(), "{name}");
        }
        for name in [
            "vmlinuz",
            "boot/vmlinuz-6.1",
            "./debian:12",
            "/a:b",
            "disk.img",
            "my.disk/x.img",
            "a b:c",
            "C:",
            "",
        ] {
            assert!(check("KERNEL", Path::new(name)).is_ok(), "{name}");
        }
    }
}
