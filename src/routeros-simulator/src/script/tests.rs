//! Scripts as a driver or a person sends them, and what the simulated appliance says.

use super::{Interference, run};
use crate::appliance::{Appliance, Contents};
use crate::backing::Backing;
use crate::config::SimulatorConfig;

const ADD: &str = "/disk add type=file file-path=/storage-pool/a.img file-size=1073741824 slot=pvc-a";

struct Console {
    appliance: Appliance,
    config: SimulatorConfig,
}

impl Console {
    fn new() -> Self {
        let config = SimulatorConfig::default();
        let appliance = Appliance::new(Contents::default(), config.pools.clone(), Backing::new(None));
        Self { appliance, config }
    }

    /// What `text` prints, or the words that stop it.
    fn say(&mut self, text: &str) -> Result<String, String> {
        let evaluation = run(text, &mut self.appliance, &self.config, Interference::Nothing);
        evaluation.error.map_or(Ok(evaluation.output), Err)
    }
}

#[test]
fn expressions() {
    let mut console = Console::new();
    for (text, expected) in [
        (":put hello", "hello"),
        (":put \"a \\\"b\\\" \\$c\"", "a \"b\" $c"),
        (":local n 5; :put \"n=$n!\"", "n=5!"),
        (":put (1 + 2)", "3"),
        (":put (\"a\" . \"b\")", "ab"),
        (":put (3 <= 3)", "true"),
        (":put (4 <= 3 || 1 = 1 && !(2 = 3))", "true"),
        (":put [:tonum \"9223372036854775807\"]", "9223372036854775807"),
        (":put [:typeof [:tonum \"x\"]]", "nil"),
        (":put [:len \"abc\"]", "3"),
        (":if (1 > 2) do={ :put a } else={ :put b }", "b"),
        (":put [:serialize to=json value=\"1\" options=json.no-string-conversion]", "\"1\""),
        (":put [:serialize to=json value=\"1\"]", "1"),
        ("{ :put a; { :put b } }", "a\r\nb"),
    ] {
        assert_eq!(console.say(text), Ok(format!("{expected}\r\n")), "{text}");
    }
}

#[test]
fn what_it_does_not_know_it_says_as_hardware_does() {
    let mut console = Console::new();
    for (text, expected) in [
        ("dsk", "bad command name dsk (line 1 column 1)"),
        ("/dsk print", "bad command name dsk (line 1 column 2)"),
        ("/disk format", "bad command name format (line 1 column 7)"),
        (":nonsense", "bad command name nonsense (line 1 column 2)"),
        ("/disk add typ=file", "expected end of command (line 1 column 11)"),
        (":put a b", "expected end of command (line 1 column 8)"),
        (":put \"a", "syntax error (line 1 column 8)"),
        ("/disk print where", "syntax error (line 1 column 18)"),
        ("{ :put a", "syntax error (line 1 column 9)"),
        (":put a }", "syntax error (line 1 column 8)"),
    ] {
        assert_eq!(console.say(text), Err(expected.to_owned()), "{text}");
    }
    let deep = format!("{}1{}", ":put (".to_owned() + &"(".repeat(9_999), ")".repeat(10_000));
    assert!(console.say(&deep).unwrap_err().starts_with("syntax error"));
    console.config.knows_serialize = false;
    let words = console.say(":put [:serialize to=json value=\"1\"]");
    assert_eq!(words, Err("bad command name serialize (line 1 column 8)".to_owned()));
}

#[test]
fn a_syntax_error_anywhere_has_no_effect_and_an_error_keeps_what_ran() {
    let mut console = Console::new();
    assert!(console.say(&format!("{ADD}; /disk nonsense")).is_err());
    assert_eq!(console.appliance.disks().len(), 0);
    assert_eq!(
        console.say(&format!("{ADD}; :error \"enough\"; /disk remove [find]")),
        Err("enough".to_owned())
    );
    assert_eq!(console.appliance.disks().len(), 1);
}

