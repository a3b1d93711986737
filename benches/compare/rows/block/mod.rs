//! What a disk gives: to a driver in ring 3 of a bare machine, to fio in Linux, and to fio on the
//! host without a machine, which is the limit.

mod bare;
mod fio;
mod images;
mod linux;
mod load;

pub use bare::bare;
pub use linux::{lab_files, linux};
