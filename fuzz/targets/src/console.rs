//! The console's ways with bytes: keys, escapes, and what two devices print of the same.
//!
//! Of what a second device prints, only whole lines at the beginning may be left out, only those that were shown
//! before, in their order; and it must not matter in which pieces it comes.

use arbitrary::{Arbitrary, Unstructured};
use bantam::console::keys::{Action, Keys};
use bantam::console::repeats::Repeats;
use bantam::error::{escaped, escaped_json, escaped_lines};

#[derive(Arbitrary, Debug)]
struct Input {
    typed: Vec<u8>,
    text: String,
    shown: Vec<Piece>,
    printed: Vec<Piece>,
    cuts: Vec<u8>,
}

/// Lines that are often the same.
#[derive(Arbitrary, Debug)]
enum Piece {
    Line(u8),
    Part(u8),
    Empty,
    Any(Vec<u8>),
}

fn bytes_of(pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces.iter().take(100) {
        match piece {
            Piece::Line(number) => bytes.extend(format!("line {}\r\n", number % 16).bytes()),
            Piece::Part(number) => bytes.extend(
                format!("line {}", number % 16)
                    .bytes()
                    .take(usize::from(number / 16)),
            ),
            Piece::Empty => bytes.extend(b"\n"),
            Piece::Any(any) => bytes.extend(any),
        }
    }
    bytes
}

/// Ctrl-a and what follows are taken out; all else goes to the guest.
fn keys(typed: &[u8]) {
    let mut keys = Keys::default();
    let mut rest = typed.iter();
    while let Some(byte) = rest.next() {
        if *byte != 1 {
            assert_eq!(keys.filter(*byte), Ok(Some(*byte)));
            continue;
        }
        assert_eq!(keys.filter(1), Ok(None));
        let Some(next) = rest.next() else { return };
        let wanted = match next.to_ascii_lowercase() {
            b'x' => Err(Action::Quit),
            b'c' => Err(Action::State),
            b'p' => Err(Action::Pause),
            b'h' | b'?' => Err(Action::Help),
            b'a' | 1 => Ok(Some(1)),
            _ => Ok(None),
        };
        assert_eq!(keys.filter(*next), wanted);
    }
}

fn new_of(shown: &[u8], printed: &[u8], cuts: &[u8]) -> Vec<u8> {
    let mut repeats = Repeats::default();
    repeats.shown(shown);
    let mut new = Vec::new();
    let mut rest = printed;
    for cut in cuts {
        let (part, after) = rest.split_at(rest.len().min(usize::from(*cut)));
        new.extend(repeats.new_of(part));
        rest = after;
    }
    new.extend(repeats.new_of(rest));
    new
}

fn repeats(shown: &[u8], printed: &[u8], cuts: &[u8]) {
    let whole = new_of(shown, printed, &[]);
    assert_eq!(new_of(shown, printed, cuts), whole, "pieces do not matter");
    // Lines that were shown, in their order, are left out.
    let mut lines: Vec<&[u8]> = shown.split_inclusive(|byte| *byte == b'\n').collect();
    let mut rest = printed;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(end + 1);
        let Some(at) = lines.iter().position(|shown| *shown == line) else {
            break;
        };
        if line == b"\n" || line == b"\r\n" {
            break;
        }
        lines.drain(..=at);
        rest = after;
    }
    let tail = lines
        .last()
        .filter(|line| !line.ends_with(b"\n"))
        .copied()
        .unwrap_or_default();
    let may_come = !rest.contains(&b'\n') && lines.iter().any(|line| line.starts_with(rest));
    if rest.is_empty() || may_come {
        assert!(whole.is_empty(), "what may be a repetition waits");
        return;
    }
    match rest.strip_prefix(tail) {
        Some(new) => assert_eq!(whole, new),
        None => assert_eq!(whole, [b"\r\n", rest].concat()),
    }
}

/// Nothing that moves a cursor is left, and JSON says the same.
fn escapes(text: &str) {
    let one = escaped(text);
    assert!(!one.contains(|c: char| c.is_control()), "{one:?}");
    assert_eq!(escaped(&one), one);
    let lines = escaped_lines(text);
    assert!(
        !lines.contains(|c: char| c.is_control() && c != '\n'),
        "{lines:?}"
    );
    assert_eq!(lines.matches('\n').count(), text.matches('\n').count());
    let json = escaped_json(&serde_json::to_string(text).expect("a string"));
    assert!(!json.contains(|c: char| c.is_control()), "{json:?}");
    assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), text);
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    keys(&input.typed);
    escapes(&input.text);
    repeats(
        &bytes_of(&input.shown),
        &bytes_of(&input.printed),
        &input.cuts,
    );
}
