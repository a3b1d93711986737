//! A fresh run's ratios against the published ones.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::result::Results;

/// A published interval is taken to be at least so wide: another day is another day.
const SLACK: f64 = 0.02;

/// Says which ratios have moved beyond their intervals; that is exit code 1.
pub fn check(fresh: &Results, published: &Path) -> Result<ExitCode> {
    let published = super::read(published)?;
    let (mut same, mut moved) = (0, 0);
    for figure in &fresh.figures {
        let Some(old) = published
            .figures
            .iter()
            .find(|f| f.row == figure.row && f.case == figure.case)
        else {
            println!("new: {} ({})", figure.row, figure.case);
            continue;
        };
        for series in &figure.series {
            let then = old.series_of(&series.vmm).and_then(|s| s.ratio);
            let (Some(now), Some(then)) = (series.ratio, then) else {
                continue;
            };
            if now.apart(&then, SLACK) {
                moved += 1;
                let better = (now.median < then.median) == figure.lower_is_better;
                println!(
                    "{}: {} ({}): over {}: {:.3} ({:.3} to {:.3}), published {:.3} ({:.3} to {:.3})",
                    if better { "better" } else { "worse" },
                    figure.row,
                    figure.case,
                    series.vmm,
                    now.median,
                    now.low,
                    now.high,
                    then.median,
                    then.low,
                    then.high,
                );
            } else {
                same += 1;
            }
        }
    }
    println!("{same} ratios as published, {moved} beyond their intervals");
    Ok(if moved == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
