//! Panels of lines over an axis: each line is a question, each mark on it a VMM's answer.
//!
//! ```text
//!   title
//!   o bantam   | floor   # qemu-microvm                      (the key)
//!   heading of a panel: unit, and which way is better
//!        ELF, 1 vCPU, quiet │   -o-      |       -#-
//!        PVH, 1 vCPU, quiet │   -o-      |        -#-
//!                           └────┬───────────┬───────────┬
//!                               10          100         1000
//! ```

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::{self, Axis};
use super::style::{self, GOOD, GRID, INK, PALE, PAPER, Shape};
use crate::report::standing::number;

pub const WIDTH: u32 = 880;
/// Where an axis begins and ends.
pub const LEFT: i32 = 352;
pub const RIGHT: i32 = WIDTH as i32 - 36;
const MARGIN: i32 = 16;
/// So many marks have room for their figures beside them.
const FEW: usize = 12;

/// What plotters gives.
pub type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One VMM's answer: a mark, and a line that says how far it may be off.
#[derive(Debug)]
pub struct Mark {
    pub vmm: String,
    pub low: f64,
    /// None where no median can be shown: the ends are marked instead.
    pub at: Option<f64>,
    pub high: f64,
}

/// One question.
#[derive(Debug)]
pub struct Line {
    pub label: String,
    pub marks: Vec<Mark>,
}

/// Questions with one axis.
#[derive(Debug)]
pub struct Panel {
    pub heading: String,
    /// Behind the axis' figures.
    pub unit: &'static str,
    /// The axis is of factors, and 1 is Bantam.
    pub from_one: bool,
    pub lines: Vec<Line>,
}

/// A chart.
#[derive(Debug)]
pub struct Plot {
    pub title: String,
    pub panels: Vec<Panel>,
}

/// How far marks of one line are apart, and lines.
#[derive(Debug, Clone, Copy)]
struct Spacing {
    lane: i32,
    gap: i32,
    figures: bool,
}

impl Plot {
    /// The drawing.
    pub fn draw(&self) -> Drawn<String> {
        let marks = || {
            self.panels
                .iter()
                .flat_map(|p| &p.lines)
                .flat_map(|l| &l.marks)
        };
        let few = marks().count() <= FEW;
        let spacing = match few {
            true => Spacing {
                lane: 19,
                gap: 10,
                figures: true,
            },
            false => Spacing {
                lane: 6,
                gap: 6,
                figures: false,
            },
        };
        let body: i32 = self.panels.iter().map(|panel| panel.height(spacing)).sum();
        let mut svg = String::new();
        {
            let size = (WIDTH, (HEAD + body) as u32);
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            area.fill(&PAPER)?;
            text(&area, &self.title, (MARGIN, 22), 21, HPos::Left, INK, true)?;
            let mut names: Vec<&str> = Vec::new();
            for mark in marks() {
                if !names.contains(&mark.vmm.as_str()) {
                    names.push(&mark.vmm);
                }
            }
            key(&area, &names)?;
            let mut y = HEAD;
            for panel in &self.panels {
                panel.draw(&area, y, spacing)?;
                y += panel.height(spacing);
            }
            area.present()?;
        }
        Ok(style::follow_the_page(&svg))
    }
}

/// Title and key.
pub const HEAD: i32 = 66;
/// A panel's heading, and its axis' figures with what follows.
const HEADING: i32 = 24;
const FOOT: i32 = 36;

/// What the marks mean.
pub fn key(area: &Area<'_>, names: &[&str]) -> Drawn<()> {
    let mut x = MARGIN + 6;
    for name in names {
        mark(area, name, (x, 48), 6)?;
        text(area, name, (x + 12, 48), 16, HPos::Left, INK, false)?;
        x += 40 + 8 * name.len() as i32;
    }
    Ok(())
}

impl Panel {
    /// All of a panel's lines are as high as the one with the most marks.
    fn line_height(&self, spacing: Spacing) -> i32 {
        let most = self.lines.iter().map(|l| l.marks.len()).max();
        (most.unwrap_or(0) as i32 * spacing.lane).max(12) + spacing.gap
    }

    fn height(&self, spacing: Spacing) -> i32 {
        let lines = self.lines.len() as i32 * self.line_height(spacing);
        HEADING + lines + FOOT
    }

