//! Words of the command line.

/// What follows `name` in the first word that begins so; nothing without.
pub fn value<'a>(line: &'a [u8], name: &[u8]) -> &'a [u8] {
    let mut words = line.split(|b| *b == b' ');
    words.find_map(|word| word.strip_prefix(name)).unwrap_or_default()
}

/// The number that follows `name`; 0 without.
pub fn number(line: &[u8], name: &[u8]) -> u64 {
    let mut number = 0u64;
    for digit in value(line, name) {
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')));
    }
    number
}
