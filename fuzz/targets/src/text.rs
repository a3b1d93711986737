//! Texts that are found in files: boot loaders' configurations on an ISO, a kernel's own configuration, command lines.

use bantam::boot::{bootconfig, cmdline, kconfig::Kconfig};

/// See the [module](self).
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let read = bootconfig::read(&text, "/boot/grub");
    let lines = text.lines().count();
    assert!(read.entries.len() <= lines, "no more entries than lines");
    let config = Kconfig::parse(&text);
    assert!(config.len() <= lines);
    if let Some(embedded) = Kconfig::embedded(data) {
        let _ = embedded.built_in("VIRTIO_BLK");
    }
    let words = [text.into_owned()];
    let line = cmdline::compose(
        Some(&words[0]),
        &words,
        cmdline::Added {
            root: None,
            hvc0: true,
        },
    );
    if cmdline::check(&line, 2048).is_ok() {
        assert!(line.len() <= 2048 && !line.contains(char::is_control));
    }
    let _ = (
        cmdline::ends_at_hvc0(&line),
        cmdline::panics_reset_warm(&line),
    );
}
