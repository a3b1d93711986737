//! What the values of other programs' words say in ours. Each function gives our words for a value that it
//! knows whole, and nothing for any other.

use crate::config::credential;
use crate::config::values::split_commas;

/// A value that changes nothing is none of our words.
pub fn already(value: &str, known: &[&str]) -> Option<Vec<String>> {
    known.contains(&value).then(Vec::new)
}

/// `-smp 4`, `-smp cpus=4,threads=2`. What QEMU knows more is left to the reader of `--cpus`.
pub fn smp(value: &str) -> Option<Vec<String>> {
    let value = value.strip_prefix("cpus=").unwrap_or(value);
    Some(vec!["--cpus".into(), value.into()])
}

/// `-serial WHERE`.
pub fn serial(value: &str) -> Option<Vec<String>> {
    let console = match value {
        // `mon:` adds a monitor behind the key that is our escape key as well.
        "stdio" | "mon:stdio" => "stdio".to_owned(),
        "none" | "null" => "none".to_owned(),
        "pty" => "pty".to_owned(),
        _ => format!("file={}", value.strip_prefix("file:")?),
    };
    Some(vec!["--console".into(), console])
}

/// `-smbios type=11,value=io.systemd.credential:NAME=VALUE`, `-smbios type=1,uuid=UUID`.
pub fn smbios(value: &str) -> Option<Vec<String>> {
    let mut words = split_commas(value).into_iter();
    let kind = words.next()?;
    let mut ours = Vec::new();
    for word in words {
        let (key, value) = word.split_once('=')?;
        let (option, value) = match (kind.as_str(), key) {
            ("type=11", "value") => ("--credential", credential::of_oem_string(value)?),
            ("type=1", "uuid") => ("--uuid", value.to_owned()),
            _ => return None,
        };
        ours.extend([option.to_owned(), value]);
    }
    (!ours.is_empty()).then_some(ours)
}

/// `-fw_cfg name=opt/io.systemd.credentials/NAME,string=VALUE` or `,file=PATH`.
pub fn fw_cfg(value: &str) -> Option<Vec<String>> {
    let words = split_commas(value);
    let [name, value] = words.as_slice() else {
        return None;
    };
    let name = name.strip_prefix("name=").unwrap_or(name);
    let name = name.strip_prefix("opt/io.systemd.credentials/")?;
    let (option, value) = match value.split_once('=')? {
        ("string", value) => ("--credential", value),
        ("file", path) => ("--credential-file", path),
        _ => return None,
    };
    Some(vec![option.into(), format!("{name}={value}")])
}

/// `-device virtio-rng-pci`, `-device virtio-balloon-pci,free-page-reporting=on`. Other devices are those of disks and cards, which have words of their own.
pub fn device(value: &str) -> Option<Vec<String>> {
    let mut words = value.split(',');
    let kind = words.next()?;
    let option = match kind {
        "virtio-rng-pci" | "virtio-rng-device" | "virtio-rng" => "--rng",
        // A balloon that does not report free pages is of no use without a monitor.
        _ if kind.starts_with("virtio-balloon")
            && words.any(|word| word == "free-page-reporting=on") =>
        {
            "--reclaim"
        }
        _ => return None,
    };
    Some(vec![option.into()])
}

/// `-object rng-random,id=rng0,filename=/dev/urandom`: where the bytes come from, as it is here.
pub fn object(value: &str) -> Option<Vec<String>> {
    let kind = value.split(',').next()?;
    matches!(kind, "rng-random" | "rng-builtin").then(Vec::new)
}

/// `ID:VALUE`, whose value has no escapes of C.
pub fn set_credential(value: &str) -> Option<Vec<String>> {
    let (name, value) = value.split_once(':')?;
    (!value.contains('\\')).then(|| vec!["--credential".into(), format!("{name}={value}")])
}

/// `ID:PATH`.
pub fn load_credential(value: &str) -> Option<Vec<String>> {
    let (name, path) = value.split_once(':')?;
    Some(vec!["--credential-file".into(), format!("{name}={path}")])
}

/// `-drive if=virtio,file=PATH,...`: a virtio disk, and nothing said of it that is not known here.
pub fn drive(value: &str) -> Option<Vec<String>> {
    let (disk, virtio) = disk_of_drive(value)?;
    virtio.then(|| vec!["--disk".into(), disk])
}

/// What `-drive` says in the words of `--disk`, and whether it says `if=virtio`; `None` where it says
/// more than those can.
fn disk_of_drive(value: &str) -> Option<(String, bool)> {
    let (mut path, mut virtio, mut words) = (None, false, String::new());
    for word in split_commas(value) {
        let (key, value) = word.split_once('=')?;
        let more = match (key, value) {
            ("file", file) => {
                path = Some(file.replace(',', ",,"));
                continue;
            }
            ("if", interface) => {
                virtio = interface == "virtio";
                continue;
            }
            // A name for QEMU's monitor, and what holds anyway.
            ("id", _) | ("media", "disk") | ("readonly", "off") | ("snapshot", "off") => continue,
            ("format", "raw" | "qcow2") => word.clone(),
            ("serial", _) => word.replace(',', ",,"),
            ("readonly", "on") => "ro".to_owned(),
            ("snapshot", "on") => "snapshot".to_owned(),
            ("cache", "writeback" | "none") => word.clone(),
            ("aio", "threads") => "io=threads".to_owned(),
            ("aio", "io_uring") => "io=uring".to_owned(),
            ("discard", "unmap" | "on") => "discard=on".to_owned(),
            ("discard", "ignore" | "off") => "discard=off".to_owned(),
            _ => return None,
        };
        words.push(',');
        words.push_str(&more);
    }
    let path = path.filter(|path| !path.is_empty())?;
    Some((path + &words, virtio))
}

/// The text of [`Answer::Use`](super::habits::Answer::Use) for a word with this value.
pub fn instead(text: &str, value: &str) -> String {
    let disk = match disk_of_drive(value) {
        Some((disk, _)) => disk,
        None => "PATH[,format=qcow2][,ro]".to_owned(),
    };
    text.replace("{disk}", &disk).replace("{}", value)
}
