//! What the simulated appliance holds: disks, files, script objects and pools.
//!
//! Follows what hardware was seen to do: removing a disk leaves its file; removing or setting nothing succeeds; a
//! slot or a file that exists is not added again; a pool without room says `not enough space`.
//!
//! - `exports`: how what is exported is really served

mod exports;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backing::Backing;
use crate::config::Pool;
use crate::exporter::Exporter;
use crate::log::Effect;
use crate::script::ast::Menu;
use crate::script::value::Value;

/// A file-backed disk of the simulated appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimulatedDisk {
    /// Its slot.
    pub slot: String,
    /// Its file, as it was given.
    pub file_path: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// Whether the appliance mounts the file system in it: the appliance's default.
    pub mount_filesystem: bool,
    /// Whether it is compressed.
    pub compress: bool,
    /// Whether it is exported over NVMe/TCP.
    pub exported: bool,
    /// The port of its export.
    pub nvme_port: u16,
    /// The NQN of its export.
    pub nqn: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ScriptObject {
    id: u64,
    name: String,
    source: String,
}

/// What outlives the process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Contents {
    next_id: u64,
    disks: BTreeMap<u64, SimulatedDisk>,
    /// Sizes in bytes by name, which has no leading `/`.
    files: BTreeMap<String, u64>,
    scripts: Vec<ScriptObject>,
}

/// One item of a menu, ready to be printed or compared.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) id: String,
    /// Its number in the whole list.
    pub(crate) index: usize,
    pub(crate) flags: &'static str,
    pub(crate) properties: Vec<(&'static str, Property)>,
}

/// A property's value and how the human form prints it.
#[derive(Debug, Clone)]
pub(crate) enum Property {
    /// In quotes.
    Text(String),
    /// Bare.
    Word(String),
    /// `yes` or `no`.
    Flag(bool),
    /// Digits grouped by spaces.
    Grouped(u64),
    /// Plain digits.
    Number(u64),
    /// Rounded, with one decimal and a unit.
    Rounded(u64),
}

impl Property {
    fn value(&self) -> Value {
        let number = |n: u64| i64::try_from(n).map_or(Value::Nothing, Value::Number);
        match self {
            Property::Text(text) | Property::Word(text) => Value::Text(text.clone()),
            Property::Flag(value) => Value::Bool(*value),
            Property::Grouped(n) | Property::Number(n) | Property::Rounded(n) => number(*n),
        }
    }
}

impl Item {
    pub(crate) fn value(&self, key: &str) -> Option<Value> {
        self.properties.iter().find(|(found, _)| *found == key).map(|(_, property)| property.value())
    }

    /// The item as `print as-value` gives it.
    pub(crate) fn record(&self) -> Value {
        let id = (".id".to_owned(), Value::Text(self.id.clone()));
        let rest = self.properties.iter().map(|(key, property)| ((*key).to_owned(), property.value()));
        Value::Record(std::iter::once(id).chain(rest).collect())
    }
}

/// The words of a refusal.
type Words = String;
type Arguments = BTreeMap<String, Value>;

#[derive(Debug)]
pub(crate) struct Appliance {
    contents: Contents,
    pools: Vec<Pool>,
    backing: Backing,
    /// What makes its exports real, if anything does.
    exporter: Option<Exporter>,
}

impl Appliance {
    pub(crate) fn new(contents: Contents, pools: Vec<Pool>, backing: Backing) -> Self {
        Self { contents, pools, backing, exporter: None }
    }

    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    pub(crate) fn disks(&self) -> Vec<SimulatedDisk> {
        self.contents.disks.values().cloned().collect()
    }

    pub(crate) fn files(&self) -> BTreeMap<String, u64> {
        self.contents.files.clone()
    }

    /// Puts a disk and its file there, unchecked: for tests that need foreign or odd ones.
    pub(crate) fn plant_disk(&mut self, disk: SimulatedDisk) {
        self.contents.files.insert(file_name(&disk.file_path).to_owned(), disk.size_bytes);
        let id = self.new_id();
        self.contents.disks.insert(id, disk);
    }