    fn draw(&self, area: &Area<'_>, top: i32, spacing: Spacing) -> Drawn<()> {
        let values = self
            .lines
            .iter()
            .flat_map(|l| &l.marks)
            .flat_map(|m| [m.low, m.at.unwrap_or(m.low), m.high])
            .filter(|value| *value > 0.0);
        let axis = Axis::around(values);
        let x = |value: f64| LEFT + (axis.place(value) * f64::from(RIGHT - LEFT)) as i32;
        let (first, last) = (top + HEADING, top + self.height(spacing) - FOOT);
        if self.from_one {
            area.draw(&Rectangle::new(
                [(x(1.0), first), (RIGHT, last)],
                GOOD.filled(),
            ))?;
        }
        if self.from_one {
            let one = x(1.0);
            let (left, right) = ("← the other is better", "Bantam is better →");
            text(
                area,
                left,
                (one - 12, top + 10),
                15,
                HPos::Right,
                PALE,
                false,
            )?;
            text(
                area,
                right,
                (one + 12, top + 10),
                15,
                HPos::Left,
                PALE,
                false,
            )?;
        } else {
            let scale = if axis.is_log() {
                " (logarithmic axis)"
            } else {
                ""
            };
            let heading = format!("{}{scale}", self.heading);
            text(
                area,
                &heading,
                (RIGHT, top + 10),
                15,
                HPos::Right,
                PALE,
                false,
            )?;
        }
        ticks(area, &axis, x, (first, last), self.unit)?;
        if self.from_one {
            let (color, _) = style::of(crate::result::OURS);
            area.draw(&PathElement::new(
                [(x(1.0), first), (x(1.0), last)],
                color.stroke_width(2),
            ))?;
        }
        let mut y = first;
        let height = self.line_height(spacing);
        for (i, line) in self.lines.iter().enumerate() {
            if i > 0 {
                area.draw(&PathElement::new(
                    [(MARGIN, y), (RIGHT, y)],
                    GRID.stroke_width(1),
                ))?;
            }
            let label = (LEFT - 10, y + height / 2);
            text(area, &line.label, label, 15, HPos::Right, INK, false)?;
            let used = line.marks.len() as i32 * spacing.lane;
            let mut lane = y + (height - used + spacing.lane) / 2;
            for one in &line.marks {
                let (color, _) = style::of(&one.vmm);
                let ends = [(x(one.low), lane), (x(one.high), lane)];
                area.draw(&PathElement::new(ends, color.stroke_width(2)))?;
                let Some(middle) = one.at else {
                    for (end, _) in ends {
                        mark(area, &one.vmm, (end, lane), 3)?;
                    }
                    lane += spacing.lane;
                    continue;
                };
                let size = if spacing.figures { 6 } else { 4 };
                mark(area, &one.vmm, (x(middle), lane), size)?;
                if spacing.figures {
                    // Beside the mark, where there is room.
                    let (at, side) = match x(one.high) > RIGHT - 60 {
                        true => (x(one.low) - 12, HPos::Right),
                        false => (x(one.high) + 12, HPos::Left),
                    };
                    text(area, &number(middle), (at, lane), 15, side, INK, false)?;
                }
                lane += spacing.lane;
            }
            y += height;
        }
        Ok(())
    }
}

/// The grid, and figures below it.
pub fn ticks(
    area: &Area<'_>,
    axis: &Axis,
    x: impl Fn(f64) -> i32,
    (first, last): (i32, i32),
    unit: &str,
) -> Drawn<()> {
    for tick in axis.ticks() {
        let at = x(tick);
        area.draw(&PathElement::new(
            [(at, first), (at, last + 5)],
            GRID.stroke_width(1),
        ))?;
        let label = axis::label(tick) + unit;
        text(area, &label, (at, last + 13), 14, HPos::Center, PALE, false)?;
    }
    area.draw(&PathElement::new(
        [(LEFT, last), (RIGHT, last)],
        PALE.stroke_width(1),
    ))?;
    Ok(())
}

/// A word, its middle at `at`'s height.
pub fn text(
    area: &Area<'_>,
    words: &str,
    at: (i32, i32),
    size: i32,
    side: HPos,
    color: RGBColor,
    bold: bool,
) -> Drawn<()> {
    let font = ("sans-serif", size).into_font();
    let font = match bold {
        true => font.style(FontStyle::Bold),
        false => font,
    };
    let style = TextStyle::from(font)
        .color(&color)
        .pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(words.to_owned(), at, style))?;
    Ok(())
}

/// A VMM's mark.
pub fn mark(area: &Area<'_>, vmm: &str, (x, y): (i32, i32), r: i32) -> Drawn<()> {
    let (color, shape) = style::of(vmm);
    let corners = match shape {
        Shape::Circle => {
            area.draw(&Circle::new((x, y), r, color.filled()))?;
            return Ok(());
        }
        Shape::Square => vec![
            (x - r, y - r),
            (x + r, y - r),
            (x + r, y + r),
            (x - r, y + r),
        ],
        Shape::Bar => {
            let half = (r / 2).max(2);
            vec![
                (x - half, y - r),
                (x + half, y - r),
                (x + half, y + r),
                (x - half, y + r),
            ]
        }
        Shape::Diamond => vec![
            (x - r - 1, y),
            (x, y - r - 1),
            (x + r + 1, y),
            (x, y + r + 1),
        ],
        Shape::Up => vec![(x - r, y + r), (x, y - r), (x + r, y + r)],
        Shape::Down => vec![(x - r, y - r), (x + r, y - r), (x, y + r)],
    };
    area.draw(&Polygon::new(corners, color.filled()))?;
    Ok(())
}
