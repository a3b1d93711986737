//! What the words of a configuration mean: sizes, durations, topologies.

use std::time::Duration;

use uuid::Uuid;

use super::error::ConfigError;
use crate::arch::x86_64::layout;
use crate::arch::x86_64::topology::Topology;
use crate::memory::Backing;

/// Below this the boot tables and a kernel have no room.
const MIN_MEMORY: u64 = 2 << 20;
const PAGE: u64 = 4096;

pub(super) fn wrong(
    key: &'static str,
    value: &str,
    why: impl Into<String>,
    help: impl Into<String>,
) -> ConfigError {
    ConfigError::Value {
        key,
        value: value.into(),
        why: why.into(),
        help: help.into(),
    }
}

/// Splits `5G` into 5 and `g`.
pub(super) fn number_and_unit(text: &str) -> Option<(u64, String)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

/// Guest memory: `512M`, `2G`; a bare number counts MiB, as with QEMU's `-m`.
///
/// # Errors
/// See [`ConfigError`].
pub fn memory(text: &str) -> Result<u64, ConfigError> {
    const KEY: &str = "--memory";
    const FORMS: &str = "write a number with a unit: 512M, 2G";
    // Others' spelling of the same.
    let size = text.strip_prefix("size=").unwrap_or(text);
    let (number, unit) =
        number_and_unit(size).ok_or_else(|| wrong(KEY, text, "not a size", FORMS))?;
    let shift = match unit.as_str() {
        "k" | "kb" | "kib" => 10,
        "" | "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong(KEY, text, format!("unknown unit '{unit}'"), FORMS)),
    };
    let limit = max_memory();
    let too_large = || {
        wrong(
            KEY,
            text,
            "more than this host can give to a machine",
            format!("at most {}G on this host", limit >> 30),
        )
    };
    let bytes = number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= limit)
        .ok_or_else(too_large)?;
    if bytes < MIN_MEMORY {
        return Err(wrong(
            KEY,
            text,
            "too small for any kernel",
            "give at least 2M; a Linux guest wants 64M and more",
        ));
    }
    if bytes % PAGE != 0 {
        return Err(wrong(KEY, text, "not a multiple of 4 KiB", FORMS));
    }
    Ok(bytes)
}

/// The length of a disk image: `20G`; a bare number counts bytes, as with qemu-img.
///
/// # Errors
/// See [`ConfigError`].
pub fn image_size(text: &str) -> Result<u64, ConfigError> {
    let wrong = |why: &str| {
        wrong(
            "size",
            text,
            why,
            "write a number with a unit: 512M, 20G, 1T",
        )
    };
    let (number, unit) = number_and_unit(text).ok_or_else(|| wrong("not a size"))?;
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(wrong(&format!("unknown unit '{unit}'"))),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| wrong("larger than any file"))
}

/// Whether `bytes` of guest memory can be had from `backing`.
///
/// # Errors
/// See [`ConfigError`].
pub fn check_backing(bytes: u64, backing: Backing) -> Result<(), ConfigError> {
    const HUGE_PAGE: u64 = 2 << 20;
    if backing == Backing::Hugetlbfs && !bytes.is_multiple_of(HUGE_PAGE) {
        return Err(wrong(
            "--memory",
            &format!("{}k", bytes >> 10),
            "not a multiple of 2 MiB, as --memory-backing hugetlbfs needs it",
            format!("give {}M", bytes.next_multiple_of(HUGE_PAGE) >> 20),
        ));
    }
    Ok(())
}

/// Whether pages of such memory can go back to the host while the guest runs.
///
/// # Errors
/// Where they would stay reserved for this machine.
pub fn check_reclaim(reclaim: bool, backing: Backing) -> Result<(), ConfigError> {
    if reclaim && backing == Backing::Hugetlbfs {
        return Err(wrong(
            "--memory-backing",
            "hugetlbfs",
            "these pages stay reserved for the machine until it ends, and --reclaim gives none of them back",
            "leave --reclaim away, or give --memory-backing thp",
        ));
    }
    Ok(())
}

