//! What the words of `--disk` mean.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::elsewhere;
use super::error::ConfigError;
use super::values::{number_and_unit, split_commas, wrong};
use crate::storage::Format;
use crate::storage::{Access, CacheMode, IoMode};

const KEY: &str = "--disk";
const KEYS: &[&str] = &[
    "path",
    "format",
    "ro",
    "snapshot",
    "serial",
    "queues",
    "io",
    "cache",
    "discard",
    "iothread",
    "poll",
    "backing",
    "limit-iops",
    "limit-bw",
];
/// Length of a virtio-blk serial number.
const SERIAL_BYTES: usize = 20;
/// Without `poll=`, for a thread that the queue has for itself: as long as KVM lets a halted vCPU's
/// thread look (halt_poll_ns).
const POLL_ALONE: Duration = Duration::from_micros(200);
/// Without `poll=`, for the thread that all queues of a disk share: a driver that asks again at once, or what is
/// in the page cache, but no disk.
const POLL_SHARED: Duration = Duration::from_micros(50);
/// A reset of the device waits for a turn, and so may wait for sixteen of these and a quarter more.
const MAX_POLL_MICROS: u64 = 1000;
/// More queues than this no guest uses; each costs memory.
const MAX_QUEUES: u16 = 64;

/// A disk, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Format, read-only or not, page cache or not.
    pub access: Access,
    /// What is written is thrown away at the end, and the image is only read; `None` where nothing is
    /// said, until [`disks`] has decided.
    pub snapshot: Option<bool>,
    /// `serial=`, else one is made from the file.
    pub serial: Option<String>,
    /// Request queues.
    pub queues: u16,
    /// How requests are done.
    pub io: IoMode,
    /// Whether the guest can give space back.
    pub discard: bool,
    /// A thread for each queue, instead of one for all of them.
    pub io_thread: bool,
    /// A wait that is expected to end within this time is no reason for the thread to sleep.
    pub poll: Duration,
    /// Requests per second.
    pub limit_requests: Option<u64>,
    /// Bytes per second.
    pub limit_bytes: Option<u64>,
}

impl Disk {
    /// A disk of which nothing is said but its path.
    pub fn plain(path: PathBuf) -> Disk {
        Disk {
            access: Access {
                format: Format::of_name(&path),
                guessed: true,
                ..Access::default()
            },
            path,
            snapshot: None,
            serial: None,
            queues: 1,
            io: IoMode::Auto,
            discard: true,
            io_thread: false,
            poll: POLL_SHARED,
            limit_requests: None,
            limit_bytes: None,
        }
    }

    /// Whether what is written is thrown away at the end.
    pub fn is_snapshot(&self) -> bool {
        self.snapshot == Some(true)
    }

    /// How the image is opened: what is thrown away does not go into it.
    pub fn image_access(&self) -> Access {
        Access {
            read_only: self.access.read_only || self.is_snapshot(),
            ..self.access
        }
    }
}

/// All disks in order, the read-only ones of `--cdrom` last. With `snapshot`, what is written to
/// those that do not say otherwise is thrown away.
///
/// # Errors
/// See [`ConfigError`].
pub fn disks(
    texts: &[String],
    cdroms: &[PathBuf],
    cpus: u32,
    snapshot: bool,
) -> Result<Vec<Disk>, ConfigError> {
    let mut disks = Vec::new();
    for text in texts {
        let mut disk = disk(text)?;
        disk.snapshot
            .get_or_insert(snapshot && !disk.access.read_only);
        if u32::from(disk.queues) > cpus {
            return Err(wrong(
                KEY,
                text,
                format!("{} queues are more than {cpus} vCPUs use", disk.queues),
                "give at most as many queues as --cpus",
            ));
        }
        disks.push(disk);
    }
    for path in cdroms {
        let mut disk = Disk::plain(path.clone());
        disk.access.format = Format::Raw;
        disk.access.read_only = true;
        disks.push(disk);
    }
    Ok(disks)
}

