//! All attacks, each with the promise that it tries. The guest makes a table of functions of it, and the test, which
//! includes this file, the names of its trials.

macro_rules! chains {
    ($with:ident) => {
        $with! {
            "a chain exactly as long as its queue works": chains::full,
            "a chain one longer than its queue breaks it": chains::longer,
            "a chain that loops breaks its queue alone": chains::looping,
            "a descriptor that points at itself breaks its queue alone": chains::itself,
            "an index past the end of the table breaks its queue alone": chains::index,
            "a head past the end of the table breaks its queue alone": chains::head,
            "a readable buffer after a writable one breaks its queue alone": chains::order,
            "an indirect table works": chains::indirect,
            "an indirect table of 1024 entries works": chains::indirect_long,
            "an indirect table of 1025 entries breaks its queue alone": chains::indirect_too_long,
            "an indirect table in an indirect table breaks its queue alone": chains::indirect_nested,
            "an indirect table that is the ring's own breaks its queue alone": chains::indirect_ring,
            "an empty indirect table breaks its queue alone": chains::indirect_empty,
            "an indirect table of odd length breaks its queue alone": chains::indirect_odd,
            "an indirect table of 4 GiB breaks its queue alone": chains::indirect_huge,
            "an indirect table with a next descriptor breaks its queue alone": chains::indirect_next,
            "an indirect table that loops breaks its queue alone": chains::indirect_looping,
            "an indirect table with an index past its end breaks its queue alone": chains::indirect_index,
            "an indirect table at page zero works": chains::indirect_at_zero,
            "flags that nobody has defined are ignored": chains::flags,
            "buffers of no length harm nobody": chains::empty,
            "buffers of 4 GiB harm nobody": chains::huge,
            "a thousand buffers of 4 GiB harm nobody": chains::thousand_huge,
        }
    };
}

macro_rules! addresses {
    ($with:ident) => {
        $with! {
            "a buffer at the very end of RAM works": chains::last_bytes,
            "a buffer across the end of RAM is refused": chains::across_ram,
            "a buffer across the end of RAM into devices is refused": chains::across_hole,
            "a buffer in the page of a device is refused": chains::in_device,
            "a buffer in the interrupt controllers is refused": chains::in_apic,
            "a buffer whose end overflows 64 bits is refused": chains::overflow,
            "a buffer beyond all addresses is refused": chains::beyond,
            "an indirect table that is not in RAM breaks its queue alone": chains::table_nowhere,
            "an indirect table across the end of RAM breaks its queue alone": chains::table_across,
            "an indirect table whose end overflows breaks its queue alone": chains::table_overflow,
            "an indirect table in the page of a device breaks its queue alone": chains::table_device,
        }
    };
}

macro_rules! rings {
    ($with:ident) => {
        $with! {
            "an avail index one too far breaks its queue alone": rings::one_too_far,
            "an avail index half-way round breaks its queue alone": rings::half_way,
            "an avail index that goes back breaks its queue alone": rings::back,
            "a full ring of one and the same chain is answered": rings::same_head,
            "an avail index comes round after 65536 requests": rings::wrap,
            "flags and events full of ones harm nobody": rings::flags,
            "used_event of any value harms nobody": rings::used_event,
            "avail and used ring in one place harm nobody": rings::one_place,
            "descriptors and used ring in one place harm nobody": rings::descriptors_used,
            "all three parts of a ring in one place harm nobody": rings::all_in_one,
            "data in the used ring harms nobody": rings::data_in_used,
            "data in the avail ring harms nobody": rings::data_in_avail,
            "data in the descriptors harms nobody": rings::data_in_descriptors,
            "rings at page zero harm nobody": rings::at_zero,
            "rings in the page of a device are refused": rings::in_device,
            "rings in no RAM are refused": rings::nowhere,
            "rings across the end of RAM are refused": rings::across,
            "rings whose end overflows are refused": rings::overflow,
            "rings at odd addresses are refused": rings::odd,
            "two queues in one place harm nobody": rings::two_queues,
        }
    };
}

