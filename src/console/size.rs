//! How large a terminal is.

use std::os::fd::{AsRawFd, RawFd};

/// Columns and rows of the terminal behind `file`, or of the pseudo-terminal whose master it is; `None` where it is no
/// terminal, or one that does not know.
pub fn of(file: &impl AsRawFd) -> Option<(u16, u16)> {
    of_fd(file.as_raw_fd())
}

fn of_fd(fd: RawFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call fills the struct or fails; both are valid for it.
    let done = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) } == 0;
    (done && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_has_no_size() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(of(&reader), None);
    }
}
