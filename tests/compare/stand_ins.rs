//! Programs that read their command line as Firecracker 1.16, Cloud Hypervisor 53 and kvmtool of 2026
//! read theirs: they reject what those reject, with an exit code of 1 and the reason, and print as
//! JSON what machine they were asked for. They run nothing.
//!
//! A test makes a link to its own program, named as the VMM is, and starts that.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Firecracker's options, and whether each takes a value (src/firecracker/src/main.rs).
const FIRECRACKER: [(&str, bool); 24] = [
    ("api-sock", true),
    ("id", true),
    ("seccomp-filter", true),
    ("no-seccomp", false),
    ("start-time-us", true),
    ("start-time-cpu-us", true),
    ("parent-cpu-time-us", true),
    ("config-file", true),
    ("metadata", true),
    ("no-api", false),
    ("log-path", true),
    ("level", true),
    ("module", true),
    ("show-level", false),
    ("show-log-origin", false),
    ("metrics-path", true),
    ("boot-timer", false),
    ("version", false),
    ("snapshot-version", false),
    ("describe-snapshot", true),
    ("http-api-max-payload-size", true),
    ("mmds-size-limit", true),
    ("enable-pci", false),
    ("help", false),
];

/// Cloud Hypervisor's options with one value, and with one or more (cloud-hypervisor/src/main.rs).
const CLOUD_HYPERVISOR: [(&str, bool); 17] = [
    ("api-socket", false),
    ("balloon", false),
    ("cmdline", false),
    ("console", false),
    ("cpus", false),
    ("debug-console", false),
    ("disk", true),
    ("event-monitor", false),
    ("firmware", false),
    ("initramfs", false),
    ("kernel", false),
    ("log-file", false),
    ("memory", false),
    ("net", true),
    ("rng", false),
    ("seccomp", false),
    ("serial", false),
];

/// kvmtool's options for `run`, and whether each takes a value (builtin-run.c).
const KVMTOOL: [(&str, bool); 24] = [
    ("name", true),
    ("cpus", true),
    ("mem", true),
    ("disk", true),
    ("balloon", false),
    ("rng", false),
    ("nodefaults", false),
    ("9p", true),
    ("console", true),
    ("vsock", true),
    ("dev", true),
    ("tty", true),
    ("sandbox", true),
    ("hugetlbfs", true),
    ("virtio-transport", true),
    ("loglevel", true),
    ("kernel", true),
    ("initrd", true),
    ("params", true),
    ("firmware", true),
    ("network", true),
    ("no-dhcp", false),
    ("irqchip", true),
    ("debug", false),
];

type Answer = Result<Value, String>;

/// Ends the program where it has the name of a VMM.
pub fn run() {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let read: fn(&[String]) -> Answer = match Path::new(&name).file_name().and_then(|n| n.to_str())
    {
        Some("firecracker") => firecracker,
        Some("cloud-hypervisor") => cloud_hypervisor,
        Some("lkvm") => kvmtool,
        _ => return,
    };
    match read(&words) {
        Ok(Value::String(text)) => println!("{text}"),
        Ok(machine) => println!("{machine}"),
        Err(why) => {
            eprintln!("Error: {why}");
            std::process::exit(1);
        }
    }
    std::process::exit(0);
}

