//! Threads with event loops of their own, for devices that may have to wait for the host: disks.
//!
//! The machine's event loop must hear signals, the time limit and the escape keys at any time, so it serves
//! no queue whose turns can wait. Such a device has a thread for all of its queues, or one for each of them
//! ([`Server`]). All are made before the guest runs.
//!
//! At the end of the machine they also do what is left to be done with their devices: requests in flight end,
//! what an image keeps in memory goes into its file, files are closed. Each of that can take as long as the
//! host likes, so the main thread waits for all of them together, and only for so long:
//!
//! ```text
//!   main thread                          thread of a device
//!   ───────────                          ──────────────────
//!   finish: hands the work over,  ─────▶ stops its queues: waits for what is in flight
//!           and says stop                the last thread of the device: does the work
//!   hears that the last sender    ◀───── drops its sender
//!   is gone, or loses patience
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::EventLoop;
use super::queue_io::{Company, QueueIo};
use crate::board::{Pump, Server, Watcher};
use crate::limits;
use crate::machine::error::{StartError, host};
use crate::sandbox::{self, Role};
use crate::sync::lock;

/// What is done with a device at the end, by the last of its threads.
pub type LastWork = Box<dyn FnOnce() + Send>;

/// A loop that can be made on one thread and run on another.
type Loop = EventLoop<Box<dyn Watcher + Send>>;

/// What all of the threads have in common.
struct Stop {
    /// Readable from the end on. Nobody reads it, so all loops see it.
    fd: EventFd,
    stopped: AtomicBool,
}

/// Wakes a loop, which then looks at the flag.
struct StopEvent(Arc<Stop>);

impl MutEventSubscriber for StopEvent {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}

    fn init(&mut self, _ops: &mut EventOps) {}
}

impl Watcher for StopEvent {
    fn watched(&self) -> Vec<(RawFd, u32)> {
        vec![(self.0.fd.as_raw_fd(), 0)]
    }
}

/// A device whose queues are served here.
#[derive(Default)]
struct Device {
    /// Threads of it that have not ended.
    threads: AtomicUsize,
    last: Mutex<Option<LastWork>>,
}

/// The threads of all devices that have some.
pub struct IoThreads {
    stop: Arc<Stop>,
    devices: BTreeMap<String, Arc<Device>>,
    threads: Vec<JoinHandle<()>>,
    /// Each thread has a clone of the sender until it is done.
    at_work: Option<Sender<()>>,
    done: Receiver<()>,
}

impl IoThreads {
    /// Starts the threads that `pumps` want, and serves them there. None of these is for the main loop.
    ///
    /// # Errors
    /// When the host gives no thread or file descriptor.
    pub fn start(pumps: Vec<Arc<dyn Pump>>) -> Result<Self, StartError> {
        let fd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(host("make an event fd"))?;
        let (sender, done) = channel();
        let mut all = IoThreads {
            stop: Arc::new(Stop {
                fd,
                stopped: AtomicBool::new(false),
            }),
            devices: BTreeMap::new(),
            threads: Vec::new(),
            at_work: Some(sender),
            done,
        };
        // By the names of the threads.
        let mut served: BTreeMap<String, Vec<Arc<dyn Pump>>> = BTreeMap::new();
        for pump in pumps {
            let name = match pump.server() {
                Server::OwnThread => pump.name(),
                _ => pump.device(),
            };
            served.entry(name.to_owned()).or_default().push(pump);
        }
        for (name, pumps) in served {
            all.serve(name, pumps)?;
        }
        Ok(all)
    }