    pub(crate) fn plant_file(&mut self, name: &str, size_bytes: u64) {
        self.contents.files.insert(file_name(name).to_owned(), size_bytes);
    }

    fn new_id(&mut self) -> u64 {
        self.contents.next_id += 1;
        self.contents.next_id
    }

    /// `/disk add`. With `may_export` false the export is left out.
    pub(crate) fn add_disk(&mut self, arguments: &Arguments, may_export: bool) -> Result<Effect, Words> {
        let text = |key: &str| arguments.get(key).map(Value::to_text);
        if text("type").as_deref() != Some("file") {
            return Err("invalid parameter".to_owned());
        }
        let file_path = text("file-path").ok_or("invalid parameter")?;
        let name = file_name(&file_path).to_owned();
        let size_bytes = size(arguments.get("file-size")).ok_or("invalid parameter")?;
        let slot = text("slot").unwrap_or_else(|| format!("file{}", self.contents.next_id + 1));
        if self.contents.disks.values().any(|disk| disk.slot == slot)
            || self.contents.files.contains_key(&name)
        {
            return Err("failure: file already exists".to_owned());
        }
        self.require_room(&name, size_bytes)?;
        let mut disk = SimulatedDisk {
            nqn: format!("nqn.2000-02.com.mikrotik:{slot}"),
            slot,
            file_path,
            size_bytes,
            mount_filesystem: true,
            compress: false,
            exported: false,
            nvme_port: 4420,
        };
        change(&mut disk, arguments)?;
        disk.exported &= may_export;
        self.refuse_second_export(None, &disk)?;
        self.backing.resize(&name, size_bytes)?;
        if let Err(words) = self.follow(None, Some(&disk)) {
            self.backing.remove(&name)?;
            return Err(words);
        }
        self.contents.files.insert(name, size_bytes);
        let effect = Effect::DiskAdded {
            slot: disk.slot.clone(),
            size_bytes: disk.size_bytes,
            exported: disk.exported,
        };
        let id = self.new_id();
        self.contents.disks.insert(id, disk);
        Ok(effect)
    }

    /// `/disk set` on one disk.
    pub(crate) fn set_disk(&mut self, id: &str, arguments: &Arguments) -> Result<Effect, Words> {
        let id = number(id).ok_or("no such item")?;
        let before = self.contents.disks.get(&id).cloned().ok_or("no such item")?;
        let mut disk = before.clone();
        change(&mut disk, arguments)?;
        self.refuse_second_export(Some(id), &disk)?;
        if let Some(value) = arguments.get("file-size") {
            let name = file_name(&disk.file_path).to_owned();
            let size_bytes = size(Some(value)).ok_or("invalid parameter")?;
            self.require_room(&name, size_bytes.saturating_sub(disk.size_bytes))?;
            self.backing.resize(&name, size_bytes)?;
            self.contents.files.insert(name, size_bytes);
            disk.size_bytes = size_bytes;
        }
        self.follow(Some(&before), Some(&disk))?;
        let effect =
            Effect::DiskSet { slot: disk.slot.clone(), size_bytes: disk.size_bytes, exported: disk.exported };
        self.contents.disks.insert(id, disk);
        Ok(effect)
    }

    /// `/disk remove` of one disk; its file stays.
    pub(crate) fn remove_disk(&mut self, id: &str) -> Result<Effect, Words> {
        let id = number(id).ok_or("no such item")?;
        self.follow(self.contents.disks.get(&id), None)?;
        let disk = self.contents.disks.remove(&id).ok_or("no such item")?;
        Ok(Effect::DiskRemoved { slot: disk.slot })
    }

    /// `/file remove` of one file, even if a disk still uses it: the harsher guess about hardware.
    pub(crate) fn remove_file(&mut self, id: &str) -> Result<Effect, Words> {
        let name = id.strip_prefix("*F").ok_or("no such item")?;
        self.contents.files.remove(name).ok_or("no such item")?;
        self.backing.remove(name)?;
        Ok(Effect::FileRemoved { name: name.to_owned() })
    }

