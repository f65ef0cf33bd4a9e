//! What a guest finds when it boots: init, busybox, the kernel's modules, our programs, and the tools that the node
//! plugin calls, which are this machine's own with their libraries.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::artifacts::{Artifacts, Kernel};
use super::cpio::Archive;
use super::modules;

/// What guests need of a kernel, target and initiators alike.
const MODULES: &[&str] = &[
    "configfs",
    "loop",
    "nvmet",
    "nvmet-tcp",
    "nvme-fabrics",
    "nvme-tcp",
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "ext4",
    "xfs",
];

/// The tools, by the package that has them.
const TOOLS: &[(&str, &[&str])] = &[
    ("mount", &["mount", "umount", "losetup"]),
    ("util-linux", &["blkid", "blockdev", "findmnt", "flock", "wipefs"]),
    ("e2fsprogs", &["mkfs.ext4", "e2fsck", "fsck.ext4", "resize2fs", "dumpe2fs", "tune2fs"]),
    ("xfsprogs", &["mkfs.xfs", "xfs_growfs", "xfs_repair", "xfs_io"]),
];

/// Where tools are, in the order in which they are looked for.
const TOOL_PATH: &[&str] = &["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Settings that tools read.
const SETTINGS: &[&str] = &["/etc/mke2fs.conf"];

const INIT: &str = include_str!("../../vm/init.sh");

/// Writes the initial RAM disk for `kernel` to `path`.
pub(super) fn write(artifacts: &Artifacts, kernel: Kernel, path: &Path) -> Result<()> {
    let scratch = path.parent().context("an initial RAM disk needs a directory")?;
    let mut archive = Archive::default();
    archive.add("init", INIT.as_bytes());
    archive.add("bin/busybox", &read(&artifacts.busybox())?);
    for program in ["rds-csi", "vm-agent"] {
        archive.add(&format!("bin/{program}"), &read(&artifacts.program(program))?);
    }
    let modules = modules::in_order(&artifacts.modules(kernel)?, MODULES, scratch)?;
    for module in &modules {
        archive.add(&format!("modules/{}.ko", module.name), &module.content);
    }
    let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    archive.add("modules/order", order.as_bytes());
    for file in tools()? {
        let name = file.display().to_string();
        archive.add(name.trim_start_matches('/'), &read(&file)?);
    }
    fs::write(path, archive.finish()).with_context(|| format!("write {}", path.display()))
}

/// Every tool, what it links against, and what it reads. A missing tool is an error.
fn tools() -> Result<BTreeSet<PathBuf>> {
    let mut files: BTreeSet<PathBuf> = SETTINGS.iter().map(PathBuf::from).collect();
    for (package, names) in TOOLS {
        for name in *names {
            let tool = TOOL_PATH.iter().map(|directory| Path::new(directory).join(name));
            let tool = tool.into_iter().find(|path| path.is_file());
            let tool =
                tool.with_context(|| format!("{name} is missing: install {package} (tests/all does)"))?;
            files.extend(libraries(&tool)?);
            files.insert(tool);
        }
    }
    Ok(files)
}

/// The shared libraries of a program, the loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    ensure!(output.status.success(), "ldd {}: {}", program.display(), output.status);
    Ok(linked(&String::from_utf8_lossy(&output.stdout)))
}

/// The files in what `ldd` prints: `name => path (address)`, or `path (address)`.
fn linked(text: &str) -> Vec<PathBuf> {
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_is_a_library_too() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibblkid.so.1 => /lib/x86/libblkid.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            linked(text),
            [Path::new("/lib/x86/libblkid.so.1"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
    }
}
