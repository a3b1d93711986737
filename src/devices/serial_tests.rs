//! The serial port, access by access.

use super::*;

const THR: u64 = 0;

fn uart() -> (Uart, EventFd) {
    let fd = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let uart = Uart::new(IrqLine::new(fd.try_clone().unwrap())).unwrap();
    (uart, fd)
}

fn lsr(uart: &Uart) -> u8 {
    let mut byte = [0];
    uart.read(u64::from(LSR), &mut byte);
    byte[0]
}

#[test]
fn output_arrives_in_order_and_wakes_the_loop() {
    let (uart, _) = uart();
    uart.write(THR, b"h");
    uart.write(THR, b"i");
    assert_eq!(uart.wake.read().unwrap(), 1);
    let mut buf = [0; 8];
    assert_eq!(uart.peek_output(&mut buf), 2);
    assert_eq!(&buf[..2], b"hi");
    uart.consume_output(1);
    assert_eq!(uart.peek_output(&mut buf), 1);
    assert_eq!(buf[0], b'i');
}

#[test]
fn a_slow_reader_makes_the_transmitter_busy_and_nothing_grows() {
    let (uart, irq) = uart();
    uart.write(u64::from(IER), &[IER_THR_EMPTY]);
    for _ in 0..TX_RING_BYTES * 2 {
        uart.write(THR, b"x");
    }
    assert_eq!(lsr(&uart) & LSR_THR_EMPTY, 0);
    assert_eq!(lock(&uart.state).port.writer().room(), 0);
    assert!(lock(&uart.state).port.writer().bytes.capacity() <= TX_RING_BYTES * 2);

    // The driver reads IIR in its handler, which clears the cause; then nothing comes until
    // the reader has taken half of the ring.
    let mut iir = [0];
    uart.read(2, &mut iir);
    let _ = irq.read();
    uart.consume_output(TX_RING_BYTES / 4);
    assert!(irq.read().is_err());
    uart.consume_output(TX_RING_BYTES / 2);
    assert!(irq.read().is_ok());
    uart.read(2, &mut iir);
    assert_eq!(iir[0] & 0x0f, 0x02, "the cause is THR empty");
    assert_ne!(lsr(&uart) & LSR_THR_EMPTY, 0);
}

#[test]
fn input_is_bounded_by_the_fifo() {
    let (uart, _) = uart();
    uart.write(u64::from(IER), &[IER_RECEIVED]);
    assert_eq!(uart.wake.read().unwrap(), 1, "told that the guest listens");
    let room = uart.receive_room();
    assert_eq!(uart.receive(&vec![b'a'; room * 3]), room);
    assert_eq!(uart.receive(b"b"), 0);
    let mut byte = [0];
    for _ in 0..room {
        uart.read(THR, &mut byte);
        assert_eq!(byte[0], b'a');
    }
    assert_eq!(uart.wake.read().unwrap(), 1, "told that there is room");
}

#[test]
fn input_waits_until_the_guest_listens() {
    let (uart, _) = uart();
    assert_eq!(uart.receive(b"typed ahead"), 0);
    // A driver that starts: it looks, empties the FIFO, and then enables the interrupt.
    lsr(&uart);
    uart.read(THR, &mut [0]);
    uart.write(u64::from(IER), &[IER_ALL]);
    assert_eq!(uart.receive(b"typed ahead"), 0, "only a probe");
    uart.write(u64::from(IER), &[0]);
    uart.write(u64::from(IER), &[IER_RECEIVED]);
    uart.write(u64::from(IER), &[IER_ALL]);
    assert_eq!(uart.receive(b"typed ahead"), 11);
    uart.write(u64::from(IER), &[0]);
    assert_eq!(uart.receive(b"x"), 0, "the driver has closed the port");
}

#[test]
fn a_guest_that_polls_listens() {
    let (uart, _) = uart();
    for _ in 0..POLLING_READS * 2 {
        lsr(&uart);
        uart.write(THR, b"x");
    }
    assert_eq!(uart.receive_room(), 0, "it only sends");
    for _ in 0..POLLING_READS {
        lsr(&uart);
    }
    assert_ne!(uart.receive_room(), 0);
}

proptest::proptest! {
    #[test]
    fn any_access_is_answered(ops in proptest::collection::vec((0u64..300, 0usize..9, proptest::bool::ANY, 0u8..), 0..200)) {
        let (uart, _) = uart();
        for (offset, width, write, value) in ops {
            let mut data = vec![value; width];
            if write { uart.write(offset, &data) } else { uart.read(offset, &mut data) }
        }
    }
}
