//! What a screen shows, held against what the README says that it shows.

/// The lines that a screen shows, without colours and other orders to the terminal.
pub fn plain(screen: &str) -> Vec<String> {
    let mut text = String::new();
    let mut chars = screen.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\x1b' {
            text.push(c);
            continue;
        }
        match chars.next() {
            // CSI: up to its letter.
            Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
            // OSC: up to BEL or ST.
            Some(']') => while chars.next().is_some_and(|c| c != '\x07' && c != '\\') {},
            _ => {}
        }
    }
    text.split('\n')
        .map(|line| line.trim_end_matches('\r'))
        .map(|line| {
            line.rsplit('\r')
                .next()
                .unwrap_or(line)
                .trim_end()
                .to_owned()
        })
        .collect()
}

/// Without what differs from run to run and from machine to machine: numbers, and how wide
/// they are. A line that is a number is an answer, and stays.
fn shape(line: &str) -> String {
    if line.parse::<u64>().is_ok() {
        return line.to_owned();
    }
    let mut out = String::new();
    for word in line.split_whitespace() {
        let mut number = false;
        if !out.is_empty() {
            out.push(' ');
        }
        let hex = word.len() >= 12 && word.chars().all(|c| c.is_ascii_hexdigit() || c == ')');
        for c in word.chars() {
            let digit = c.is_ascii_digit() || (hex && c != ')');
            if !(digit && number) {
                out.push(if digit { 'N' } else { c });
            }
            number = digit;
        }
    }
    // Kernels put their time into brackets of a fixed width.
    out.replace("[ N", "[N")
}

/// Are these lines on the screen, one after the other, but for `...`?
pub fn compare(lines: &[String], screen: &[String]) {
    let mut screen = screen.iter();
    let mut skip = true;
    let mut shown = Vec::new();
    for line in lines {
        if line.trim() == "..." {
            skip = true;
            continue;
        }
        let wanted = shape(line);
        loop {
            let Some(next) = screen.next() else {
                panic!("the screen does not show '{line}'; what it shows: {shown:#?}");
            };
            shown.push(next);
            // A kernel prints where the cursor is, which may be behind a prompt that waits.
            let shape = shape(next);
            if shape == wanted
                || wanted.starts_with("[N") && shape.ends_with(&format!("# {wanted}"))
            {
                break;
            }
            assert!(
                skip,
                "the README says '{line}', the screen '{next}'; before it: {shown:#?}"
            );
        }
        skip = false;
    }
}
