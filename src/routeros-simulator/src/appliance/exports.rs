//! What the simulated appliance exports, and how the exporter, if there is one, follows each change of it.

use std::io;

use super::{Appliance, SimulatedDisk, Words, file_name};
use crate::exporter::{Export, Exporter};

impl Appliance {
    /// From now on its exports are real.
    pub(crate) fn export_with(&mut self, exporter: Exporter) {
        self.exporter = Some(exporter);
    }

    /// What it exports. A disk without a file has nothing to export.
    pub(crate) fn exports(&self) -> Vec<Export> {
        let exported = self.contents.disks.values().filter(|disk| disk.exported);
        exported.filter_map(|disk| self.export_of(disk).ok()).collect()
    }

    fn export_of(&self, disk: &SimulatedDisk) -> Result<Export, Words> {
        let file = self.backing.path(file_name(&disk.file_path))?.ok_or("failure: no backing file")?;
        Ok(Export { nqn: disk.nqn.clone(), port: disk.nvme_port, file })
    }

    /// Exports nothing any more, as an appliance that is off.
    pub(crate) fn withdraw_exports(&self) {
        if let Some(Err(error)) = self.exporter.as_ref().map(Exporter::withdraw_all) {
            tracing::warn!(%error, "simulated appliance cannot take back its exports");
        }
    }

    /// Exports what it holds, as an appliance that comes up.
    pub(crate) fn export_again(&self) {
        if let Some(exporter) = &self.exporter {
            exporter.export_all(&self.exports());
        }
    }

    /// Refuses to export a disk, whose id is `id` if it has one, under the name of another's export: hosts of that one
    /// would come to write to it.
    pub(super) fn refuse_second_export(&self, id: Option<u64>, disk: &SimulatedDisk) -> Result<(), Words> {
        let is_taken = self.contents.disks.iter().any(|(other_id, other)| {
            Some(*other_id) != id && other.exported && disk.exported && other.nqn == disk.nqn
        });
        if is_taken { Err("failure: nvme-tcp-server-nqn is in use".to_owned()) } else { Ok(()) }
    }

    /// Makes the real export of a disk follow its change from `before` to `after`, `None` being no disk. If it cannot,
    /// the change is refused, and what was exported before is exported again.
    pub(super) fn follow(
        &self,
        before: Option<&SimulatedDisk>,
        after: Option<&SimulatedDisk>,
    ) -> Result<(), Words> {
        let Some(exporter) = &self.exporter else { return Ok(()) };
        let (before, after) = (before.filter(|disk| disk.exported), after.filter(|disk| disk.exported));
        let moved = match (before, after) {
            (Some(before), Some(after)) => before.nqn != after.nqn || before.nvme_port != after.nvme_port,
            (None, _) | (_, None) => true,
        };
        let export_of = |disk| self.export_of(disk).map_err(io::Error::other);
        let followed = || {
            if let Some(before) = before.filter(|_| moved) {
                exporter.withdraw(&before.nqn)?;
            }
            let Some(after) = after.map(export_of).transpose()? else { return Ok(()) };
            if !moved && exporter.is_offered(&after) {
                exporter.announce_size(&after.nqn)
            } else {
                exporter.export(&after)
            }
        };
        let restore = |disk| {
            let export = export_of(disk)?;
            if exporter.is_offered(&export) { Ok(()) } else { exporter.export(&export) }
        };
        followed().map_err(|error: io::Error| {
            tracing::warn!(%error, "simulated appliance cannot change an export");
            if let Some(Err(error)) = before.map(restore) {
                tracing::error!(%error, "simulated appliance does not serve what it says that it exports");
            }
            format!("failure: {error}")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::Ipv4Addr;
    use std::path::Path;

    use super::*;
    use crate::appliance::{Arguments, Contents};
    use crate::backing::Backing;
    use crate::config::SimulatorConfig;
    use crate::exporter::NvmetTarget;
    use crate::script::value::Value;

    const PORT: u16 = 4420;

    /// An appliance with an exported disk `a`, whose exporter writes to a plain tree and has exported nothing so far.
    fn appliance(directory: &Path) -> Appliance {
        let backing = Backing::new(Some(directory.join("files")));
        let mut appliance = Appliance::new(Contents::default(), SimulatorConfig::default().pools, backing);
        let configfs = directory.join("nvmet");
        fs::create_dir(&configfs).unwrap();
        let target = NvmetTarget { configfs, listen: Ipv4Addr::UNSPECIFIED.into() };
        appliance.export_with(Exporter::start(target, &[]).unwrap());
        appliance.plant_disk(SimulatedDisk {
            slot: "a".to_owned(),
            file_path: "/storage-pool/a.img".to_owned(),
            size_bytes: 4096,
            mount_filesystem: false,
            compress: false,
            exported: true,
            nvme_port: PORT,
            nqn: "nqn.a".to_owned(),
        });
        appliance
    }

    fn is_offered(directory: &Path, nqn: &str) -> bool {
        directory.join(format!("nvmet/ports/{PORT}/subsystems/{nqn}")).is_symlink()
    }

    fn arguments(pairs: &[(&str, &str)]) -> Arguments {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), Value::Text((*value).to_owned()))).collect()
    }

