//! What is on the machine's buses.

pub mod bus;
