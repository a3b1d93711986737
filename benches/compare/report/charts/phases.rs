//! The phases of a boot, one bar per VMM. Lengths are added here, so the axis is linear and begins at 0.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::axis::Axis;
use super::plot::{Drawn, HEAD, LEFT, RIGHT, WIDTH, text, ticks};
use super::style::{self, INK, PALE, PAPER};
use crate::report::standing::number;
use crate::result::{Clock, Figure, Series};

pub const TITLE: &str = "Boot, in phases";
const BAR: i32 = 24;
const GAP: i32 = 26;
const FOOT: i32 = 36;
/// A VMM's colour gets lighter from phase to phase.
const SHADES: [f64; 4] = [1.0, 0.62, 0.32, 0.16];

/// The drawing.
pub fn draw(figures: &[&Figure]) -> Drawn<String> {
    let measured = |figure: &Figure| -> Vec<Series> {
        let has = |s: &&Series| !s.parts.is_empty();
        figure.series.iter().filter(has).cloned().collect()
    };
    let all: Vec<Series> = figures.iter().flat_map(|f| measured(f)).collect();
    let most = all
        .iter()
        .filter_map(|s| s.median)
        .fold(f64::MIN_POSITIVE, f64::max);
    let bars = all.len() as i32 * BAR + figures.len() as i32 * GAP;
    let mut svg = String::new();
    {
        let size = (WIDTH, (HEAD + bars + FOOT) as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&PAPER)?;
        text(&area, TITLE, (16, 22), 21, HPos::Left, INK, true)?;
        let clock = match figures.first().map(|f| f.clock) {
            Some(Clock::Virtual) => ", virtual time",
            Some(Clock::Emulated) => ", emulated machine",
            _ => "",
        };
        let unit = format!("ms{clock}: less is better");
        text(&area, &unit, (RIGHT, 22), 15, HPos::Right, PALE, false)?;
        let mut x = 22;
        let names: Vec<&String> = all
            .first()
            .map(|s| s.parts.keys().collect())
            .unwrap_or_default();
        for (name, shade) in names.iter().zip(SHADES) {
            // Numbers keep them in order in the file.
            let name = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
            area.draw(&Rectangle::new(
                [(x, 41), (x + 14, 55)],
                PALE.mix(shade).filled(),
            ))?;
            text(&area, name, (x + 20, 48), 16, HPos::Left, INK, false)?;
            x += 50 + 8 * name.len() as i32;
        }
        let axis = Axis::from_zero(most);
        let at = |value: f64| LEFT + (axis.place(value) * f64::from(RIGHT - LEFT)) as i32;
        ticks(&area, &axis, at, (HEAD, HEAD + bars), "")?;
        let mut y = HEAD;
        for figure in figures {
            let image = figure.case.trim_end_matches(", phases");
            text(&area, image, (22, y + GAP / 2), 15, HPos::Left, INK, true)?;
            y += GAP;
            for series in measured(figure) {
                let (color, _) = style::of(&series.vmm);
                text(
                    &area,
                    &series.vmm,
                    (LEFT - 10, y + 10),
                    15,
                    HPos::Right,
                    INK,
                    false,
                )?;
                let mut from = 0.0;
                for (part, shade) in series.parts.values().zip(SHADES) {
                    let ends = [(at(from), y + 2), (at(from + part), y + BAR - 4)];
                    area.draw(&Rectangle::new(ends, color.mix(shade).filled()))?;
                    from += part;
                }
                text(
                    &area,
                    &number(from),
                    (at(from) + 8, y + 10),
                    15,
                    HPos::Left,
                    INK,
                    false,
                )?;
                y += BAR;
            }
        }
        area.present()?;
    }
    Ok(style::follow_the_page(&svg))
}