/// Guest memory that the host's physical addresses reach, the hole below 4 GiB subtracted, and
/// that KVM takes.
fn max_memory() -> u64 {
    /// KVM takes up to 2^31 - 1 pages in one memory slot: 4 TiB fit in any case.
    const SLOT_BITS: u32 = 42;
    let bits = core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff;
    let bits = bits.clamp(36, SLOT_BITS);
    (1u64 << bits).saturating_sub(layout::MMIO_HOLE_END - layout::MMIO_HOLE_START)
}

/// A time: `10s`, `500ms`, `2m`, `1h`; a bare number counts seconds.
///
/// # Errors
/// See [`ConfigError`].
pub fn duration(text: &str) -> Result<Duration, ConfigError> {
    const KEY: &str = "--time-limit";
    const FORMS: &str = "write a number with a unit: 500ms, 30s, 5m, 1h";
    let not_a_time = || wrong(KEY, text, "not a time", FORMS);
    let (number, unit) = number_and_unit(text).ok_or_else(not_a_time)?;
    let millis = match unit.as_str() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong(KEY, text, format!("unknown unit '{unit}'"), FORMS)),
    };
    // A timer takes seconds as a signed 64-bit number; a century is enough.
    const CENTURY_MS: u64 = 100 * 366 * 86_400_000;
    match number.checked_mul(millis) {
        Some(0) => Err(wrong(KEY, text, "no time at all", FORMS)),
        Some(ms) if ms <= CENTURY_MS => Ok(Duration::from_millis(ms)),
        _ => Err(wrong(KEY, text, "too long", FORMS)),
    }
}

/// The machine's number: `123e4567-e89b-12d3-a456-426614174000`.
///
/// # Errors
/// See [`ConfigError`].
pub fn uuid(text: &str) -> Result<Uuid, ConfigError> {
    const KEY: &str = "--uuid";
    let uuid = Uuid::try_parse(text).map_err(|_| {
        wrong(
            KEY,
            text,
            "not a UUID",
            "write 32 hexadecimal digits, as 'uuidgen' prints them: 123e4567-e89b-12d3-a456-426614174000",
        )
    })?;
    // DSP0134, 7.2.1: these two say that the machine has no UUID.
    if uuid.is_nil() || uuid.is_max() {
        let why = "the number of no machine";
        return Err(wrong(KEY, text, why, "give one that 'uuidgen' prints"));
    }
    Ok(uuid)
}

/// vCPUs: `4`, or `8,sockets=2,cores=2,threads=2` as with QEMU's `-smp`.
///
/// # Errors
/// See [`ConfigError`].
pub fn topology(text: &str) -> Result<Topology, ConfigError> {
    const KEY: &str = "--cpus";
    const KEYS: &[&str] = &["sockets", "cores", "threads"];
    const FORMS: &str = "write a number, or 8,sockets=2,cores=2,threads=2";
    let number = |word: &str| -> Result<u32, ConfigError> {
        let n = word
            .trim()
            .parse::<u64>()
            .map_err(|_| wrong(KEY, text, format!("'{word}' is not a number"), FORMS))?;
        match n {
            0 => Err(wrong(KEY, text, "a machine needs at least one", FORMS)),
            n if n > u64::from(layout::MAX_CPUS) => Err(wrong(
                KEY,
                text,
                "too many",
                format!("at most {} vCPUs are possible", layout::MAX_CPUS),
            )),
            n => Ok(n as u32),
        }
    };
    let mut total = None;
    let mut counts: [Option<u32>; 3] = [None; 3];
    for (at, word) in text.split(',').enumerate() {
        match word.split_once('=') {
            None if at == 0 => total = Some(number(word)?),
            None => return Err(wrong(KEY, text, format!("'{word}' has no value"), FORMS)),
            Some((key, value)) => {
                let slot = KEYS
                    .iter()
                    .zip(&mut counts)
                    .find(|(known, _)| **known == key.trim());
                match slot {
                    Some((_, slot)) => *slot = Some(number(value)?),
                    None => {
                        return Err(ConfigError::UnknownKey {
                            key: key.into(),
                            place: KEY.into(),
                            known: KEYS,
                        });
                    }
                }
            }
        }
    }
    let [sockets, cores, threads] = counts;
    let (sockets, threads) = (sockets.unwrap_or(1), threads.unwrap_or(1));
    let cores = match (cores, total) {
        (Some(cores), _) => cores,
        (None, Some(total)) => total
            .checked_div(sockets.saturating_mul(threads))
            .unwrap_or(0),
        (None, None) => 1,
    };
    let topology = Topology {
        sockets,
        cores,
        threads,
    };
    if let Some(total) = total.filter(|total| *total != topology.cpus()) {
        return Err(wrong(
            KEY,
            text,
            format!("{sockets} sockets, {cores} cores and {threads} threads do not make {total}"),
            "sockets times cores times threads must be the number of vCPUs",
        ));
    }
    let highest_id = topology.apic_id(topology.cpus().saturating_sub(1));
    if topology.cpus() > layout::MAX_CPUS || highest_id > layout::MAX_CPUS {
        return Err(wrong(
            KEY,
            text,
            "too many APIC ids",
            format!(
                "at most {} vCPUs are possible, fewer where counts are no powers of two",
                layout::MAX_CPUS
            ),
        ));
    }
    Ok(topology)
}

