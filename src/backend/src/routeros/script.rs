//! The only place that builds command text.
//!
//! Every value that gets into a script has a checked type, whose characters cannot leave the quotes. Sizes are exact
//! bytes. Volumes are never mounted by the appliance and never compressed.
//!
//! Every change is one script: compare the fence, store it, then act, and act only on what matches. It ends by
//! printing [`DONE`], so that success is a positive answer. That `:tonum` and `:typeof` of a script object's source,
//! conditions joined by `and`, and script objects as a place for the fence work as written is **not proven on
//! hardware**; the simulator does what MikroTik documents.

use std::fmt;

use state_machine::{AppliancePath, VolumeId};

use super::Dialect;
use crate::fence::FenceNumber;
use crate::{DiskSpec, SLOT_PREFIX, file_path};

/// What a change prints when it has come to its end.
pub(super) const DONE: &str = "rds-csi-done";
/// What a refused change says before the number that the appliance has.
pub(super) const STALE: &str = "stale fence ";
/// What a read in the human form prints before the number of records.
pub(super) const COUNT: &str = "rds-csi-count=";
/// What `begin_term` prints before the number that the appliance has.
pub(super) const FENCE: &str = "rds-csi-fence=";

/// Longest name of the fence's script object, in bytes.
const MAX_FENCE_NAME_BYTES: usize = 64;

/// The name of the script object that keeps the fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FenceName(String);

