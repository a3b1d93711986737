//! The VMMs, and how each is asked for the same machine: a table of argument templates.
//!
//! `{kernel}`, `{cmdline}`, `{cpus}`, `{memory}` (MiB), `{cpu}` (the model of the processor, see
//! [`probe`]), `{initrd}`, `{disk}`, `{driver}` (file or block device, in QEMU's words), `{n}` (its
//! number, from 0) and `{folder}` (scratch) are filled in. A template that cannot express something
//! says so, and the harness reports the case as missing for that VMM.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::Process;

pub mod probe;
mod template;
mod templates;

pub use template::{DiskKind, Template};
pub use templates::{FIO, TEMPLATES};

use template::Lacks;

/// To say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// The machine that is asked for.
#[derive(Debug, Clone)]
pub struct Machine {
    pub kernel: PathBuf,
    /// A bzImage, not an ELF file.
    pub bzimage: bool,
    /// Enter by PVH where there is a choice.
    pub pvh: bool,
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
    pub cpus: u32,
    pub memory_mib: u32,
    pub disks: Vec<PathBuf>,
    pub disk_kind: DiskKind,
    /// Where a VMM may keep what it has learnt of a kernel; without one, a folder of this run.
    pub cache: Option<PathBuf>,
}

/// A VMM that takes part.
#[derive(Debug, Clone)]
pub struct Vmm {
    pub template: &'static Template,
    pub program: PathBuf,
    /// The model of the processor, of the template's.
    pub cpu: &'static str,
    /// The first line of what it says of its version.
    pub version: Option<String>,
}

impl Vmm {
    /// The program, with the template's first choice of a processor; an error says why it cannot run
    /// at all.
    pub fn new(template: &'static Template, program: PathBuf) -> Result<Self> {
        let mut vmm = Vmm {
            template,
            program,
            cpu: template.cpus.first().copied().unwrap_or_default(),
            version: None,
        };
        vmm.version = vmm.ask_version()?;
        Ok(vmm)
    }

    pub fn name(&self) -> &'static str {
        self.template.name
    }

    /// The command that runs `machine`; an error says what this VMM cannot do.
    pub fn command(&self, machine: &Machine, folder: &Path) -> Result<Command> {
        let t = self.template;
        let lacks = |what| t.lacks.contains(&what);
        if machine.cpus > 1 && lacks(Lacks::Smp) {
            bail!("one vCPU only");
        }
        if machine.bzimage && lacks(Lacks::BzImage) {
            bail!("boots no bzImage");
        }
        if !machine.bzimage && lacks(Lacks::Elf) {
            bail!("boots no ELF kernel");
        }
        if !t.disk.is_empty() && machine.disks.len() > t.disks {
            bail!("takes no more than {} disks", t.disks);
        }
        let asked_as = match machine.disk_kind {
            DiskKind::Ram => DiskKind::Direct,
            kind => kind,
        };
        let mut kinds = t.disk.iter();
        let disk_args = match kinds.find(|(kind, _)| *kind == asked_as) {
            Some((_, args)) => *args,
            None if machine.disks.is_empty() => &[],
            None if t.disk.is_empty() => bail!("has no disks"),
            None => bail!("has no disks of the kind {:?}", machine.disk_kind.name()),
        };
        let fill = Fill {
            machine,
            folder,
            cpu: self.cpu,
            cmdline: cmdline(t, machine),
            json: false,
        };
        let mut command = Command::new(&self.program);
        command.env("XDG_CACHE_HOME", machine.cache.as_deref().unwrap_or(folder));
        command.args(t.base.iter().map(|arg| fill.text(arg, None)));
        if machine.pvh {
            command.args(t.pvh);
        }
        if machine.initrd.is_some() {
            command.args(t.initrd.iter().map(|arg| fill.text(arg, None)));
        }
        for disk in machine.disks.iter().enumerate() {
            command.args(disk_args.iter().map(|arg| fill.text(arg, Some(disk))));
        }
        if let Some(file) = &t.file {
            let fill = Fill { json: true, ..fill };
            let disks: Vec<_> = machine
                .disks
                .iter()
                .enumerate()
                .map(|disk| fill.text(file.disk, Some(disk)))
                .collect();
            let initrd = machine.initrd.as_ref().map_or("", |_| file.initrd);
            let text = file
                .text
                .replace("{initrd}", initrd)
                .replace("{disks}", &disks.join(","));
            let path = folder.join(file.name);
            std::fs::write(&path, fill.text(&text, None))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(command)
    }

    fn ask_version(&self) -> Result<Option<String>> {
        if self.template.version.is_empty() {
            return Ok(None);
        }
        let mut asked = Process::start(|_| {
            let mut command = Command::new(&self.program);
            command.args(self.template.version);
            Ok(command)
        })?;
        let Ok((_, line)) = asked.wait_for(b"\n", VERSION_LIMIT) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&line);
        Ok(text.lines().next().map(str::to_owned))
    }
}