    /// `/system script add`.
    pub(crate) fn add_script(&mut self, arguments: &Arguments) -> Result<Effect, Words> {
        let name = arguments.get("name").map(Value::to_text).ok_or("invalid parameter")?;
        if self.contents.scripts.iter().any(|script| script.name == name) {
            return Err("failure: item with such name already exists".to_owned());
        }
        let source = arguments.get("source").map(Value::to_text).unwrap_or_default();
        let id = self.new_id();
        self.contents.scripts.push(ScriptObject { id, name: name.clone(), source: source.clone() });
        Ok(Effect::ScriptSet { name, source })
    }

    /// `/system script set` on one object.
    pub(crate) fn set_script(&mut self, id: &str, arguments: &Arguments) -> Result<Effect, Words> {
        let id = number(id).ok_or("no such item")?;
        let script = self.contents.scripts.iter_mut().find(|script| script.id == id).ok_or("no such item")?;
        if let Some(source) = arguments.get("source") {
            script.source = source.to_text();
        }
        Ok(Effect::ScriptSet { name: script.name.clone(), source: script.source.clone() })
    }

    /// `/system script remove` of one object.
    pub(crate) fn remove_script(&mut self, id: &str) -> Result<Effect, Words> {
        let id = number(id).ok_or("no such item")?;
        let index = self.contents.scripts.iter().position(|script| script.id == id).ok_or("no such item")?;
        Ok(Effect::ScriptRemoved { name: self.contents.scripts.remove(index).name })
    }

    fn require_room(&self, name: &str, bytes: u64) -> Result<(), Words> {
        let pool = self.pools.iter().find(|pool| is_in(name, pool)).ok_or("invalid parameter")?;
        if self.free_bytes(pool) < bytes { Err("not enough space".to_owned()) } else { Ok(()) }
    }

    fn free_bytes(&self, pool: &Pool) -> u64 {
        let used = self.contents.files.iter().filter(|(name, _)| is_in(name, pool)).map(|(_, size)| *size);
        pool.free_bytes.saturating_sub(used.fold(0, u64::saturating_add))
    }

    /// The items of `menu`, in the order in which they are printed.
    pub(crate) fn items(&self, menu: Menu) -> Vec<Item> {
        let items: Vec<Item> = match menu {
            Menu::Disk => self
                .pools
                .iter()
                .enumerate()
                .map(|(index, pool)| pool_item(index, pool, self.free_bytes(pool)))
                .chain(self.contents.disks.iter().map(|(id, disk)| disk_item(*id, disk)))
                .collect(),
            Menu::File => self.contents.files.iter().map(|(name, size)| file_item(name, *size)).collect(),
            Menu::SystemScript => self
                .contents
                .scripts
                .iter()
                .map(|script| {
                    item(
                        format!("*{:X}", script.id),
                        "",
                        vec![
                            ("name", Property::Text(script.name.clone())),
                            ("source", Property::Text(script.source.clone())),
                        ],
                    )
                })
                .collect(),
            Menu::SystemIdentity => {
                vec![item("*0".to_owned(), "", vec![("name", Property::Word("SimulatedRDS".to_owned()))])]
            }
            Menu::SystemResource => vec![item(
                "*0".to_owned(),
                "",
                vec![
                    ("version", Property::Word("7.0 (simulated)".to_owned())),
                    ("board-name", Property::Word("SimulatedRDS".to_owned())),
                ],
            )],
        };
        items.into_iter().enumerate().map(|(index, item)| Item { index, ..item }).collect()
    }
}

fn item(id: String, flags: &'static str, properties: Vec<(&'static str, Property)>) -> Item {
    Item { id, index: 0, flags, properties }
}

