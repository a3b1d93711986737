//! What the boot loader on an ISO is told: which kernel, which initrd, and with what words.
//!
//! Three notations are read, line by line, all in one way, since their words do not collide:
//!
//! ```text
//!   isolinux, syslinux            GRUB                              systemd-boot
//!   ──────────────────            ────                              ────────────
//!   LABEL live                    menuentry "Live" {                title  Live
//!     KERNEL /a/vmlinuz             linux  /a/vmlinuz quiet x=y     linux  /a/vmlinuz
//!     INITRD /a/initrd.img          initrd /a/initrd.img            initrd /a/initrd.img
//!     APPEND quiet x=y            }                                 options quiet x=y
//! ```
//!
//! A configuration is a program in GRUB's language; what needs a variable is left alone.

/// Folders, and the names in them, in the order in which they are looked at; `*` stands for anything.
pub const PLACES: &[(&str, &[&str])] = &[
    ("/isolinux", &["isolinux.cfg"]),
    ("/boot/isolinux", &["isolinux.cfg"]),
    ("/boot/x86_64/loader", &["isolinux.cfg"]),
    ("/syslinux", &["syslinux.cfg", "isolinux.cfg", "*.cfg"]),
    ("/boot/syslinux", &["syslinux.cfg", "isolinux.cfg", "*.cfg"]),
    ("/loader/entries", &["*.conf"]),
    ("/boot/grub", &["grub.cfg"]),
    ("/boot/grub2", &["grub.cfg"]),
    ("/EFI/BOOT", &["grub.cfg"]),
    ("/EFI/boot", &["grub.cfg"]),
    ("/", &["isolinux.cfg", "syslinux.cfg", "grub.cfg"]),
];

/// Words of an entry that are for another screen than ours, or for the boot loader.
const DROPPED: [&str; 8] = [
    "console=",
    "vga=",
    "video=",
    "splash",
    "initrd=",
    "BOOT_IMAGE=",
    "rhgb",
    "nomodeset",
];

/// A kernel and what goes with it; paths begin at the ISO's root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The kernel.
    pub kernel: String,
    /// Its initrd: the last of several, which is the system's own. Those before it are microcode.
    pub initrd: String,
    /// For the command line.
    pub append: String,
}

/// What a configuration says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// In the order of the file.
    pub entries: Vec<Entry>,
    /// Other files that belong to it.
    pub includes: Vec<String>,
}

/// Reads a configuration that stands in `folder`.
pub fn read(text: &str, folder: &str) -> Config {
    let mut config = Config::default();
    let mut entry = Entry::default();
    for line in text.lines() {
        let (word, rest) = match line.trim().split_once(char::is_whitespace) {
            Some((word, rest)) => (word.to_ascii_lowercase(), rest.trim()),
            None => (line.trim().to_ascii_lowercase(), ""),
        };
        match word.as_str() {
            "label" | "menuentry" | "submenu" | "title" => config.close(&mut entry),
            "kernel" | "linux" | "linux16" | "linuxefi" | "$linux" => {
                let (path, append) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                if !entry.kernel.is_empty() {
                    config.close(&mut entry);
                }
                entry.kernel = absolute(path, folder);
                entry.add(append, folder);
            }
            "initrd" | "initrd16" | "initrdefi" | "$initrd" => {
                // Several are separated by commas in one notation, by spaces in another.
                let last = rest.rsplit([',', ' ', '\t']).next().unwrap_or(rest);
                entry.initrd = absolute(last, folder);
            }
            "append" | "options" => entry.add(rest, folder),
            "include" | "configfile" | "source" if !rest.contains('$') => {
                let file = rest.split_whitespace().next().unwrap_or(rest);
                config.includes.push(absolute(file, folder));
            }
            _ => {}
        }
    }
    config.close(&mut entry);
    config
}

impl Config {
    /// Ends an entry, which counts if it is whole.
    fn close(&mut self, entry: &mut Entry) {
        let ended = std::mem::take(entry);
        if !ended.kernel.is_empty() && !ended.initrd.is_empty() {
            self.entries.push(ended);
        }
    }
}

impl Entry {
    /// Adds the words of a line that are for the kernel.
    fn add(&mut self, text: &str, folder: &str) {
        for word in text.split_whitespace() {
            if let Some(files) = word.strip_prefix("initrd=") {
                let last = files.rsplit(',').next().unwrap_or(files);
                self.initrd = absolute(last, folder);
                continue;
            }
            let plain = word.bytes().all(|byte| byte.is_ascii_graphic());
            let dropped = DROPPED.iter().any(|start| word.starts_with(start));
            // "--" and "---" divide the installer's words from the system's; $ is a variable.
            if !plain || dropped || word.starts_with("--") || word.contains('$') {
                continue;
            }
            if !self.append.is_empty() {
                self.append.push(' ');
            }
            self.append.push_str(word);
        }
    }
}

/// A path from the root. GRUB's may begin with a device in brackets.
fn absolute(path: &str, folder: &str) -> String {
    let path = path.trim_matches(['"', '\'']);
    let path = match path.strip_prefix('(') {
        Some(rest) => rest.split_once(')').map_or(path, |(_, path)| path),
        None => path,
    };
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{folder}/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kernel: &str, initrd: &str, append: &str) -> Entry {
        Entry {
            kernel: kernel.into(),
            initrd: initrd.into(),
            append: append.into(),
        }
    }

    #[test]
    fn three_notations_say_the_same() {
        for text in [
            "DEFAULT x\nLABEL x\n  MENU LABEL X\n  KERNEL /a/k\n  INITRD /a/ucode.img,/a/i\n  APPEND quiet x=y vga=788\n",
            "label x\n kernel k\n append initrd=i quiet splash x=y ---\n",
            "set timeout=5\nmenuentry \"X\" --class x {\n\tlinux ($root)/a/k quiet x=y ${more} console=tty0\n\tinitrd /a/ucode.img /a/i\n}\n",
            "title X\nlinux /a/k\ninitrd /a/i\noptions quiet x=y\n",
        ] {
            assert_eq!(
                read(text, "/a").entries,
                [entry("/a/k", "/a/i", "quiet x=y")],
                "{text}"
            );
        }
    }

    #[test]
    fn entries_that_are_not_whole_are_left_out() {
        let text = "label memtest\nkernel /memtest\nlabel next\nkernel /k\ninitrd /i\nlabel chain\nlocalboot -1\ninclude more.cfg\n";
        let config = read(text, "/isolinux");
        assert_eq!(config.entries, [entry("/k", "/i", "")]);
        assert_eq!(config.includes, ["/isolinux/more.cfg"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text in "(label|kernel|linux|initrd|append|[ \n\t$(){}=,/a-z]){0,60}") {
            let config = read(&text, "");
            for entry in config.entries {
                proptest::prop_assert!(!entry.append.contains(|c: char| c.is_control()));
            }
        }
    }
}
