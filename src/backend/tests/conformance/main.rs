//! The one suite that every backend passes: the in-memory one, and RouterOS against the simulator in all its forms.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod suite;

use backend::{Disk, Memory, MemoryAppliance, RouterOs};
use routeros_simulator::{ErrorStream, PrintStyle, SimulatedDisk, SimulatorConfig};

use support::Lab;

/// A kind of appliance under test.
trait Fixture {
    type Backend: backend::Backend;
    /// Another leader's backend for the same appliance.
    fn connect(&self) -> Self::Backend;
    /// Puts a disk there, unchecked.
    fn plant(&self, disk: Disk);
    /// Puts a file without a disk there.
    fn plant_file(&self, path: &str, size_bytes: u64);
}

/// Bytes of the pool that all fixtures have.
const POOL_BYTES: u64 = 4 << 40;

impl Fixture for MemoryAppliance {
    type Backend = Memory;

    fn connect(&self) -> Memory {
        MemoryAppliance::connect(self)
    }

    fn plant(&self, disk: Disk) {
        MemoryAppliance::plant(self, disk);
    }

    fn plant_file(&self, path: &str, _: u64) {
        MemoryAppliance::plant_file(self, path);
    }
}

impl Fixture for Lab {
    type Backend = RouterOs;

    fn connect(&self) -> RouterOs {
        Lab::connect(self)
    }

    fn plant(&self, disk: Disk) {
        self.simulator.plant_disk(SimulatedDisk {
            slot: disk.volume.to_string(),
            file_path: disk.file_path,
            size_bytes: disk.size_bytes,
            mount_filesystem: disk.mounted_by_appliance,
            compress: false,
            exported: disk.exported,
            nvme_port: disk.nvme_port.unwrap_or(4420),
            nqn: disk.nqn.map(String::from).unwrap_or_default(),
        });
    }

    fn plant_file(&self, path: &str, size_bytes: u64) {
        self.simulator.plant_file(path, size_bytes);
    }
}

async fn memory() -> MemoryAppliance {
    MemoryAppliance::new(POOL_BYTES)
}

async fn simulated(change: impl FnOnce(&mut SimulatorConfig)) -> Lab {
    let mut config = SimulatorConfig::default();
    config.pools[0].size_bytes = POOL_BYTES;
    config.pools[0].free_bytes = POOL_BYTES;
    change(&mut config);
    Lab::start(config).await
}

async fn human(style: PrintStyle, error_stream: ErrorStream, error_exit_status: u32) -> Lab {
    simulated(|config| {
        config.knows_serialize = false;
        config.print_style = style;
        config.error_stream = error_stream;
        config.error_exit_status = error_exit_status;
    })
    .await
}

macro_rules! conformance {
    ($($kind:ident: $fixture:expr;)*) => {
        $(conformance!(@kind $kind, $fixture,
            makes_a_disk_exactly, sizes_are_exact, create_twice_is_once, finishes_a_disk_without_its_export,
            takes_a_disk_from_the_appliances_hands, exports_what_is_there_and_never_makes_it,
            an_earlier_terms_instance_changes_nothing, never_touches_what_differs, never_takes_over_a_file,
            grows_and_never_shrinks, removes_disk_and_file, removes_a_file_that_was_left,
            never_removes_another_file, removes_only_while_unneeded, never_removes_the_file_of_another_slot,
            finds_files_without_a_disk, full_is_full, lists_ours_and_foreign, knows_its_capacity,
            changes_nothing_before_a_term, refuses_a_deposed_leader, a_term_begins_twice,
            many_calls_at_once, probes,
        );)*
    };
    (@kind $kind:ident, $fixture:expr, $($test:ident),* $(,)?) => {
        mod $kind {
            use super::*;
            $(
                #[tokio::test]
                async fn $test() {
                    suite::$test(&$fixture.await).await;
                }
            )*
        }
    };
}

conformance! {
    in_memory: memory();
    json: simulated(|_| {});
    json_with_fractional_numbers: simulated(|config| config.fractional_json_numbers = true);
    json_errors_on_stderr: simulated(|config| config.error_stream = ErrorStream::Stderr);
    human_narrow: human(PrintStyle::NARROW, ErrorStream::Stdout, 1);
    human_narrow_cutting: human(PrintStyle::NARROW_CUTTING, ErrorStream::Stderr, 0);
    human_wide: human(PrintStyle::WIDE, ErrorStream::Stdout, 0);
    human_wide_errors_on_stderr: human(PrintStyle::WIDE, ErrorStream::Stderr, 1);
}
