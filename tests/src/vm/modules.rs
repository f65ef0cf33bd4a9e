//! A kernel's modules: which are needed for some wanted ones, and in which order they load.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A module, ready to be loaded.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The modules below `directory` (`lib/modules/VERSION`) that `wanted` need, in the order in which they load. What the
/// kernel has built in is left out; a name that it does not know at all is an error.
pub(super) fn in_order(directory: &Path, wanted: &[&str], scratch: &Path) -> Result<Vec<Module>> {
    let list = directory.join("modules.builtin");
    let builtin = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let mut search = Search {
        files: BTreeMap::new(),
        builtin: builtin.lines().filter_map(|line| module_name(Path::new(line))).collect(),
        scratch,
        found: Vec::new(),
    };
    collect(&directory.join("kernel"), &mut search.files)?;
    for name in wanted {
        search.add(name)?;
    }
    Ok(search.found)
}

struct Search<'a> {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
    scratch: &'a Path,
    found: Vec<Module>,
}

impl Search<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || self.found.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let file = self.files.get(&name).with_context(|| format!("the kernel has no module {name}"))?;
        let content = read(file, self.scratch)?;
        for needed in dependencies(&content) {
            self.add(&needed)?;
        }
        self.found.push(Module { name, content });
        Ok(())
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `nvme_tcp` of `kernel/drivers/nvme/host/nvme-tcp.ko.xz`. The kernel itself makes no difference of `-` and `_`.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// A module as it is loaded: not compressed, and without what only debuggers read.
fn read(file: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let plain = scratch.join("module.ko");
    if file.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output();
        let output = output.context("run xz; tests/all installs it")?;
        ensure!(output.status.success(), "xz {}: {}", file.display(), output.status);
        fs::write(&plain, output.stdout)?;
    } else {
        fs::copy(file, &plain)?;
    }
    let status = Command::new("strip").arg("--strip-debug").arg(&plain).status().context("run strip")?;
    ensure!(status.success(), "strip {}: {status}", file.display());
    Ok(fs::read(plain)?)
}

/// What a module says it needs: `depends=a,b` in its section of plain text.
fn dependencies(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = content.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let rest = &content[start + KEY.len()..];
    let line = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(line);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        let content = b"\x7fELF\0license=GPL\0depends=nvmet,nvme-fabrics\0retpoline=Y\0";
        assert_eq!(dependencies(content), ["nvmet", "nvme-fabrics"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"license=GPL").is_empty());
    }

    #[test]
    fn a_modules_name_is_the_same_in_every_list() {
        let names = ["kernel/a/nvme-tcp.ko", "nvme_tcp.ko.xz"].map(|path| module_name(Path::new(path)));
        assert_eq!(names, [Some("nvme_tcp".to_owned()), Some("nvme_tcp".to_owned())]);
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
