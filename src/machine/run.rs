//! A machine's life: threads start, events come, threads end, the terminal is given back.

use std::cell::RefCell;
use std::os::unix::thread::JoinHandleExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::block_io::{BlockIo, Company};
use super::builder::{Machine, MachineDisk};
use super::console::Console;
use super::control::Control;
use super::endpoints;
use super::error::{StartError, host};
use super::event_loop::EventLoop;
use super::exit::Exit;
use super::io_thread::IoThread;
use super::signals::Signals;
use super::vcpu;

/// How long the last output may take to reach its reader once the machine has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long requests in flight may take to end once the machine has ended.
const LAST_IO: Duration = Duration::from_secs(10);
/// A thread that has not reacted to a kick by now gets another.
const KICK_AGAIN: Duration = Duration::from_millis(20);

impl Machine {
    /// Runs the machine to its end.
    ///
    /// # Errors
    /// When threads or the console cannot be had. Once the guest runs, every end is an [`Exit`].
    pub fn run(self) -> Result<Exit, StartError> {
        let signals = Signals::block().map_err(host("watch for signals"))?;
        vcpu::install_kick_handler().map_err(host("install a signal handler"))?;
        let mut events = EventLoop::new()?;
        let ends = endpoints::open(&self.console)?;
        let raw = ends.raw.clone();
        let state = describe_state(&self);
        let console = Rc::new(RefCell::new(Console::new(
            self.uart.clone(),
            ends.input,
            ends.output,
            self.exit.clone(),
            state,
        )));
        let control = Control::new(
            self.exit.clone(),
            signals,
            self.power_button,
            self.time_limit,
            Box::new(move || raw.iter().for_each(|raw: &Rc<_>| raw.again())),
        )
        .map_err(host("make a timer"))?;
        events.add(Box::new(control));
        events.add(Box::new(console.clone()));
        let mut io_threads = Vec::new();
        let company = Arc::new(Company::default());
        for (disk, letter) in self.disks.iter().zip('a'..) {
            for (queue, number) in disk.block.queues().iter().zip(0..) {
                let company = match disk.io_thread {
                    true => Arc::default(),
                    false => company.clone(),
                };
                let queue = BlockIo::new(queue, company).map_err(host("watch a disk's queue"))?;
                if disk.io_thread {
                    let name = format!("vd{letter}.{number}");
                    io_threads.push(IoThread::start(name, queue)?);
                } else {
                    events.add(Box::new(queue));
                }
            }
        }

        let (threads, mut result) = self.vcpus.run(&self.shared);
        if result.is_err() {
            self.exit.post(Exit::Quit);
        }
        while !self.exit.stopped() {
            if let Err(error) = events.run_once() {
                result = Err(error);
                self.exit.post(Exit::Quit);
            }
        }
        stop(threads);
        finish(io_threads, self.disks);
        console.borrow_mut().drain(Instant::now() + LAST_WORDS);
        // Ends raw mode, before anything is printed about the exit.
        drop((console, events, ends.raw));
        result?;
        Ok(self.exit.take().unwrap_or(Exit::Quit))
    }
}

/// Ends what is in flight and closes the images. A disk of the host that does not answer does not
/// hold up the end for ever.
fn finish(io_threads: Vec<IoThread>, disks: Vec<MachineDisk>) {
    if disks.is_empty() {
        return;
    }
    let (ended, wait) = mpsc::sync_channel(1);
    let work = move || {
        drop(io_threads);
        for disk in &disks {
            disk.block.finish();
        }
        drop(disks);
        let _ = ended.send(());
    };
    let thread = std::thread::Builder::new()
        .name("finish".into())
        .spawn(work);
    // Without a thread nothing is waited for: what a flush has promised is in the files.
    if thread.is_err() || wait.recv_timeout(LAST_IO).is_err() {
        log::error!("a disk does not answer: what the guest has not flushed may be lost");
    }
}

/// Kicks vCPU threads out of KVM_RUN until all have ended.
fn stop(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        while !thread.is_finished() {
            // SAFETY: the thread has not been joined, so its id is valid; the signal has a
            // handler.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), vcpu::kick_signal()) };
            let patience = Instant::now() + KICK_AGAIN;
            while !thread.is_finished() && Instant::now() < patience {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        // A thread that panicked has said so on stderr.
        let _ = thread.join();
    }
}

/// What Ctrl-a c shows.
fn describe_state(machine: &Machine) -> Box<dyn Fn() -> String> {
    let counters = machine.vcpus.counters();
    let (memory, built) = (machine.memory_bytes >> 20, machine.built);
    Box::new(move || {
        let mut text = format!(
            "running for {:.1} s, {} vCPUs, {memory} MiB",
            built.elapsed().as_secs_f64(),
            counters.len()
        );
        for (index, counters) in counters.iter().enumerate() {
            text.push_str(&format!(
                "\nvcpu{index}: exits to user space: {} port, {} MMIO",
                counters.pio.load(Ordering::Relaxed),
                counters.mmio.load(Ordering::Relaxed)
            ));
        }
        text
    })
}