fn cmdline(template: &Template, machine: &Machine) -> String {
    // A bare-metal guest reads words of its own; what it does not know does not hurt it.
    [machine.cmdline.as_str(), template.cmdline]
        .join(" ")
        .trim()
        .to_owned()
}

struct Fill<'a> {
    machine: &'a Machine,
    folder: &'a Path,
    cpu: &'a str,
    cmdline: String,
    /// What is filled in stands between quotation marks in a JSON file.
    json: bool,
}

impl Fill<'_> {
    fn text(&self, template: &str, disk: Option<(usize, &PathBuf)>) -> String {
        let m = self.machine;
        let quoted = |text: String| match self.json {
            true => json_string(&text),
            false => text,
        };
        let path = |path: &Path| quoted(path.display().to_string());
        let mut text = template
            .replace("{folder}", &path(self.folder))
            .replace("{kernel}", &path(&m.kernel))
            .replace("{cpus}", &m.cpus.to_string())
            .replace("{memory}", &m.memory_mib.to_string())
            .replace("{cpu}", self.cpu)
            .replace("{cmdline}", &quoted(self.cmdline.clone()));
        if let Some(initrd) = &m.initrd {
            text = text.replace("{initrd}", &path(initrd));
        }
        if let Some((n, disk)) = disk {
            // QEMU wants to be told.
            let driver = match m.disk_kind {
                DiskKind::Ram => "host_device",
                _ => "file",
            };
            text = text
                .replace("{driver}", driver)
                .replace("{disk}", &path(disk))
                .replace("{n}", &n.to_string());
        }
        text
    }
}

/// What stands between the quotation marks of a JSON string.
fn json_string(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    let inner = quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    inner.unwrap_or_default().to_owned()
}

/// A VMM that was asked for by name, and where it is if that was said.
pub type Named = (String, Option<PathBuf>);

/// The VMMs of a run: Bantam, the floor, QEMU where it is installed, and what `named` names. The
/// second list says who stays away, and why.
pub fn assemble(ours: &Path, floor: &Path, named: &[Named]) -> Result<(Vec<Vmm>, Vec<String>)> {
    let known = || TEMPLATES.map(|t| t.name).join(", ");
    if let Some((name, _)) = named
        .iter()
        .find(|(name, _)| TEMPLATES.iter().all(|t| t.name != name))
    {
        bail!(
            "--vmm {name}: no adapter of that name; there are {}",
            known()
        );
    }
    let mut present = Vec::new();
    let mut absent = Vec::new();
    for template in &TEMPLATES {
        let asked = named.iter().find(|(name, _)| name == template.name);
        if template.asked_only && asked.is_none() {
            continue;
        }
        let given = asked.and_then(|(_, path)| path.clone());
        let program = given.or_else(|| match template.name {
            "bantam" => Some(ours.to_owned()),
            "floor" => Some(floor.to_owned()),
            _ => find_program(template.program),
        });
        let why = match program {
            Some(program) if program.is_file() => match Vmm::new(template, program) {
                Ok(vmm) => {
                    present.push(vmm);
                    continue;
                }
                Err(error) => format!("{error:#}"),
            },
            Some(program) => format!("{} is not there", program.display()),
            None => format!(
                "not installed: there is no {} on the PATH",
                template.program
            ),
        };
        absent.push(format!("{}: {why}", template.name));
    }
    Ok((present, absent))
}

/// A program on the PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}