fn disk_item(id: u64, disk: &SimulatedDisk) -> Item {
    let word = |text: &str| Property::Word(text.to_owned());
    let flags = if disk.exported { "Bt" } else { "B" };
    let properties = vec![
        ("type", word("file")),
        ("slot", Property::Text(disk.slot.clone())),
        ("slot-default", Property::Text(String::new())),
        ("parent", Property::Text(String::new())),
        ("fs", word("-")),
        ("model", Property::Text(disk.file_path.clone())),
        ("size", Property::Grouped(disk.size_bytes)),
        ("mount-filesystem", Property::Flag(disk.mount_filesystem)),
        ("mount-read-only", Property::Flag(false)),
        ("compress", Property::Flag(disk.compress)),
        ("sector-size", Property::Number(512)),
        ("raid-master", word("none")),
        ("nvme-tcp-export", Property::Flag(disk.exported)),
        ("nvme-tcp-server-port", Property::Number(disk.nvme_port.into())),
        ("nvme-tcp-server-nqn", Property::Text(disk.nqn.clone())),
        ("nvme-tcp-server-allow-host-name", Property::Text(String::new())),
        ("iscsi-export", Property::Flag(false)),
        ("nfs-sharing", Property::Flag(false)),
        ("smb-sharing", Property::Flag(false)),
        ("media-sharing", Property::Flag(false)),
        ("media-interface", word("none")),
        ("swap", Property::Flag(false)),
        ("file-path", word(&disk.file_path)),
        ("file-size", Property::Rounded(disk.size_bytes)),
        ("file-offset", Property::Number(0)),
    ];
    item(format!("*{id:X}"), flags, properties)
}

fn pool_item(index: usize, pool: &Pool, free_bytes: u64) -> Item {
    let word = |text: &str| Property::Word(text.to_owned());
    let used = pool.size_bytes.saturating_sub(free_bytes);
    let percent = u128::from(used) * 100 / u128::from(pool.size_bytes.max(1));
    let properties = vec![
        ("type", word("raid")),
        ("slot", Property::Text(pool.slot.clone())),
        ("slot-default", Property::Text(String::new())),
        ("parent", Property::Text(String::new())),
        ("fs", word("btrfs")),
        ("model", Property::Text("RAID0 striped".to_owned())),
        ("size", Property::Grouped(pool.size_bytes)),
        ("free", Property::Grouped(free_bytes)),
        ("use", word(&format!("{percent}%"))),
        ("mount-point", Property::Text(pool.mount_point.clone())),
        ("state", Property::Text("clean".to_owned())),
    ];
    item(format!("*B00{index:X}"), "BM", properties)
}

fn file_item(name: &str, size_bytes: u64) -> Item {
    let properties = vec![
        ("name", Property::Word(name.to_owned())),
        ("type", Property::Word(".img file".to_owned())),
        ("size", Property::Rounded(size_bytes)),
        ("last-modified", Property::Word("2025-11-11 14:32:41".to_owned())),
    ];
    item(format!("*F{name}"), "", properties)
}

/// Sets what `add` and `set` have in common.
fn change(disk: &mut SimulatedDisk, arguments: &Arguments) -> Result<(), Words> {
    let flag = |key: &str, current: bool| match arguments.get(key) {
        None => Ok(current),
        Some(value) if value.equals(&Value::Bool(true)) => Ok(true),
        Some(value) if value.equals(&Value::Bool(false)) => Ok(false),
        Some(_) => Err("invalid parameter".to_owned()),
    };
    disk.mount_filesystem = flag("mount-filesystem", disk.mount_filesystem)?;
    disk.compress = flag("compress", disk.compress)?;
    disk.exported = flag("nvme-tcp-export", disk.exported)?;
    if let Some(port) = arguments.get("nvme-tcp-server-port") {
        disk.nvme_port = port.to_text().parse().map_err(|_| "invalid parameter")?;
    }
    if let Some(nqn) = arguments.get("nvme-tcp-server-nqn") {
        disk.nqn = nqn.to_text();
    }
    Ok(())
}

fn number(id: &str) -> Option<u64> {
    u64::from_str_radix(id.strip_prefix('*')?, 16).ok()
}

/// A size: digits, or digits and a binary unit.
fn size(value: Option<&Value>) -> Option<u64> {
    let text = value?.to_text();
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(digits) => (digits, 10 * (1 + "KMGT".find(text.chars().last()?)? as u32)),
        None => (text.as_str(), 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A file's name: its path without the leading `/`.
fn file_name(path: &str) -> &str {
    path.trim_start_matches('/')
}

fn is_in(name: &str, pool: &Pool) -> bool {
    name.strip_prefix(pool.mount_point.as_str()).is_some_and(|rest| rest.starts_with('/'))
}
