//! States of devices that were changed by somebody: refused, or taken and lived with.
//!
//! A machine is brought somewhere, its state is taken, and values in it are replaced by others. What is refused must
//! leave the device as it was. What is taken must come out again as it went in, and the machine has to survive whatever
//! is done with it afterwards.

use arbitrary::{Arbitrary, Unstructured};
use serde_json::Value;

use crate::mmio::{Bench, Op};

#[derive(Arbitrary, Debug)]
struct Input {
    before: Vec<Op>,
    device: u8,
    changes: Vec<Change>,
    /// Another text altogether.
    text: Option<String>,
    after: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
struct Change {
    place: u8,
    value: New,
}

#[derive(Arbitrary, Debug)]
enum New {
    Small(u8),
    Number(u64),
    Negative(i32),
    Status(u8),
    Flip,
    Nothing,
    Missing,
    Twice,
    Text(String),
}

/// The `n`th value that is a scalar or a list.
fn nth<'v>(value: &'v mut Value, n: &mut usize) -> Option<&'v mut Value> {
    let here = !value.is_object();
    if here && *n == 0 {
        return Some(value);
    }
    *n -= usize::from(here);
    match value {
        Value::Array(members) => members.iter_mut().find_map(|member| nth(member, n)),
        Value::Object(members) => members.values_mut().find_map(|member| nth(member, n)),
        _ => None,
    }
}

fn change(state: &mut Value, change: &Change) {
    let Some(place) = nth(state, &mut usize::from(change.place % 64)) else {
        return;
    };
    let old = place.take();
    *place = match &change.value {
        New::Small(number) => (*number).into(),
        New::Number(number) => (*number).into(),
        New::Negative(number) => (*number).into(),
        New::Status(status) => (status & 0x4f).into(),
        New::Flip => old.as_bool().map_or(old, |on| (!on).into()),
        New::Nothing => Value::Null,
        New::Missing => Value::Array(Vec::new()),
        New::Twice => match old {
            Value::Array(members) => [members.as_slice(), &members].concat().into(),
            other => other,
        },
        New::Text(text) => text.as_str().into(),
    };
}

/// See the [module](self).
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let mut bench = Bench::new();
    for op in input.before.iter().take(30) {
        bench.act(op);
    }
    let device = usize::from(input.device) % bench.world.devices.len();
    let before = bench.world.device(device).state();
    let mut state = before.clone();
    for one in input.changes.iter().take(8) {
        change(&mut state, one);
    }
    if let Some(Ok(other)) = input.text.as_deref().map(serde_json::from_str) {
        state = other;
    }
    let target = bench.world.device(device);
    target.quiesce();
    match target.restore(&state) {
        Err(_) => assert_eq!(target.state(), before, "what is refused changes nothing"),
        Ok(()) => assert_eq!(target.state(), state, "what is taken comes out again"),
    }
    bench.forget_registers();
    for op in input.after.iter().take(60) {
        bench.act(op);
    }
    bench.end();
}