    /// Serves `pumps`, which belong to one device, by a thread of this name.
    fn serve(&mut self, name: String, pumps: Vec<Arc<dyn Pump>>) -> Result<(), StartError> {
        let mut events = Loop::new()?;
        events.add(Box::new(StopEvent(self.stop.clone())))?;
        let company = Arc::new(Company::default());
        let mut device = Arc::default();
        for pump in &pumps {
            let queue = QueueIo::new(pump.clone(), company.clone());
            events.add(Box::new(queue.map_err(host("watch a device's queue"))?))?;
            device = self
                .devices
                .entry(pump.device().to_owned())
                .or_default()
                .clone();
        }
        device.threads.fetch_add(1, Ordering::SeqCst);
        let (stop, at_work) = (self.stop.clone(), self.at_work.clone());
        let body = move || {
            sandbox::enter(Role::Io);
            if let Err(error) = run(&stop, &mut events) {
                log::error!("an I/O thread serves no more: {error}");
            }
            stop.wait();
            pumps.iter().for_each(|pump| pump.stop());
            drop((events, pumps));
            if device.threads.fetch_sub(1, Ordering::SeqCst) == 1
                && let Some(work) = lock(&device.last).take()
            {
                work();
            }
            drop(at_work);
        };
        let thread = limits::spawn(name, body).map_err(host("start an I/O thread"))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Whether the device of this name is served here.
    pub fn serves(&self, device: &str) -> bool {
        self.devices.contains_key(device)
    }

    /// The machine has ended: what is in flight ends, and each of `work` is done by a thread of the device that
    /// it names. False when that takes longer than until `deadline`; the threads then stay with it.
    pub fn finish(mut self, work: Vec<(String, LastWork)>, deadline: Instant) -> bool {
        for (name, work) in work {
            if let Some(device) = self.devices.get(&name) {
                *lock(&device.last) = Some(work);
            }
        }
        self.stop.now();
        // Nothing is ever sent: what counts is that no sender is left.
        self.at_work = None;
        let left = deadline.saturating_duration_since(Instant::now());
        let done = self.done.recv_timeout(left) == Err(RecvTimeoutError::Disconnected);
        if done {
            for thread in self.threads.drain(..) {
                // A thread that panicked has said so on stderr.
                let _ = thread.join();
            }
        }
        done
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        self.stop.now();
    }
}

impl Stop {
    fn now(&self) {
        self.stopped.store(true, Ordering::Release);
        let _ = self.fd.write(1);
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Where a loop has failed: its thread still has to be there at the end.
    fn wait(&self) {
        while !self.stopped() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn run(stop: &Stop, events: &mut Loop) -> Result<(), StartError> {
    while !stop.stopped() {
        events.run_once()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Turn;
    use std::sync::mpsc::Receiver;

    const SOON: Duration = Duration::from_secs(60);

    /// A queue of `vda` or `vdb`, whose turns wait for an answer if there is none yet.
    struct Queue {
        name: &'static str,
        server: Server,
        kick: EventFd,
        answer: Option<Mutex<Receiver<()>>>,
        stopped: AtomicBool,
    }

    impl Queue {
        fn new(name: &'static str, server: Server, answer: Option<Receiver<()>>) -> Arc<Self> {
            let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            kick.write(1).unwrap();
            Arc::new(Queue {
                name,
                server,
                kick,
                answer: answer.map(Mutex::new),
                stopped: AtomicBool::new(false),
            })
        }
    }

    impl Pump for Queue {
        fn name(&self) -> &str {
            self.name
        }
        fn device(&self) -> &str {
            &self.name[..3]
        }
        fn kick(&self) -> &EventFd {
            &self.kick
        }
        fn event(&self) -> Option<&EventFd> {
            None
        }
        fn is_limited(&self) -> bool {
            false
        }
        fn server(&self) -> Server {
            self.server
        }
        fn run(&self, _alone: bool) -> Turn {
            if let Some(answer) = &self.answer {
                let _ = lock(answer).recv();
            }
            Turn::Idle
        }
        fn stop(&self) {
            self.stopped.store(true, Ordering::SeqCst);
        }
    }

    /// Work for the last thread of each of both devices, and where it says that it is done.
    fn work(queues: &[Arc<Queue>]) -> (Vec<(String, LastWork)>, Receiver<String>) {
        let (say, said) = channel();
        let work = ["vda", "vdb"].map(|device| {
            let (say, queues) = (say.clone(), queues.to_vec());
            let work: LastWork = Box::new(move || {
                let of_device = queues.iter().filter(|queue| queue.device() == device);
                for queue in of_device {
                    assert!(queue.stopped.load(Ordering::SeqCst), "{}", queue.name);
                }
                say.send(format!("{device} closed")).unwrap();
            });
            (device.to_owned(), work)
        });
        (work.into(), said)
    }

    fn pumps(queues: &[Arc<Queue>]) -> Vec<Arc<dyn Pump>> {
        queues.iter().map(|queue| queue.clone() as _).collect()
    }

    #[test]
    fn each_device_is_closed_once_when_all_of_its_queues_have_stopped() {
        let queues = [
            Queue::new("vda.0", Server::DeviceThread, None),
            Queue::new("vda.1", Server::DeviceThread, None),
            Queue::new("vdb.0", Server::OwnThread, None),
            Queue::new("vdb.1", Server::OwnThread, None),
        ];
        let threads = IoThreads::start(pumps(&queues)).unwrap();
        assert_eq!(threads.threads.len(), 3);
        assert!(threads.serves("vda") && !threads.serves("rng0"));
        let (work, said) = work(&queues);
        assert!(threads.finish(work, Instant::now() + SOON));
        let mut said: Vec<_> = said.iter().collect();
        said.sort();
        assert_eq!(said, ["vda closed", "vdb closed"]);
    }

    #[test]
    fn a_device_that_does_not_answer_is_left_and_keeps_no_other_from_being_closed() {
        let (answer, wait) = channel();
        let queues = [
            Queue::new("vda.0", Server::DeviceThread, Some(wait)),
            Queue::new("vdb.0", Server::OwnThread, None),
        ];
        let threads = IoThreads::start(pumps(&queues)).unwrap();
        while queues[0].kick.read().is_ok() {
            // Not taken up by its thread yet, so it is put back.
            queues[0].kick.write(1).unwrap();
            std::thread::yield_now();
        }
        let (work, said) = work(&queues);
        let deadline = Instant::now() + Duration::from_millis(200);
        assert!(!threads.finish(work, deadline));
        assert_eq!(said.recv_timeout(SOON).unwrap(), "vdb closed");
        assert!(said.try_recv().is_err(), "it is still at work");
        answer.send(()).unwrap();
        assert_eq!(said.recv_timeout(SOON).unwrap(), "vda closed");
    }
}