/// Firecracker's own parser: every word is an option, once, and a value never begins with "--".
fn firecracker(words: &[String]) -> Answer {
    if words.iter().any(|word| word == "--version") {
        return Ok("Firecracker v1.16.0".into());
    }
    let mut given: HashMap<&str, &str> = HashMap::new();
    let mut left = words.iter();
    while let Some(word) = left.next() {
        let unexpected = || format!("Found argument '{word}' which wasn't expected");
        let name = word.strip_prefix("--").ok_or_else(unexpected)?;
        let known = FIRECRACKER.iter().find(|(known, _)| *known == name);
        let (name, takes_value) = known.ok_or_else(unexpected)?;
        let value = match takes_value {
            false => "",
            true => left
                .next()
                .filter(|value| !value.starts_with("--"))
                .ok_or_else(|| format!("The argument '{name}' requires a value"))?,
        };
        if given.insert(name, value).is_some() {
            return Err(format!("The argument '{name}' was provided more than once"));
        }
    }
    if given.contains_key("no-api") && !given.contains_key("config-file") {
        return Err("Argument 'config-file' required, but not found".into());
    }
    // Without a log path its log goes where the guest's console goes.
    given.get("log-path").ok_or("the log is on the console")?;
    let file = given
        .get("config-file")
        .ok_or("no --config-file: this waits for an API call")?;
    let text = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
    let config: Value = serde_json::from_str(&text).map_err(|e| format!("Invalid JSON: {e}"))?;
    let top = object(
        &config,
        "the file",
        &["boot-source", "drives", "machine-config"],
    )?;
    let boot = object(
        get(top, "boot-source")?,
        "boot-source",
        &["kernel_image_path", "initrd_path", "boot_args"],
    )?;
    let machine = object(
        get(top, "machine-config")?,
        "machine-config",
        &[
            "vcpu_count",
            "mem_size_mib",
            "smt",
            "cpu_template",
            "track_dirty_pages",
            "huge_pages",
        ],
    )?;
    let cpus = get(machine, "vcpu_count")?
        .as_u64()
        .ok_or("vcpu_count is not a number")?;
    if cpus == 0 || cpus > 32 {
        return Err("The number of vCPUs must be greater than 0, less than 32".into());
    }
    let mut disks = Vec::new();
    for drive in get(top, "drives")?
        .as_array()
        .ok_or("drives is not a list")?
    {
        let drive = object(
            drive,
            "drive",
            &[
                "drive_id",
                "path_on_host",
                "is_root_device",
                "is_read_only",
                "partuuid",
                "cache_type",
                "rate_limiter",
                "io_engine",
                "socket",
            ],
        )?;
        get(drive, "drive_id")?
            .as_str()
            .filter(|id| !id.is_empty())
            .ok_or("no drive_id")?;
        get(drive, "is_root_device")?
            .as_bool()
            .ok_or("is_root_device is no bool")?;
        disks.push(json!({
            "path": get(drive, "path_on_host")?,
            "direct": false,
            "writable": get(drive, "is_read_only")? == &Value::Bool(false),
            "flushes": drive.get("cache_type") == Some(&json!("Writeback")),
            "format": "raw",
        }));
    }
    Ok(json!({
        "kernel": get(boot, "kernel_image_path")?,
        "initrd": boot.get("initrd_path"),
        "cmdline": get(boot, "boot_args")?,
        "cpus": cpus,
        "memory": get(machine, "mem_size_mib")?,
        "disks": disks,
    }))
}

/// An object with no other keys than these: its structures deny unknown fields.
fn object<'a>(
    value: &'a Value,
    what: &str,
    keys: &[&str],
) -> Result<&'a Map<String, Value>, String> {
    let object = value
        .as_object()
        .ok_or_else(|| format!("{what} is not an object"))?;
    match object.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(unknown) => Err(format!("unknown field `{unknown}` in {what}")),
        None => Ok(object),
    }
}

fn get<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a Value, String> {
    object
        .get(key)
        .ok_or_else(|| format!("missing field `{key}`"))
}

/// clap's rules: an option with one value comes once; a value that is a list of words has commas.
fn cloud_hypervisor(words: &[String]) -> Answer {
    if words == ["--version"] {
        return Ok("cloud-hypervisor v53.0".into());
    }
    let mut one: HashMap<&str, &str> = HashMap::new();
    let mut disk_words: Vec<&str> = Vec::new();
    let mut left = words.iter().map(String::as_str).peekable();
    while let Some(word) = left.next() {
        let unexpected = || format!("unexpected argument '{word}' found");
        let name = word.strip_prefix("--").ok_or_else(unexpected)?;
        let known = CLOUD_HYPERVISOR.iter().find(|(known, _)| *known == name);
        let (name, several) = known.ok_or_else(unexpected)?;
        let value = left.next().filter(|value| !value.starts_with('-'));
        let value = value.ok_or_else(|| format!("a value is required for '--{name}'"))?;
        if *several {
            disk_words.push(value);
            while let Some(more) = left.next_if(|next| !next.starts_with('-')) {
                disk_words.push(more);
            }
        } else if one.insert(name, value).is_some() {
            return Err(format!(
                "the argument '--{name}' cannot be used multiple times"
            ));
        }
    }
    for (name, wanted) in [("serial", "tty"), ("console", "off")] {
        if one.get(name) != Some(&wanted) {
            return Err(format!(
                "--{name} is not {wanted}: the guest's console is elsewhere"
            ));
        }
    }
    let part = |option: &str, key: &str| -> Result<String, String> {
        let value = one.get(option).ok_or_else(|| format!("no --{option}"))?;
        let known = match option {
            "cpus" => &["boot", "max", "topology", "affinity", "features", "nested"][..],
            _ => &[
                "size",
                "mergeable",
                "shared",
                "hugepages",
                "prefault",
                "thp",
            ][..],
        };
        let parts = keys(value, known)?;
        parts
            .get(key)
            .cloned()
            .ok_or_else(|| format!("--{option}: no {key}"))
    };
    let memory = part("memory", "size")?;
    let memory = memory
        .strip_suffix('M')
        .ok_or("--memory size= without M is in bytes")?;
    let mut disks = Vec::new();
    for disk in disk_words {
        let parts = keys(
            disk,
            &[
                "path",
                "readonly",
                "direct",
                "image_type",
                "backing_files",
                "num_queues",
                "queue_size",
                "sparse",
                "serial",
                "id",
            ],
        )?;
        let format = parts.get("image_type").cloned().unwrap_or_default();
        if !["raw", "qcow2", "vhd", "vhdx"].contains(&format.as_str()) {
            return Err(format!(
                "--disk {disk}: the image's type is guessed, and sector 0 read-only"
            ));
        }
        disks.push(json!({
            "path": parts.get("path").ok_or("a disk without path")?,
            "direct": parts.get("direct").is_some_and(|direct| direct == "on"),
            "writable": parts.get("readonly").is_none_or(|readonly| readonly == "off"),
            "flushes": true,
            "format": format,
        }));
    }
    Ok(json!({
        "kernel": one.get("kernel").ok_or("no --kernel")?,
        "initrd": one.get("initramfs"),
        "cmdline": one.get("cmdline"),
        "cpus": number(&part("cpus", "boot")?)?,
        "memory": number(memory)?,
        "disks": disks,
    }))
}

