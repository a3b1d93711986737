//! A VMM whose helper is not what it should be.

use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::storage::format::Format;
use crate::storage::helper::shared::{DONE, EXTENTS};
use crate::storage::qcow2::Extent;

const LEN: u64 = 1 << 20;
const CLUSTER: u64 = 4096;

/// A client of a file of 64 KiB with this helper.
fn client(
    backing: bool,
    life: impl FnOnce(&File, &Socket, Arc<Shared>),
) -> Result<(Client, File), OpenError> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 10).unwrap();
    let access = Access {
        format: Format::Qcow2,
        backing,
        ..Access::default()
    };
    let (image, path) = (file.try_clone().unwrap(), Path::new("/tmp/x.qcow2"));
    let client = Client::with(image, &file, path, access, ("liar", life))?;
    Ok((client, file))
}

fn opened(len: u64, cluster: u64, slots: usize) -> Told {
    Told::Opened {
        len,
        cluster,
        slots,
    }
}

#[test]
fn what_a_helper_says_at_the_beginning_is_looked_at() {
    for told in [
        opened(0, CLUSTER, 1),
        opened(LEN + 1, CLUSTER, 1),
        opened(!511, CLUSTER, 1),
        opened(LEN, 0, 1),
        opened(LEN, 3 << 9, 1),
        opened(LEN, 4 << 20, 1),
        opened(LEN, CLUSTER, 0),
        opened(LEN, CLUSTER, SLOTS + 1),
        Told::Added,
    ] {
        let refused = client(false, |_, socket, _| {
            socket.send(&told, None).unwrap();
        });
        let error = refused.map(drop).unwrap_err().to_string();
        assert!(error.ends_with("nonsense"), "{told:?}: {error}");
    }
    let says = |bytes: &'static str| {
        let refused = client(false, move |_, socket, _| {
            // A text is JSON as well, and none of its words.
            let _ = socket.send(&bytes, None);
        });
        refused.map(drop).unwrap_err().to_string()
    };
    assert!(says("what").contains("the process that reads the image"));
    let silent = client(false, |_, _, _| {}).map(drop).unwrap_err();
    assert!(
        silent.to_string().ends_with("it ended with code 0"),
        "{silent}"
    );
    let endless = client(false, |_, socket, _| {
        while socket.send(&Told::Warning("again".into()), None).is_ok() {}
    });
    let error = endless.map(drop).unwrap_err().to_string();
    assert!(error.ends_with("nonsense"), "{error}");
}

#[test]
fn a_helper_gets_no_file_that_its_image_may_not_name() {
    let asks = |backing, name: &'static str| {
        let refused = client(backing, move |_, socket, _| {
            let told = Told::Backing {
                name: name.into(),
                format: Some("raw".into()),
            };
            socket.send(&told, None).unwrap();
            let _ = socket.receive_file::<Said>();
        });
        refused.map(drop).unwrap_err()
    };
    assert!(matches!(asks(false, "x.qcow2"), OpenError::Rests { .. }));
    let outside = asks(true, "../etc/passwd").to_string();
    assert!(outside.contains("in another folder"), "{outside}");
}

/// A helper that changes all that it can reach as it likes, and hands slots back with anything.
fn lie(shared: &Shared, seed: u64) {
    let mut random = seed;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let number = |value: u64| match value % 4 {
        0 => value,
        1 => (value % LEN) & !(CLUSTER - 1),
        2 => (value % (80 << 10)) & !(CLUSTER - 1),
        _ => u64::MAX - value % 9000,
    };
    loop {
        for slot in 0..SLOTS {
            let slot = shared.slot(slot).unwrap();
            let extents: Vec<Extent> = (0..EXTENTS)
                .map(|_| Extent {
                    disk: number(next()),
                    len: number(next()),
                    spot: match next() % 5 {
                        0 => Spot::Zero,
                        file => Spot::At {
                            file: (file / 4) as usize * 3,
                            offset: number(next()),
                            writable: next() % 2 == 0,
                        },
                    },
                })
                .collect();
            slot.tell(&extents);
            let results = [0, 0, 0, libc::EIO, -5, i32::MAX, i32::MIN, 4096];
            slot.result
                .store(results[(next() % 8) as usize], Ordering::Relaxed);
            slot.len.store(next(), Ordering::Relaxed);
            if slot.state.load(Ordering::Acquire) == ASKED {
                let states = [DONE, DONE, DONE, DONE, FREE, 77];
                slot.hand_over(states[(next() % 6) as usize], true);
            }
        }
    }
}

#[test]
fn whatever_a_helper_answers_a_request_ends_and_nothing_outside_of_the_file_is_touched() {
    for seed in 1..6 {
        let (client, file) = client(false, |_, socket, shared| {
            socket.send(&opened(LEN, CLUSTER, SLOTS), None).unwrap();
            std::thread::spawn(move || lie(&shared, seed));
            while socket.receive_file::<Said>().is_ok() {
                socket.send(&Told::Added, None).unwrap();
            }
        })
        .unwrap();
        file.write_all_at(&[7; CLUSTER as usize], 0).unwrap();
        let client = Arc::new(client);
        let ended = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (client, ended) = (client.clone(), &ended);
                scope.spawn(move || {
                    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]);
                    let memory = Arc::new(memory.unwrap());
                    memory.write_slice(&[9; 4096], GuestAddress(0)).unwrap();
                    for round in 0..500u64 {
                        let offset = (round * 7919 + thread * 512) % (LEN / 512 - 1024) * 512;
                        let len = [512, 4096, 300 << 10][(round % 3) as usize];
                        let mut buffers = IoBuffers::new(memory.clone());
                        let work = match round % 7 {
                            0..3 => Work::Read { offset },
                            3..5 => Work::Write {
                                offset,
                                durable: round % 2 == 0,
                            },
                            5 => Work::Discard { offset, len },
                            _ => Work::Flush,
                        };
                        if matches!(work, Work::Read { .. } | Work::Write { .. }) {
                            assert!(buffers.push(GuestAddress(0), len as u32));
                        }
                        // An error is as good as none.
                        let _ = client.run(work, &mut buffers);
                        ended.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(ended.into_inner(), 2000);
        drop(client);
        // What the VMM wrote by itself was between the header and the end.
        assert_eq!(file.metadata().unwrap().len(), 64 << 10);
        let mut header = [0; CLUSTER as usize];
        file.read_exact_at(&mut header, 0).unwrap();
        assert_eq!(header, [7; CLUSTER as usize]);
    }
}

#[test]
fn what_a_dead_helper_was_asked_is_an_error_and_so_is_all_after_it() {
    let (client, _file) = client(false, |_, socket, _| {
        socket.send(&opened(LEN, CLUSTER, SLOTS), None).unwrap();
        std::thread::sleep(Duration::from_secs(60));
    })
    .unwrap();
    // SAFETY: the number is that of a child that nobody has reaped yet.
    let kill = || unsafe { libc::kill(client.pid() as i32, libc::SIGKILL) };
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| client.run(Work::Flush, &mut IoBuffers::new(memory.clone())));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(kill(), 0);
        assert!(asked.join().unwrap().is_err());
    });
    let again = client.run(Work::Flush, &mut IoBuffers::new(memory));
    assert_eq!(again.unwrap_err().to_string(), gone().to_string());
}