/// Splits at commas; two in a row are one that belongs to the word.
pub(crate) fn split_commas(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let doubled = c == ',' && chars.next_if_eq(&',').is_some();
        if c == ',' && !doubled {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(memory("512M").unwrap(), 512 << 20);
        assert_eq!(memory("2G").unwrap(), 2 << 30);
        assert_eq!(memory("256").unwrap(), 256 << 20);
        assert_eq!(memory(" 4096 kib").unwrap(), 4 << 20);
        for bad in [
            "",
            "0",
            "0G",
            "G",
            "-1G",
            "1.5G",
            "12X",
            "4097K",
            "99999999999999999999",
            "20000000T",
            "1M",
        ] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(duration("1500ms").unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("2").unwrap(), Duration::from_secs(2));
        for bad in ["", "0", "s", "5 parsecs", "18446744073709551615h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn uuids() {
        let text = "123e4567-e89b-12d3-a456-426614174000";
        assert_eq!(uuid(text).unwrap().to_string(), text);
        assert_eq!(uuid(&text.to_uppercase()).unwrap().to_string(), text);
        for bad in [
            "",
            "1",
            "123e4567-e89b-12d3-a456-42661417400",
            "123e4567-e89b-12d3-a456-42661417400g",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ] {
            assert!(uuid(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn topologies() {
        assert_eq!(topology("4").unwrap(), Topology::flat(4));
        let t = Topology {
            sockets: 2,
            cores: 2,
            threads: 2,
        };
        assert_eq!(topology("8,sockets=2,cores=2,threads=2").unwrap(), t);
        assert_eq!(topology("8,sockets=2,threads=2").unwrap(), t);
        assert_eq!(topology("sockets=2,cores=2,threads=2").unwrap(), t);
        for bad in [
            "",
            "0",
            "-1",
            "x",
            "255",
            "4,cores=3",
            "4,core=4",
            "4,4",
            "254,sockets=127,cores=2,threads=1,x",
            "5,sockets=2",
            "4294967297",
        ] {
            assert!(topology(bad).is_err(), "{bad}");
        }
        assert!(topology("165,sockets=5,cores=33").is_err(), "ids past 254");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = (memory(&text), duration(&text), topology(&text), uuid(&text));
        }

        #[test]
        fn accepted_topologies_have_ids_that_fit(s in 0u32..300, c in 0u32..300, t in 0u32..300) {
            if let Ok(topology) = topology(&format!("sockets={s},cores={c},threads={t}")) {
                proptest::prop_assert!(topology.apic_ids().all(|id| id <= layout::MAX_CPUS));
            }
        }
    }
}
