//! A virtio device on the board: a model behind the registers of the MMIO transport.
//!
//! This is all that a board sees of virtio. It is the same for each type of device: a page and a line, an
//! entry in the DSDT, an irqfd, and an ioeventfd for each queue, so that a kick costs no exit to user
//! space.

use std::sync::Arc;

use acpi_tables::aml::{self, Device, Memory32Fixed, Name, Path, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

use super::complaints::Complaints;
use super::device::{Host, Model};
use super::front::Front;
use super::signal::Signal;
use super::transport::interrupt::Interrupt;
use super::transport::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::board::aml::edge;
use crate::board::{Need, Part, Place, Pump, Site, SiteError};

/// A [`Model`] that the guest finds on a page of MMIO registers.
pub struct OnMmio<M>(pub M);

impl<M: Model> Part for OnMmio<M> {
    fn need(&self) -> Need {
        Need::Page(self.0.names())
    }

    fn describe(&self, name: &str) -> String {
        self.0.describe(name)
    }

    fn aml(&self, place: &Place, sink: &mut dyn AmlSink) {
        let (base, len) = place.range.bounds();
        let (Ok(base), Ok(len), Some(gsi)) = (u32::try_from(base), u32::try_from(len), place.gsi)
        else {
            return;
        };
        let name = format!("V{:03X}", place.slot);
        let registers = Memory32Fixed::new(true, base, len);
        Device::new(
            Path::new(&name),
            vec![
                &Name::new(Path::new("_HID"), &"LNRO0005"),
                &Name::new(Path::new("_UID"), &place.slot),
                &Name::new(Path::new("_CCA"), &aml::ONE),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&registers, &edge(gsi)]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }

    fn build(&self, place: &Place, site: &mut Site<'_>) -> Result<(), SiteError> {
        let interrupt = Arc::new(Interrupt::new(site.irq_line(place)?));
        let host = Host {
            name: place.name.clone(),
            memory: site.memory.clone(),
            signal: Arc::new(Signal::new(interrupt.clone())),
            complaints: Arc::new(Complaints::about(&place.name)),
            waiting: site.waiting.clone(),
        };
        let mut made = self.0.make(&host)?;
        site.chars.extend(made.chars.take());
        let front = Arc::new(Front::new(made, host)?);
        let (base, _) = place.range.bounds();
        for (queue, number) in front.queues().iter().zip(0u32..) {
            // A write of the queue's number to QueueNotify wakes the worker without an exit.
            if !queue.is_at_once() {
                let address = base.saturating_add(QUEUE_NOTIFY);
                site.wires.doorbell(queue.kick(), address, number)?;
            }
            site.pumps.push(queue.clone());
        }
        let transport = Arc::new(MmioTransport::new(front, interrupt));
        site.put(place, &place.name, &transport)
    }
}