#[test]
fn disks_behave_as_on_hardware() {
    let mut console = Console::new();
    console.say(ADD).unwrap();
    // The default that corrupts volumes.
    assert!(console.appliance.disks()[0].mount_filesystem);
    assert_eq!(console.say(ADD), Err("failure: file already exists".to_owned()));
    assert_eq!(console.say("/disk set [find slot=none] file-size=5"), Ok(String::new()));
    assert_eq!(console.say("/disk remove [find slot=none]"), Ok(String::new()));
    console.say("/disk set [find slot=pvc-a] file-size=2147483648").unwrap();
    assert_eq!(console.say(":put [/disk get [find slot=pvc-a] size]"), Ok("2147483648\r\n".to_owned()));
    // The disk goes, its file stays.
    console.say("/disk remove [find slot=pvc-a]").unwrap();
    assert_eq!(
        console.say(":put [:len [/file find where name=\"storage-pool/a.img\"]]"),
        Ok("1\r\n".to_owned())
    );
    assert_eq!(console.say(ADD), Err("failure: file already exists".to_owned()));
    console.say("/file remove [find name=\"storage-pool/a.img\"]").unwrap();
    assert!(console.appliance.files().is_empty());
    let huge = ADD.replace("1073741824", "99999999999999");
    assert_eq!(console.say(&huge), Err("not enough space".to_owned()));
}

#[test]
fn conditions_select_items() {
    let mut console = Console::new();
    for name in ["a", "b", "c"] {
        console
            .say(&ADD.replace("a.img", &format!("{name}.img")).replace("pvc-a", &format!("pvc-{name}")))
            .unwrap();
    }
    for (condition, expected) in [
        ("slot=pvc-a", 1),
        ("slot=\"pvc-a\" and file-path=\"/storage-pool/a.img\"", 1),
        ("slot=pvc-a file-path=/storage-pool/b.img", 0),
        ("slot=pvc-a or slot=pvc-b", 2),
        ("slot~\"pvc\"", 3),
        ("slot~\"^pvc\"", 0),
        ("slot!=pvc-a and type=file", 2),
        ("!(slot=pvc-a || slot=pvc-b) && type=file", 1),
        ("mount-filesystem=yes", 3),
        ("nvme-tcp-export=yes", 0),
    ] {
        let text = format!(":put [:len [/disk find where {condition}]]");
        assert_eq!(console.say(&text), Ok(format!("{expected}\r\n")), "{condition}");
    }
}

#[test]
fn the_human_form_has_its_header_over_nothing_too() {
    let mut console = Console::new();
    let printed = console.say("/disk print detail where slot=none").unwrap();
    assert!(
        printed.starts_with("Flags: ") && printed.ends_with("\r\n") && !printed.contains("slot="),
        "{printed}"
    );
    console.say(ADD).unwrap();
    let printed = console.say("/disk print detail where slot=pvc-a").unwrap();
    assert!(printed.contains("size=1 073 741 824\r\n"), "{printed}");
    assert!(printed.contains("file-size=1024.0MiB "), "{printed}");
    assert!(printed.lines().all(|line| line.chars().count() <= 80), "{printed}");
    let json = console
        .say(":put [:serialize to=json value=[/disk print detail as-value where slot=pvc-a]]")
        .unwrap();
    assert!(json.contains("\"size\":1073741824,\"mount-filesystem\":true"), "{json}");
}

#[test]
fn script_objects_keep_text() {
    let mut console = Console::new();
    assert_eq!(console.say("/system script get [find name=f] source"), Err("no such item".to_owned()));
    console.say("/system script add name=\"f\" source=\"0\"").unwrap();
    console.say("/system script set [find where name=\"f\"] source=\"4294967296\"").unwrap();
    let text = ":local f [:tonum [/system script get [find where name=\"f\"] source]]; :put ($f + 1)";
    assert_eq!(console.say(text), Ok("4294967297\r\n".to_owned()));
}