impl FenceName {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let fits = !text.is_empty() && text.len() <= MAX_FENCE_NAME_BYTES;
        (fits && text.chars().all(is_safe)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for FenceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A question about items of a menu.
#[derive(Debug, Clone)]
pub(super) enum Query<'a> {
    /// The disk in a slot.
    Slot(&'a VolumeId),
    /// The file of a volume.
    File(&'a AppliancePath, &'a VolumeId),
    /// Disks whose slot looks like ours.
    OurSlots,
    /// Files in a directory, and others of which its name is a part.
    FilesIn(&'a AppliancePath),
    /// Disks whose files are there.
    DisksIn(&'a AppliancePath),
    /// The pool that a directory is in.
    Pool(&'a AppliancePath),
}

impl Query<'_> {
    /// The script that asks.
    pub(super) fn script(&self, dialect: Dialect) -> String {
        let (menu, filter) = match self {
            Query::Slot(volume) => ("/disk", format!("slot=\"{volume}\"")),
            Query::File(directory, volume) => ("/file", format!("name=\"{}\"", file_name(directory, volume))),
            Query::OurSlots => ("/disk", format!("slot~\"{SLOT_PREFIX}\"")),
            Query::FilesIn(directory) => ("/file", format!("name~\"{}/\"", relative(directory))),
            Query::DisksIn(directory) => ("/disk", format!("file-path~\"{}/\"", relative(directory))),
            Query::Pool(directory) => ("/disk", format!("mount-point=\"{}\"", mount_point(directory))),
        };
        match dialect {
            Dialect::Json => format!(
                ":put [:serialize to=json value=[{menu} print detail as-value where {filter}] \
                 options=json.no-string-conversion]"
            ),
            Dialect::Human => format!(
                "{{ {menu} print detail where {filter}; :local n [:len [{menu} find where {filter}]]; \
                 :put \"{COUNT}$n\" }}"
            ),
        }
    }
}

/// Asks whether the appliance knows `:serialize`; answers `"1"` if so.
pub(super) fn probe_dialect() -> String {
    ":put [:serialize to=json value=\"1\" options=json.no-string-conversion]".to_owned()
}

/// Asks for a sign of life: answers [`DONE`].
pub(super) fn probe() -> String {
    format!(":put \"{DONE}\"")
}

/// Begins a term: makes the fence if it is missing, raises it to `first`, and prints what it is then.
pub(super) fn begin_term(fence: &FenceName, first: FenceNumber) -> String {
    let number = first.raw();
    format!(
        "{{ :if ([:len [/system script find where name=\"{fence}\"]] = 0) do={{ \
         /system script add name=\"{fence}\" source=\"0\" }}; {read}; \
         :if ({number} > $f) do={{ /system script set [find where name=\"{fence}\"] source=\"{number}\" }}; \
         :local g [/system script get [find where name=\"{fence}\"] source]; :put \"{FENCE}$g\" }}",
        read = read_fence(fence)
    )
}

/// Prints what the fence is, and 0 if there is none.
pub(super) fn show_fence(fence: &FenceName) -> String {
    let found = format!("[:len [/system script find where name=\"{fence}\"]]");
    format!(
        "{{ :if ({found} = 0) do={{ :put \"{FENCE}0\" }}; :if ({found} > 0) do={{ \
         :local g [/system script get [find where name=\"{fence}\"] source]; :put \"{FENCE}$g\" }} }}"
    )
}

/// Adds the disk if slot and file are free, and exports it if it is not exported yet.
pub(super) fn create(fence: &FenceName, number: FenceNumber, spec: &DiskSpec) -> String {
    let DiskSpec { volume, directory, size, .. } = spec;
    let path = spec.file_path();
    let name = file_name(directory, volume);
    fenced(
        fence,
        number,
        &format!(
            ":if ([:len [/disk find where slot=\"{volume}\"]] = 0) do={{ \
             :if ([:len [/file find where name=\"{name}\"]] > 0) do={{ :error \"file exists without its disk\" }}; \
             /disk add type=file file-path=\"{path}\" file-size={size} slot=\"{volume}\" mount-filesystem=no \
             compress=no {export} }}; {serve}",
            export = export_properties(spec),
            serve = serve(spec),
        ),
    )
}

/// Exports the disk if slot and file are the volume's; adds nothing.
pub(super) fn export(fence: &FenceName, number: FenceNumber, spec: &DiskSpec) -> String {
    fenced(fence, number, &serve(spec))
}

/// Takes the disk from the appliance's own hands and exports it, where that is not so already.
fn serve(spec: &DiskSpec) -> String {
    let ours = matching(&spec.volume, &spec.file_path());
    let set_mount = set(&format!("{ours} and mount-filesystem=yes"), "mount-filesystem=no");
    let set_export = set(&format!("{ours} and nvme-tcp-export=no"), &export_properties(spec));
    format!("{set_mount}; {set_export}")
}

fn export_properties(DiskSpec { nqn, nvme_port, .. }: &DiskSpec) -> String {
    format!("nvme-tcp-export=yes nvme-tcp-server-port={nvme_port} nvme-tcp-server-nqn=\"{nqn}\"")
}

/// Sets the size of the disk if slot and file are the volume's.
pub(super) fn resize(fence: &FenceName, number: FenceNumber, spec: &DiskSpec) -> String {
    let ours = matching(&spec.volume, &spec.file_path());
    fenced(fence, number, &set(&ours, &format!("file-size={}", spec.size)))
}

/// Removes the disk if slot and file are the volume's, then the file if no disk uses it, however its path is spelled.
/// A pool, a RAID or a partition has no file, so it never matches.
pub(super) fn remove(
    fence: &FenceName,
    number: FenceNumber,
    volume: &VolumeId,
    directory: &AppliancePath,
) -> String {
    let path = file_path(directory, volume);
    let name = file_name(directory, volume);
    let ours = matching(volume, &path);
    fenced(
        fence,
        number,
        &format!(
            ":if ([:len [/disk find where {ours}]] > 0) do={{ /disk remove [find where {ours}] }}; \
             :if ([:len [/disk find where slot=\"{volume}\" or file-path=\"{path}\" or file-path=\"{name}\"]] = 0) \
             do={{ :if ([:len [/file find where name=\"{name}\"]] > 0) do={{ \
             /file remove [find where name=\"{name}\"] }} }}"
        ),
    )
}

/// Reads the fence into `$f`; an unreadable one stops the script.
fn read_fence(fence: &FenceName) -> String {
    format!(
        ":local f [:tonum [/system script get [find where name=\"{fence}\"] source]]; \
         :if ([:typeof $f] != \"num\") do={{ :error \"fence unreadable\" }}"
    )
}

/// A change behind the fence.
fn fenced(fence: &FenceName, number: FenceNumber, change: &str) -> String {
    let number = number.raw();
    let newest = if planted::is(planted::Bug::NoFence) { u64::MAX >> 1 } else { number };
    format!(
        "{{ {read}; :if ({newest} <= $f) do={{ :error \"{STALE}$f\" }}; \
         /system script set [find where name=\"{fence}\"] source=\"{number}\"; {change}; :put \"{DONE}\" }}",
        read = read_fence(fence)
    )
}

/// Sets properties of the disks that `filter` finds, if any: what `set` of nothing does is unproven.
fn set(filter: &str, properties: &str) -> String {
    format!(
        ":if ([:len [/disk find where {filter}]] > 0) do={{ /disk set [find where {filter}] {properties} }}"
    )
}

fn matching(volume: &VolumeId, path: &str) -> String {
    format!("slot=\"{volume}\" and file-path=\"{path}\"")
}

/// A volume's file as `/file` names it: without the leading `/`.
pub(super) fn file_name(directory: &AppliancePath, volume: &VolumeId) -> String {
    file_path(directory, volume).trim_start_matches('/').to_owned()
}

/// A directory as `/file` names it.
fn relative(directory: &AppliancePath) -> &str {
    directory.as_str().trim_start_matches('/')
}

/// The mount point of the pool that `directory` is in: its first component.
fn mount_point(directory: &AppliancePath) -> &str {
    let path = directory.as_str().trim_start_matches('/');
    path.split_once('/').map_or(path, |(first, _)| first)
}

#[cfg(test)]
mod tests {
    use state_machine::{ByteSize, Nqn};

    use super::*;

    fn spec() -> DiskSpec {
        DiskSpec {
            volume: VolumeId::parse("pvc-1").unwrap(),
            directory: AppliancePath::parse("/storage-pool/csi").unwrap(),
            size: ByteSize::exactly(1_649_267_441_664).unwrap(),
            nqn: Nqn::parse("nqn.2000-02.com.mikrotik:pvc-1").unwrap(),
            nvme_port: 4420,
        }
    }

    #[test]
    fn a_disk_is_added_unmounted_uncompressed_and_to_the_byte() {
        let script = create(&FenceName::parse("f").unwrap(), FenceNumber::from_raw(5), &spec());
        let add = "/disk add type=file file-path=\"/storage-pool/csi/pvc-1.img\" file-size=1649267441664 \
                   slot=\"pvc-1\" mount-filesystem=no compress=no nvme-tcp-export=yes nvme-tcp-server-port=4420 \
                   nvme-tcp-server-nqn=\"nqn.2000-02.com.mikrotik:pvc-1\"";
        assert!(script.contains(add), "{script}");
    }

    #[test]
    fn every_change_compares_and_stores_the_fence_before_it_acts() {
        let (fence, number) = (FenceName::parse("f").unwrap(), FenceNumber::from_raw(5));
        let spec = spec();
        for script in [
            create(&fence, number, &spec),
            export(&fence, number, &spec),
            resize(&fence, number, &spec),
            remove(&fence, number, &spec.volume, &spec.directory),
        ] {
            let at = |text: &str| script.find(text).unwrap_or_else(|| panic!("{text} in {script}"));
            let compare = at(":if (5 <= $f) do={ :error \"stale fence $f\" }");
            let store = at("/system script set [find where name=\"f\"] source=\"5\"");
            let act = ["/disk add", "/disk set", "/disk remove", "/file remove"];
            let act = act.iter().filter_map(|text| script.find(text)).min().unwrap();
            assert!(compare < store && store < act, "{script}");
        }
    }

    #[test]
    fn an_export_adds_and_removes_nothing() {
        let script = export(&FenceName::parse("f").unwrap(), FenceNumber::from_raw(5), &spec());
        assert!(!script.contains("/disk add") && !script.contains("remove"), "{script}");
    }

    #[test]
    fn a_fence_name_cannot_leave_its_quotes() {
        for text in ["", "a b", "a\"b", "a$b", "a;b", "a]b", "a\\b", "a\nb"] {
            assert_eq!(FenceName::parse(text), None, "{text:?}");
        }
        assert_eq!(FenceName::parse(&"a".repeat(65)), None);
    }
}