/// `a=b,c=d`.
fn keys(text: &str, known: &[&str]) -> Result<HashMap<String, String>, String> {
    let mut all = HashMap::new();
    for part in text.split(',') {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("no value for {part}"))?;
        if !known.contains(&key) {
            return Err(format!("unknown option: {key}"));
        }
        all.insert(key.to_owned(), value.to_owned());
    }
    Ok(all)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

/// kvmtool's own parser, as git's: `--name value` or `--name=value`, and one word for the kernel.
fn kvmtool(words: &[String]) -> Answer {
    let words = match words {
        [command] if command == "version" => return Ok("kvm tool 3.18.0".into()),
        [command, words @ ..] if command == "run" => words,
        _ => return Err("is not a lkvm command".into()),
    };
    let mut given: HashMap<&str, &str> = HashMap::new();
    let mut disks = Vec::new();
    let mut left = words.iter();
    while let Some(word) = left.next() {
        let body = word
            .strip_prefix("--")
            .ok_or_else(|| format!("Cannot handle parameter: {word}"))?;
        let (name, glued) = body
            .split_once('=')
            .map_or((body, None), |(n, v)| (n, Some(v)));
        let known = KVMTOOL.iter().find(|(known, _)| *known == name);
        let (name, takes_value) = known.ok_or_else(|| format!("unknown option `{name}'"))?;
        let value = match takes_value {
            false => "",
            true => glued
                .or_else(|| left.next().map(String::as_str))
                .ok_or_else(|| format!("option `{name}' requires a value"))?,
        };
        if *name == "disk" {
            if disks.len() == 4 {
                return Err("Currently only 4 images are supported".into());
            }
            let mut parts = value.split(',');
            let path = parts.next().unwrap_or_default();
            let parts: Vec<&str> = parts.collect();
            disks.push(json!({
                "path": path,
                "direct": parts.iter().any(|part| part.starts_with("direct")),
                "writable": !parts.iter().any(|part| part.starts_with("ro")),
                "flushes": true,
                "format": "raw",
            }));
        }
        given.insert(name, value);
    }
    let bzimage = given
        .get("kernel")
        .ok_or("could not find default kernel image")?;
    let image = std::fs::read(bzimage).map_err(|e| format!("{bzimage}: {e}"))?;
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("Kernel image is not a bzImage. Trying to load it as a flat binary".into());
    }
    if !given.contains_key("nodefaults") {
        return Err(
            "--nodefaults is missing: a root file system is shared, and words are added".into(),
        );
    }
    if given.get("network") != Some(&"mode=none") {
        return Err("a network device is added unless --network mode=none".into());
    }
    let loglevels = ["error", "warning"];
    if !given
        .get("loglevel")
        .is_some_and(|level| loglevels.contains(level))
    {
        return Err("what the program says of itself is on the console".into());
    }
    if given
        .get("console")
        .is_some_and(|console| *console != "serial")
    {
        return Err("the console is not COM1".into());
    }
    // With a letter behind it a size is in that unit; without, in MiB.
    let memory = given.get("mem").ok_or("no --mem")?;
    Ok(json!({
        "kernel": bzimage,
        "initrd": given.get("initrd"),
        "cmdline": given.get("params"),
        "cpus": number(given.get("cpus").ok_or("no --cpus")?)?,
        "memory": number(memory.trim_end_matches('M'))?,
        "disks": disks,
    }))
}