macro_rules! set_up {
    ($with:ident) => {
        $with! {
            "a queue of one entry works": setup::one_entry,
            "a queue of no entries is refused": setup::no_entries,
            "a queue of three entries is refused": setup::three_entries,
            "a queue larger than the largest is refused": setup::too_large,
            "a queue of 32768 entries is refused": setup::half_of_all,
            "a queue of 65536 entries and more is refused": setup::more_than_all,
            "what changes when a queue is ready is ignored": setup::after_ready,
            "what changes at work is ignored": setup::at_work,
            "a queue that is not ready is not looked at": setup::not_ready,
            "features never offered are not accepted": setup::never_offered,
            "a driver without VERSION_1 is not accepted": setup::legacy,
            "features that change after FEATURES_OK are ignored": setup::late_features,
            "DRIVER_OK without FEATURES_OK starts nothing": setup::no_features_ok,
            "all of the status at once starts nothing": setup::all_at_once,
            "DRIVER_OK twice starts once": setup::twice,
            "DEVICE_NEEDS_RESET is not the driver's": setup::needs_reset,
            "FAILED and unknown bits harm nobody": setup::failed,
            "status bits stay until a reset": setup::bits_stay,
            "a kick before DRIVER_OK starts nothing": setup::early_kick,
            "a queue that is not there has no size and no ready": setup::no_such_queue,
            "a reset in every state works": setup::resets,
            "a reset with requests in flight leaves memory alone": setup::in_flight,
        }
    };
}

macro_rules! registers {
    ($with:ident) => {
        $with! {
            "every register is read in every width": registers::read_all,
            "every register is written in every width with zeros": registers::write_zeros,
            "every register is written in every width with ones": registers::write_ones,
            "every register is written in every width with anything": registers::write_any,
            "string instructions over a device's page harm nobody": registers::strings,
            "kicks of queues that are not there harm nobody": registers::no_such_queue,
            "a storm of kicks ends with the driver": registers::kicks,
            "a storm of requests is answered": registers::requests,
        }
    };
}

macro_rules! several {
    ($with:ident) => {
        $with! {
            "descriptors that change while they are read harm nobody": several::descriptors,
            "an indirect table that changes while it is read harms nobody": several::indirect,
            "headers and data that change while they are read harm nobody": several::headers,
            "indices that change while they are read harm nobody": several::indices,
            "resets from another vCPU with requests in flight harm nobody": several::resets,
            "storms of resets from all vCPUs end with them": several::reset_storm,
            "registers written by all vCPUs at once harm nobody": several::registers,
            "kicks from all vCPUs at once harm nobody": several::kicks,
        }
    };
}

macro_rules! random {
    ($with:ident) => {
        $with! {
            "random chains harm nobody": random::chains,
            "random rings harm nobody": random::rings,
            "random orders of registers harm nobody": random::orders,
            "random rings under random registers harm nobody": random::both,
        }
    };
}

macro_rules! disk {
    ($with:ident) => {
        $with! {
            "every type of request has an answer": disk::types,
            "sectors beyond the end are I/O errors": disk::sectors,
            "odd lengths are I/O errors": disk::lengths,
            "a request of 64 MiB is refused": disk::long,
            "full rings of the longest requests cost no more than their bound": disk::longest,
            "full rings of the longest requests at odd addresses cost no more than their bound": disk::longest_odd,
            "absurd ranges of DISCARD and WRITE_ZEROES are refused": disk::ranges,
            "any number of segments but one is refused": disk::segments,
            "a storm of flushes is answered": disk::flushes,
            "a header that is short breaks its queue alone": disk::short_header,
            "a request without room for its status breaks its queue alone": disk::no_status,
            "a status that is not in RAM breaks its queue alone": disk::status_nowhere,
            "header, data and status in one place harm nobody": disk::one_place,
        }
    };
}

macro_rules! balloon {
    ($with:ident) => {
        $with! {
            "page numbers beyond RAM are ignored": balloon::beyond,
            "the same page a thousand times is given once or often": balloon::same,
            "pages of its own rings can be given away": balloon::rings,
            "chains of a thousand ranges are bounded": balloon::ranges,
            "ranges from zero to the end of all addresses are cut": balloon::everything_else,
        }
    };
}

macro_rules! ports {
    ($with:ident) => {
        $with! {
            "every port is read in every width": machine::read_ports,
            "every port is written in every width": machine::write_ports,
            "string instructions on every device's ports harm nobody": machine::port_strings,
            "string instructions between ports and devices' pages harm nobody": machine::port_to_page,
            "the serial port's registers take any order": machine::serial_registers,
            "the serial port looped back holds its bytes": machine::serial_loop,
        }
    };
}

macro_rules! interrupts {
    ($with:ident) => {
        $with! {
            "every register of the interrupt controllers is read": machine::read_apics,
            "redirections of the I/O APIC take anything": machine::io_apic,
            "interrupts to nobody harm nobody": machine::wild_interrupts,
            "a storm of interrupts to itself harms nobody": machine::interrupt_storm,
            "INIT and SIPI in a storm to running vCPUs harm nobody": machine::init_storm,
        }
    };
}

macro_rules! memory {
    ($with:ident) => {
        $with! {
            "tables of the firmware can be overwritten": machine::firmware,
            "addresses without RAM read as ones": machine::holes,
            "accesses across the end of RAM and of pages harm nobody": machine::across,
        }
    };
}
