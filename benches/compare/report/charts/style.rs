//! A colour and a shape for each VMM, everywhere the same, and the colours of paper and ink, which
//! follow the reader's choice of a light or a dark page.

use plotters::prelude::RGBColor;

/// Around a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Circle,
    Square,
    Diamond,
    Up,
    Down,
    Bar,
}

/// Of each VMM that the comparison knows: readable on white and on near-black, and told apart by
/// shape where colours are not.
const STYLES: [(&str, RGBColor, Shape); 8] = [
    ("bantam", RGBColor(0xe0, 0x4f, 0x10), Shape::Circle),
    ("floor", RGBColor(0x80, 0x88, 0x92), Shape::Bar),
    ("qemu-microvm", RGBColor(0x1f, 0x6f, 0xe0), Shape::Square),
    ("qemu-q35", RGBColor(0x9a, 0x5b, 0xd6), Shape::Up),
    ("fio", RGBColor(0x2a, 0x9a, 0x48), Shape::Diamond),
    ("firecracker", RGBColor(0xc0, 0x3a, 0x8a), Shape::Down),
    (
        "cloud-hypervisor",
        RGBColor(0xa8, 0x70, 0x08),
        Shape::Square,
    ),
    ("kvmtool", RGBColor(0x12, 0x95, 0xa0), Shape::Up),
];

/// How `vmm` is drawn.
pub fn of(vmm: &str) -> (RGBColor, Shape) {
    STYLES
        .iter()
        .find(|(name, ..)| *name == vmm)
        .map_or((INK, Shape::Circle), |(_, color, shape)| (*color, *shape))
}

/// The background.
pub const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
/// Text.
pub const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
/// Text of less weight.
pub const PALE: RGBColor = RGBColor(0x5f, 0x68, 0x72);
/// Lines of the grid.
pub const GRID: RGBColor = RGBColor(0xd8, 0xdd, 0xe3);
/// Where Bantam is better.
pub const GOOD: RGBColor = RGBColor(0xee, 0xf6, 0xee);

/// Each of these on a dark page.
const DARK: [(RGBColor, &str); 5] = [
    (PAPER, "#0d1117"),
    (INK, "#e6edf3"),
    (PALE, "#9aa4af"),
    (GRID, "#30363d"),
    (GOOD, "#12241a"),
];

/// Adds what a drawing needs to follow the page: the drawing's own colours are those of a light one,
/// and a browser whose user prefers dark pages takes the others.
pub fn follow_the_page(svg: &str) -> String {
    let mut rules = String::new();
    for (light, dark) in DARK {
        let light = format!("#{:02X}{:02X}{:02X}", light.0, light.1, light.2);
        rules += &format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}");
    }
    let style = format!("<style>@media (prefers-color-scheme:dark){{{rules}}}</style>");
    match svg.split_once('>') {
        Some((head, rest)) => format!("{head}>\n{style}{rest}"),
        None => svg.to_owned(),
    }
}
