//! The register page: a driver in order, and drivers that are not.

use super::*;
use crate::board::IrqLine;
use crate::virtio::front::tests::{Fake, fake};
use crate::virtio::signal::{
    STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET,
};
use crate::virtio::transport::interrupt::ISR_CONFIG_CHANGE;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::EventFd;

fn transport() -> (MmioTransport, Arc<Fake>) {
    let interrupt = Arc::new(Interrupt::new(IrqLine::new(EventFd::new(0).unwrap())));
    let (front, device) = fake(interrupt.clone());
    (MmioTransport::new(Arc::new(front), interrupt), device)
}

fn get(t: &MmioTransport, offset: u64) -> u32 {
    let mut data = [0; 4];
    t.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn set(t: &MmioTransport, offset: u64, value: u32) {
    t.write(offset, &value.to_le_bytes());
}

fn negotiate(t: &MmioTransport, features: u64) -> u32 {
    set(t, 0x070, STATUS_ACKNOWLEDGE);
    set(t, 0x070, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    for select in [0, 1] {
        set(t, 0x024, select);
        set(t, 0x020, (features >> (32 * select)) as u32);
    }
    set(
        t,
        0x070,
        STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK,
    );
    get(t, 0x070)
}

fn queue(t: &MmioTransport, size: u32, desc: u32) {
    set(t, 0x030, 0);
    set(t, 0x038, size);
    set(t, 0x080, desc);
    set(t, 0x090, 0x2000);
    set(t, 0x0a0, 0x3000);
    set(t, 0x044, 1);
}

const V1: u64 = 1 << VIRTIO_F_VERSION_1;

#[test]
fn identifies_itself() {
    let (t, _) = transport();
    assert_eq!(get(&t, 0x000), 0x7472_6976);
    assert_eq!((get(&t, 0x004), get(&t, 0x008)), (2, 2));
    set(&t, 0x014, 1);
    assert_eq!(get(&t, 0x010), 1);
    set(&t, 0x014, 2);
    assert_eq!(get(&t, 0x010), 0);
    assert_eq!(get(&t, 0x034), 16);
    set(&t, 0x030, 2);
    assert_eq!(get(&t, 0x034), 0);
}

#[test]
fn configuration_reads_of_any_width_stop_at_its_end() {
    let (t, _) = transport();
    let mut data = [0xff; 8];
    t.read(0x102, &mut data);
    assert_eq!(data, [3, 4, 5, 0, 0, 0, 0, 0]);
    t.read(0xfff, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn a_driver_in_order_activates_the_device_once() {
    let (t, device) = transport();
    assert_ne!(negotiate(&t, V1) & STATUS_FEATURES_OK, 0);
    queue(&t, 8, 0x1000);
    set(&t, 0x070, 0x0f);
    set(&t, 0x070, 0x0f);
    assert_eq!(
        *device.log.lock().unwrap(),
        ["driver Some(100000000)", "start 0"]
    );
    set(&t, 0x070, 0);
    assert_eq!(get(&t, 0x070), 0);
    assert_eq!(get(&t, 0x044), 0, "queues are as after power-on");
    assert_eq!(
        device.log.lock().unwrap()[2..],
        ["stop 0", "stop 1", "driver None"]
    );
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    let (t, _) = transport();
    assert_eq!(negotiate(&t, V1 | 1 << 40) & STATUS_FEATURES_OK, 0);
    let (t, _) = transport();
    assert_eq!(negotiate(&t, 0) & STATUS_FEATURES_OK, 0);
}

#[test]
fn driver_ok_without_features_ok_is_ignored() {
    let (t, device) = transport();
    set(&t, 0x070, STATUS_DRIVER_OK);
    assert_eq!(get(&t, 0x070) & STATUS_DRIVER_OK, 0);
    assert!(device.log.lock().unwrap().is_empty());
}

#[test]
fn queues_that_cannot_work_need_a_reset() {
    for (size, desc) in [
        (7, 0x1000),
        (32, 0x1000),
        (0, 0x1000),
        (8, 0x1001),
        (8, 0xfff0),
        (0x10008, 0x1000),
    ] {
        let (t, device) = transport();
        negotiate(&t, V1);
        queue(&t, size, desc);
        set(&t, 0x070, 0x0f);
        assert_ne!(get(&t, 0x070) & STATUS_NEEDS_RESET, 0, "{size} {desc:#x}");
        assert_eq!(get(&t, 0x060), ISR_CONFIG_CHANGE);
        assert!(device.log.lock().unwrap().is_empty());
        set(&t, 0x070, 0);
        assert_eq!(get(&t, 0x070), 0, "a reset mends it");
    }
}

proptest::proptest! {
    #[test]
    fn any_access_is_answered(ops in proptest::collection::vec((0u64..0x1100, 0usize..9, proptest::bool::ANY, 0u32..), 0..300)) {
        let (t, _) = transport();
        for (offset, width, write, value) in ops {
            let mut data = vec![value as u8; width];
            if write {
                t.write(offset, &data);
                set(&t, offset & !3, value);
            } else {
                t.read(offset, &mut data);
            }
        }
    }
}