    #[test]
    fn an_export_that_is_missing_comes_back_with_the_next_change_of_its_disk() {
        let directory = tempfile::tempdir().unwrap();
        let mut appliance = appliance(directory.path());
        appliance.set_disk("*1", &arguments(&[("file-size", "8192")])).unwrap();
        assert!(is_offered(directory.path(), "nqn.a"));
        // From now on it is only told the size.
        appliance.set_disk("*1", &arguments(&[("file-size", "16384")])).unwrap();
        let told = "nvmet/subsystems/nqn.a/namespaces/1/revalidate_size";
        assert!(directory.path().join(told).exists());
    }

    #[test]
    fn what_cannot_be_exported_anew_is_exported_as_before() {
        let directory = tempfile::tempdir().unwrap();
        let mut appliance = appliance(directory.path());
        fs::create_dir_all(directory.path().join("nvmet/subsystems/nqn.b/namespaces/1")).unwrap();
        let refused = appliance.set_disk("*1", &arguments(&[("nvme-tcp-server-nqn", "nqn.b")]));
        assert!(refused.unwrap_err().contains("somebody else's"));
        assert_eq!(appliance.disks()[0].nqn, "nqn.a");
        assert!(is_offered(directory.path(), "nqn.a"));
        assert!(!is_offered(directory.path(), "nqn.b"));
    }

    #[test]
    fn a_name_is_for_one_export() {
        let directory = tempfile::tempdir().unwrap();
        let mut appliance = appliance(directory.path());
        let add = |slot: &str, nqn: &str| {
            let path = format!("/storage-pool/{slot}.img");
            let file = [("type", "file"), ("file-path", &path), ("file-size", "4096"), ("slot", slot)];
            arguments(&[&file[..], &[("nvme-tcp-export", "yes"), ("nvme-tcp-server-nqn", nqn)]].concat())
        };
        assert!(appliance.add_disk(&add("b", "nqn.a"), true).unwrap_err().contains("in use"));
        assert_eq!(appliance.disks().len(), 1);
        appliance.add_disk(&add("c", "nqn.c"), true).unwrap();
        let id = appliance.items(crate::script::ast::Menu::Disk).pop().unwrap().id;
        let stolen = appliance.set_disk(&id, &arguments(&[("nvme-tcp-server-nqn", "nqn.a")]));
        assert!(stolen.unwrap_err().contains("in use"));
        // A disk may be set to the name that it has.
        appliance.set_disk(&id, &arguments(&[("nvme-tcp-server-nqn", "nqn.c")])).unwrap();
    }
}