/// `PATH[,KEY=VALUE]...`; a comma in the path is written twice, as with QEMU.
///
/// # Errors
/// See [`ConfigError`].
pub fn disk(text: &str) -> Result<Disk, ConfigError> {
    let bad = |why: String, help: &str| Err(wrong(KEY, text, why, help));
    let mut words = split_commas(text).into_iter();
    let first = words.next().unwrap_or_default();
    let path = first.strip_prefix("path=").unwrap_or(&first);
    if path.is_empty() {
        return bad(
            "the path is missing".into(),
            "write --disk PATH[,ro][,format=qcow2]...",
        );
    }
    let mut disk = Disk::plain(path.into());
    let mut poll = None;
    for word in words {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, value),
            // A word alone switches on what can be on or off.
            None if matches!(
                word.as_str(),
                "ro" | "readonly" | "snapshot" | "iothread" | "discard" | "backing"
            ) =>
            {
                (word.as_str(), "on")
            }
            None if KEYS.contains(&word.as_str()) => {
                return bad(format!("'{word}' has no value"), "write KEY=VALUE");
            }
            None => return Err(unknown(&word, text)),
        };
        let switch = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(wrong(
                KEY,
                text,
                format!("{key} '{value}' is neither on nor off"),
                format!("write {key}=on or {key}=off"),
            )),
        };
        let choice = |forms: &str| {
            wrong(
                KEY,
                text,
                format!("no such {key} '{value}'"),
                format!("it is one of: {forms}"),
            )
        };
        match key {
            "ro" | "readonly" => disk.access.read_only = switch()?,
            "snapshot" => disk.snapshot = Some(switch()?),
            "iothread" => disk.io_thread = switch()?,
            "discard" => disk.discard = switch()?,
            "backing" => disk.access.backing = switch()?,
            "format" => {
                disk.access.guessed = false;
                disk.access.format = match value {
                    "raw" => Format::Raw,
                    "qcow2" => Format::Qcow2,
                    _ => return Err(choice("raw, qcow2")),
                }
            }
            "io" => {
                disk.io = match value {
                    "auto" => IoMode::Auto,
                    "uring" | "io_uring" => IoMode::Uring,
                    "threads" => IoMode::Threads,
                    _ => return Err(choice("auto, uring, threads")),
                }
            }
            "cache" => {
                disk.access.cache = match value {
                    "writeback" => CacheMode::Writeback,
                    "direct" | "none" => CacheMode::Direct,
                    _ => return Err(choice("writeback, direct")),
                }
            }
            "serial" => {
                if value.len() > SERIAL_BYTES || !value.bytes().all(|b| b.is_ascii_graphic()) {
                    return bad(
                        format!("'{value}' is no serial number"),
                        "give up to 20 printable ASCII characters",
                    );
                }
                disk.serial = Some(value.into());
            }
            "queues" => {
                disk.queues = match value.parse() {
                    Ok(n @ 1..=MAX_QUEUES) => n,
                    _ => {
                        return bad(
                            format!("'{value}' is no number of queues"),
                            "give 1 to 64, at most one for each vCPU",
                        );
                    }
                }
            }
            "poll" => match value.parse() {
                Ok(micros @ 0..=MAX_POLL_MICROS) => poll = Some(Duration::from_micros(micros)),
                _ => {
                    return bad(
                        format!("'{value}' is no time to poll"),
                        "give microseconds, 0 to 1000",
                    );
                }
            },
            "limit-iops" => disk.limit_requests = Some(rate(value, text, false)?),
            "limit-bw" => disk.limit_bytes = Some(rate(value, text, true)?),
            "path" => return bad("the path comes first".into(), "write --disk PATH,..."),
            _ => return Err(unknown(key, text)),
        }
    }
    disk.poll = match poll {
        Some(time) => time,
        None if disk.io_thread => POLL_ALONE,
        None => disk.poll,
    };
    if disk.access.read_only && disk.is_snapshot() {
        return bad(
            "'ro' lets the guest write nothing, and 'snapshot' throws away what it writes".into(),
            "leave one of the two away; neither changes the image",
        );
    }
    if disk.io == IoMode::Uring && disk.access.format != Format::Raw {
        return bad(
            "io_uring is for raw images".into(),
            "leave io=uring away: qcow2 is done by threads",
        );
    }
    Ok(disk)
}

fn unknown(key: &str, text: &str) -> ConfigError {
    ConfigError::UnknownKey {
        key: key.into(),
        place: format!("{KEY} '{text}'"),
        known: KEYS,
    }
}

