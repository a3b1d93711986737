//! A front before a device that writes down what it is told.

use super::*;
use crate::board::Pump;
use crate::virtio::chain::Chain;
use crate::virtio::complaints::Complaints;
use crate::virtio::device::copy_config;
use crate::virtio::device::{Handler, MadeQueue, Taken};
use crate::virtio::ring::Broken;
use crate::virtio::signal::{Bell, Signal};
use crate::virtio::signal::{STATUS_ACKNOWLEDGE, STATUS_DRIVER};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The device.
#[derive(Default)]
pub struct Fake {
    /// What it was told.
    pub log: Mutex<Vec<String>>,
}

impl VirtioDevice for Fake {
    fn kind(&self) -> u32 {
        2
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&[1, 2, 3, 4, 5], offset, data);
    }
    fn driver(&self, features: Option<u64>) {
        let text = format!("driver {features:x?}");
        self.log.lock().unwrap().push(text);
    }
}

/// Answers each chain at once, and says how often it has.
struct Echo {
    number: u16,
    device: Arc<Fake>,
}

impl Handler for Echo {
    fn start(&mut self, _features: u64) {
        let text = format!("start {}", self.number);
        self.device.log.lock().unwrap().push(text);
    }
    fn take(&mut self, head: u16, _: &Chain, _: &GuestMemoryMmap) -> Result<Taken, Broken> {
        self.device.log.lock().unwrap().push(format!("take {head}"));
        Ok(Taken::done(0))
    }
    fn stop(&mut self) {
        let text = format!("stop {}", self.number);
        self.device.log.lock().unwrap().push(text);
    }
}

/// A front with two queues of 16 entries, whose log is empty.
pub fn fake(bell: Arc<dyn Bell>) -> (Front, Arc<Fake>) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    fake_in(bell, Arc::new(memory))
}

fn fake_in(bell: Arc<dyn Bell>, memory: Arc<GuestMemoryMmap>) -> (Front, Arc<Fake>) {
    let device = Arc::new(Fake::default());
    let echo = |number| Echo {
        number,
        device: device.clone(),
    };
    let made = Made {
        device: device.clone(),
        queues: (0..2)
            .map(|number| MadeQueue::simple(16, echo(number)))
            .collect(),
        chars: None,
    };
    let host = Host {
        name: "fake0".into(),
        memory,
        signal: Arc::new(Signal::new(bell)),
        complaints: Arc::new(Complaints::about("fake0")),
        waiting: Arc::default(),
    };
    let front = Front::new(made, host).unwrap();
    (front, device)
}

struct Silent;

impl Bell for Silent {
    fn used(&self, _queue: u16) {}
    fn config_changed(&self) {}
}

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;

fn drive(front: &Front) {
    front.write_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    front.want_features(|features| *features = 1 << VIRTIO_F_VERSION_1);
    front.write_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    front.set_up(0, |queue| {
        *queue = QueueSetup {
            size: 8,
            ready: false,
            desc: DESC,
            driver: AVAIL,
            device: USED,
        }
    });
    front.set_ready(0, true);
    front.write_status(0x0f);
}

/// Makes descriptor `n` the next chain, as the `n`th.
fn offer(memory: &GuestMemoryMmap, n: u16) {
    let descriptor = RawDescriptor::from(Descriptor::new(0x8000, 1, 2, 0));
    let at = GuestAddress(DESC + 16 * u64::from(n));
    memory.write_obj(descriptor, at).unwrap();
    memory
        .write_obj(n, GuestAddress(AVAIL + 4 + 2 * u64::from(n)))
        .unwrap();
    memory.write_obj(n + 1, GuestAddress(AVAIL + 2)).unwrap();
}

fn used(memory: &GuestMemoryMmap) -> u16 {
    memory.read_obj(GuestAddress(USED + 2)).unwrap()
}

fn ram() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap())
}

#[test]
fn a_device_that_is_quiesced_keeps_its_ring_and_goes_on_where_it_was() {
    let memory = ram();
    let (front, _) = fake_in(Arc::new(Silent), memory.clone());
    drive(&front);
    let queue = front.queues()[0].clone();
    offer(&memory, 0);
    queue.run(true);
    assert_eq!(used(&memory), 1);
    front.quiesce();
    offer(&memory, 1);
    queue.run(true);
    assert_eq!(used(&memory), 1, "nothing new is taken");
    let _ = queue.kick().read();
    front.resume();
    assert!(
        queue.kick().read().is_ok(),
        "the kick that was heard is not lost"
    );
    queue.run(true);
    assert_eq!(used(&memory), 2);
}

