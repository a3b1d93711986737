//! Figures that belong on one chart and in one table: the sections of the page, in their order.

use crate::result::{Clock, Figure, Results};

/// A part of the page.
#[derive(Debug)]
pub struct Section<'a> {
    /// Its name in links and of its chart.
    pub name: &'static str,
    pub title: &'static str,
    /// What is measured, in a sentence for somebody who has not read the harness.
    pub about: &'static str,
    pub figures: Vec<&'a Figure>,
}

struct Kind {
    row: &'static str,
    /// Of the row, the figures for which this is true.
    of: fn(&Figure) -> bool,
    name: &'static str,
    title: &'static str,
    about: &'static str,
}

/// A case of the block row whose driver is Linux's, not the harness's.
fn with_linux(figure: &Figure) -> bool {
    figure.case.starts_with("fio in Linux")
}

/// A boot, broken up; it has a chart of its own.
pub fn is_phases(figure: &Figure) -> bool {
    figure.case.ends_with(", phases")
}

const KINDS: [Kind; 8] = [
    Kind {
        row: "start",
        of: |_| true,
        name: "start",
        title: "Start",
        about: "From the start of the VMM's process to the first byte that its guest prints. The guest has four \
                instructions, so this is what the VMM itself takes.",
    },
    Kind {
        row: "boot",
        of: |figure| !is_phases(figure),
        name: "boot",
        title: "Boot",
        about: "From the start of the VMM's process to the first program in Linux, /init.",
    },
    Kind {
        row: "boot",
        of: is_phases,
        name: "boot-phases",
        title: "Boot, in phases",
        about: "Where the time of a boot goes: until the VMM enters the kernel, until the kernel first prints, until \
                /init. With a full console and KVM's tracepoints, so slower than above.",
    },
    Kind {
        row: "exits",
        of: |_| true,
        name: "exits",
        title: "Exits",
        about: "What one exit from the guest to the VMM costs, and how many of them a boot takes.",
    },
    Kind {
        row: "block",
        of: |figure| !with_linux(figure),
        name: "block",
        title: "Disk, a bare driver",
        about: "What a disk gives to a driver that does nothing else and needs no Linux. `fio` is not a VMM: it makes the same \
                requests on the host, without a guest.",
    },
    Kind {
        row: "block",
        of: with_linux,
        name: "block-linux",
        title: "Disk, fio in Linux",
        about: "The same question, asked by fio in a Linux guest. `fio` is the same program without a guest around it, \
                on the machine that the VMMs run on.",
    },
    Kind {
        row: "memory",
        of: |_| true,
        name: "memory",
        title: "Memory",
        about: "What a VMM takes besides its guest's memory (PSS: pages that are shared count by their share), and how large its \
                program is.",
    },
    Kind {
        row: "density",
        of: |_| true,
        name: "density",
        title: "Fifty machines",
        about: "Fifty machines side by side, each with a guest that halts.",
    },
];

/// The sections that have figures.
pub fn sections(results: &Results) -> Vec<Section<'_>> {
    let mut sections = Vec::new();
    for kind in &KINDS {
        let mut figures: Vec<&Figure> = results
            .figures
            .iter()
            .filter(|figure| figure.row == kind.row && (kind.of)(figure))
            .collect();
        // What is of one clock stands together; a row's own order stays otherwise.
        figures.sort_by_key(|figure| figure.clock == Clock::Emulated);
        if !figures.is_empty() {
            sections.push(Section {
                name: kind.name,
                title: kind.title,
                about: kind.about,
                figures,
            });
        }
    }
    sections
}
