//! What a second device prints again of what the first one has shown.
//!
//! Linux prints its messages on each console. One that comes later, as hvc0 does, may get all of them from the
//! beginning (register_console() in kernel/printk/printk.c), or those from some time before it took over. The user
//! shall see each of them once.
//!
//! ```text
//!   shown by ttyS0        printed by hvc0
//!   [ 0.00] Linux         [ 0.00] Linux        in there: left out
//!   hello                                      another program's: passed over
//!   [ 0.41] hvc0 is up    [ 0.41] hvc0 is up   in there, further on: left out
//!                         [ 0.42] EXT4-fs      not in there: shown, and all that follows
//! ```
//!
//! So a line is a repetition if it is in the transcript behind the one before it; the first that is not ends
//! the search. What is printed without the end of a line, as a prompt is, is held back only while it is the
//! beginning of such a line.

use memchr::memmem;

/// What is remembered at most. A boot of Linux prints some ten KiB.
const MAX_BYTES: usize = 256 * 1024;

/// What has been shown, and then what of it has come again.
#[derive(Debug)]
pub struct Repeats {
    /// Begins with the end of a line, as each line does that is looked for.
    shown: Vec<u8>,
    /// What comes again begins with the line behind this end of one.
    at: usize,
    /// Printed by the second device, and perhaps the beginning of a repetition.
    held: Vec<u8>,
    over: bool,
}

impl Default for Repeats {
    fn default() -> Self {
        Repeats {
            shown: vec![b'\n'],
            at: 0,
            held: Vec::new(),
            over: false,
        }
    }
}

impl Repeats {
    /// The first device has shown `bytes`.
    pub fn shown(&mut self, bytes: &[u8]) {
        if !self.over {
            let room = MAX_BYTES.saturating_sub(self.shown.len());
            let part = bytes.get(..bytes.len().min(room)).unwrap_or_default();
            self.shown.extend_from_slice(part);
        }
    }

    /// Whether all that comes is new.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The second device prints `bytes`: what of them, and of those before, is new.
    pub fn new_of(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.over {
            return bytes.to_vec();
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at.saturating_add(1));
            let (line, after) = rest.split_at(end);
            self.held.extend_from_slice(line);
            rest = after;
            if !self.is_repetition() {
                let mut new = self.end();
                new.extend_from_slice(rest);
                return new;
            }
        }
        Vec::new()
    }

    /// Whether what is held is in the transcript, or may come to be; a whole line that is counts as come.
    fn is_repetition(&mut self) -> bool {
        // An empty line is nobody's in particular.
        if self.held == b"\n" || self.held == b"\r\n" {
            return false;
        }
        let unseen = self.shown.get(self.at..).unwrap_or_default();
        let line = [b"\n", &*self.held].concat();
        let Some(found) = memmem::find(unseen, &line) else {
            return false;
        };
        if self.held.ends_with(b"\n") {
            let end = found.saturating_add(self.held.len());
            self.at = self.at.saturating_add(end);
            self.held.clear();
        }
        true
    }

    /// The search is over: what is held is new, but for the part of its line that is on the screen already.
    fn end(&mut self) -> Vec<u8> {
        self.over = true;
        let held = std::mem::take(&mut self.held);
        let shown = std::mem::take(&mut self.shown);
        let last = last_line(shown.get(self.at..).unwrap_or_default());
        match held.strip_prefix(last) {
            Some(new) => new.to_vec(),
            // The line on the screen is another's.
            None => [b"\r\n", &*held].concat(),
        }
    }
}

/// What follows the last line's end.
fn last_line(text: &[u8]) -> &[u8] {
    let from = memchr::memrchr(b'\n', text).map_or(0, |at| at.saturating_add(1));
    text.get(from..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "[ 0.00] Linux\r\n[ 0.10] memory\r\n[ 0.20] disks\r\n";

    /// What is on the screen after `shown` by one device and `printed` by the other, in pieces of `size` bytes.
    fn screen(shown: &str, printed: &str, size: usize) -> String {
        let mut repeats = Repeats::default();
        for piece in shown.as_bytes().chunks(7) {
            repeats.shown(piece);
        }
        let mut screen = shown.as_bytes().to_vec();
        for piece in printed.as_bytes().chunks(size) {
            screen.extend(repeats.new_of(piece));
        }
        String::from_utf8(screen).unwrap()
    }

    #[track_caller]
    fn shows(shown: &str, printed: &str, expected: &str) {
        for size in [1, 2, 3, 16, 1000] {
            assert_eq!(
                screen(shown, printed, size),
                expected,
                "in pieces of {size}"
            );
        }
    }

    #[test]
    fn a_log_that_comes_again_is_shown_once() {
        let more = "[ 0.30] up\r\n/ # ";
        shows(LOG, &format!("{LOG}{more}"), &format!("{LOG}{more}"));
        shows(LOG, "[ 0.20] disks\r\nup", &format!("{LOG}up"));
        shows(LOG, more, &format!("{LOG}{more}"));
        shows("", more, more);
    }

    #[test]
    fn what_others_have_printed_in_between_does_not_matter() {
        let shown = "[ 0.00] Linux\r\nhello\r\n\r\n[ 0.10] memory\r\n";
        shows(
            shown,
            &format!("{LOG}$ "),
            &format!("{shown}[ 0.20] disks\r\n$ "),
        );
    }

    #[test]
    fn a_line_that_was_not_whole_is_gone_on_with() {
        let shown = format!("{LOG}[ 0.3");
        let printed = format!("{LOG}[ 0.30] up\r\n$ ");
        shows(&shown, &printed, &printed);
        let other = format!("{LOG}hello\r\n");
        shows(&shown, &other, &format!("{shown}\r\nhello\r\n"));
    }

    #[test]
    fn a_program_that_prints_what_a_line_begins_with_is_seen() {
        shows(LOG, "\r\nx", &format!("{LOG}\r\nx"));
        shows(LOG, "memory\r\n", &format!("{LOG}memory\r\n"));
        shows(LOG, "[root@guest ~]# ", &format!("{LOG}[root@guest ~]# "));
        // Once it is over, it is over.
        let again = format!("new\r\n{LOG}");
        shows(LOG, &again, &format!("{LOG}{again}"));
    }

    #[test]
    fn the_transcript_is_bounded() {
        let mut repeats = Repeats::default();
        for _ in 0..100 {
            repeats.shown(&[b'x'; 8192]);
        }
        assert_eq!(repeats.shown.len(), MAX_BYTES);
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_new_is_lost(
            shown in "[ab\r\n]{0,30}", printed in "[ab\r\n]{0,30}", size in 1usize..9,
        ) {
            // An ending of its own, which is in no transcript.
            let screen = screen(&shown, &format!("{printed}!"), size);
            proptest::prop_assert!(screen.starts_with(&shown));
            proptest::prop_assert!(screen.ends_with('!'));
            proptest::prop_assert!(screen.len() <= shown.len() + printed.len() + 3);
        }
    }
}