#[test]
fn a_state_goes_on_in_another_device() {
    let memory = ram();
    let (front, _) = fake_in(Arc::new(Silent), memory.clone());
    drive(&front);
    offer(&memory, 0);
    offer(&memory, 1);
    front.queues()[0].run(true);
    front.quiesce();
    offer(&memory, 2);
    let text = front.state().to_string();

    let (again, device) = fake_in(Arc::new(Silent), memory.clone());
    again
        .restore(&serde_json::from_str(&text).unwrap())
        .unwrap();
    assert_eq!(again.status(), 0x0f);
    again.queues()[0].run(true);
    assert_eq!(used(&memory), 2, "it is quiesced");
    again.resume();
    again.queues()[0].run(true);
    assert_eq!(used(&memory), 3);
    assert_eq!(device.log.lock().unwrap().last().unwrap(), "take 2");
}

#[test]
fn states_that_are_none_are_refused() {
    let memory = ram();
    let (front, _) = fake_in(Arc::new(Silent), memory.clone());
    drive(&front);
    let good = front.state();
    let fresh = || fake_in(Arc::new(Silent), ram()).0;
    assert!(fresh().restore(&good).is_ok());
    let spoil: [(&str, Value); 5] = [
        ("/setup/queues/0/desc", u64::MAX.into()),
        ("/setup/queues/0/size", 9.into()),
        ("/setup/queues", Value::Array(Vec::new())),
        ("/setup/features", u64::MAX.into()),
        ("/status", "x".into()),
    ];
    for (place, value) in spoil {
        let mut bad = good.clone();
        *bad.pointer_mut(place).unwrap() = value;
        assert!(fresh().restore(&bad).is_err(), "{place}");
    }
    assert!(fresh().restore(&Value::Null).is_err());
}

proptest::proptest! {
    #[test]
    fn any_indices_are_survived(avail in 0u16.., used in 0u16..) {
        let memory = ram();
        let (front, _) = fake_in(Arc::new(Silent), memory.clone());
        drive(&front);
        let mut state = front.state();
        *state.pointer_mut("/progress/0").unwrap() = serde_json::json!([avail, used]);
        let (again, _) = fake_in(Arc::new(Silent), memory);
        if again.restore(&state).is_ok() {
            again.resume();
            again.queues()[0].run(true);
        }
    }
}

/// A handler whose host does not answer before `answer` says so.
struct Stuck {
    reached: std::sync::mpsc::Sender<()>,
    answer: std::sync::mpsc::Receiver<()>,
}

impl Handler for Stuck {
    fn take(&mut self, _: u16, _: &Chain, _: &GuestMemoryMmap) -> Result<Taken, Broken> {
        self.reached.send(()).unwrap();
        let _ = self.answer.recv();
        Ok(Taken::done(0))
    }
}

/// A disk that does not answer holds up nobody but its own thread, and a reset waits until it is done, or
/// until the machine ends.
#[test]
fn only_a_reset_waits_for_a_host_that_does_not_answer_and_the_end_interrupts_it() {
    use crate::board::{Server, Waiting};
    for ends in [false, true] {
        let (reached, is_reached) = std::sync::mpsc::channel();
        let (give_answer, answer) = std::sync::mpsc::channel();
        let (memory, waiting) = (ram(), Arc::new(Waiting::default()));
        let queue = MadeQueue {
            server: Server::OwnThread,
            ..MadeQueue::simple(16, Stuck { reached, answer })
        };
        let made = Made {
            device: Arc::new(Fake::default()),
            queues: vec![queue],
            chars: None,
        };
        let host = Host {
            name: "fake0".into(),
            memory: memory.clone(),
            signal: Arc::new(Signal::new(Arc::new(Silent))),
            complaints: Arc::new(Complaints::about("fake0")),
            waiting: waiting.clone(),
        };
        let front = Front::new(made, host).unwrap();
        drive(&front);
        offer(&memory, 0);
        std::thread::scope(|scope| {
            let queue = front.queues()[0].clone();
            let turn = scope.spawn(move || queue.run(true));
            is_reached.recv().unwrap();
            // None of these comes back later than the answer, or the test hangs.
            front.quiesce();
            assert!(front.is_busy());
            assert_eq!(front.state()["progress"][0], serde_json::json!([0, 0]));
            front.resume();
            let reset = scope.spawn(|| front.reset());
            while !lock(&front.setup).resetting {
                std::thread::yield_now();
            }
            front.write_status(STATUS_ACKNOWLEDGE);
            front.set_ready(0, false);
            assert_eq!(front.status(), 0x0f, "not reset yet");
            assert_eq!(front.state()["status"], 0x0f);
            if ends {
                waiting.end();
                while !reset.is_finished() {
                    std::thread::yield_now();
                }
                assert_eq!(front.status(), 0x0f, "the ring is still there");
            }
            assert!(!turn.is_finished());
            give_answer.send(()).unwrap();
            turn.join().unwrap();
            reset.join().unwrap();
            if !ends {
                assert_eq!(front.status(), 0);
                assert_eq!(front.state()["progress"][0], Value::Null);
            }
        });
        assert_eq!(used(&memory), 1, "what was in flight was answered first");
        offer(&memory, 1);
        front.queues()[0].run(true);
        assert_eq!(used(&memory), 1, "and nothing was touched after it");
    }
}