/// Requests or bytes per second.
fn rate(value: &str, text: &str, bytes: bool) -> Result<u64, ConfigError> {
    let scale = if bytes { 1024u64 } else { 1000 };
    let power = |unit: &str| match unit {
        "" => Some(0),
        "k" => Some(1),
        "m" => Some(2),
        "g" => Some(3),
        _ => None,
    };
    number_and_unit(value)
        .and_then(|(n, unit)| {
            let unit = unit.strip_suffix("b/s").unwrap_or(&unit);
            n.checked_mul(scale.checked_pow(power(unit)?)?)
        })
        .filter(|n| *n > 0)
        .ok_or_else(|| {
            let (what, form) = match bytes {
                true => ("bytes per second", "limit-bw=100M"),
                false => ("requests per second", "limit-iops=2000"),
            };
            wrong(
                KEY,
                text,
                format!("'{value}' is no number of {what}"),
                format!("write a number, with a unit if you like: {form}"),
            )
        })
}

/// Puts `folder` before the path in `[path=]PATH,...`, whose commas are doubled there.
pub(super) fn beside(text: &str, folder: &Path) -> OsString {
    let text = text.strip_prefix("path=").unwrap_or(text);
    let Some(folder) = folder.to_str().filter(|f| !f.is_empty()) else {
        return text.into();
    };
    if text.starts_with('/') || text.is_empty() || elsewhere::is_address(Path::new(text)) {
        return text.into();
    }
    format!("{}/{text}", folder.replace(',', ",,")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_words() {
        assert!(disk("a,readonly").unwrap().access.read_only);
        let d = disk("a,,b.img,ro,serial=x").unwrap();
        assert_eq!(d.path, PathBuf::from("a,b.img"));
        assert!(d.access.read_only);
        assert_eq!(d.serial.as_deref(), Some("x"));
        let d = disk(
            "path=x.qcow2,queues=4,io=threads,cache=direct,discard=off,iothread,poll=30,\
             limit-iops=2k,limit-bw=10M,backing=on",
        )
        .unwrap();
        assert_eq!(d.access.format, Format::Qcow2);
        assert_eq!(d.access.cache, CacheMode::Direct);
        assert!(d.access.backing && d.io_thread && !d.discard);
        assert_eq!((d.queues, d.io), (4, IoMode::Threads));
        assert_eq!(d.poll, Duration::from_micros(30));
        assert!(disk("a,iothread").unwrap().poll > disk("a").unwrap().poll);
        assert_eq!(d.limit_requests, Some(2000));
        assert_eq!(d.limit_bytes, Some(10 << 20));
        assert_eq!(
            disk("x.qcow2,format=raw").unwrap().access.format,
            Format::Raw
        );
        for bad in [
            "",
            ",ro",
            "a,rx",
            "a,ro=maybe",
            "a,serial=123456789012345678901",
            "a,serial",
            "a,",
            "a,queues=0",
            "a,queues=65",
            "a,queues=-1",
            "a,format=vmdk",
            "a,io=aio",
            "a,cache=unsafe",
            "a,limit-iops=0",
            "a,limit-bw=99999999999999G",
            "a,limit-bw=5x",
            "a.qcow2,io=uring",
            "a,poll=1001",
            "a,poll=x",
            "a,path=b",
            "a,ro,snapshot",
            "a,snapshot=on,readonly=on",
            "a,snapshot=yes",
        ] {
            assert!(disk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn queues_are_for_vcpus() {
        let texts = ["a,queues=4".to_owned()];
        assert!(disks(&texts, &[], 4, false).is_ok());
        assert!(disks(&texts, &[], 2, false).is_err());
        let cdrom = disks(&[], &["x.iso".into()], 1, false).unwrap();
        assert!(cdrom[0].access.read_only);
    }

    #[test]
    fn a_snapshot_is_asked_for_by_a_disk_or_for_all_and_is_never_written() {
        let texts = [
            "a",
            "b,snapshot",
            "c,snapshot=off",
            "d,ro",
            "e,ro=off,snapshot",
        ];
        let texts = texts.map(str::to_owned);
        for (all, expected) in [
            (false, [false, true, false, false, true, false]),
            (true, [true, true, false, false, true, false]),
        ] {
            let disks = disks(&texts, &["x.iso".into()], 1, all).unwrap();
            let found: Vec<_> = disks.iter().map(Disk::is_snapshot).collect();
            assert_eq!(found, expected);
            for disk in disks {
                let snapshot = disk.is_snapshot();
                assert!(!(snapshot && disk.access.read_only), "the guest may write");
                let read_only = disk.image_access().read_only;
                assert_eq!(read_only, snapshot || disk.access.read_only);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = disk(&text);
        }
    }
}
