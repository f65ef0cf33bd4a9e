//! How a volume on this node is: CSI 1.12, `VolumeCondition` in "NodeGetVolumeStats".
//!
//! What was seen is put into sentences for whoever reads the events of a pod: what is wrong, and what to do. Nothing
//! here looks at anything.

/// What was seen of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// The path shows what is left of a device that is gone.
    pub(crate) device_gone: bool,
    /// The state of the connection, if I/O does not go through.
    pub(crate) connection_lost: Option<String>,
    /// Why the file system has stopped, if it has.
    pub(crate) stopped: Option<String>,
    /// How many errors the file system has logged since it was last checked.
    pub(crate) logged_errors: u64,
    /// In vain was waited for an answer, in these words.
    pub(crate) no_answer: Option<String>,
}

/// A volume's condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Whether somebody has to look after it.
    pub(crate) abnormal: bool,
    /// Why, and what to do.
    pub(crate) message: String,
}

impl Vitals {
    /// What all that amounts to.
    pub(crate) fn condition(&self) -> Condition {
        let mut problems = Vec::new();
        if self.device_gone {
            problems.push(
                "the device of this path is gone for good: delete the pods that use the volume on this node; it is \
                 connected anew for the next one"
                    .to_owned(),
            );
        }
        if let Some(state) = &self.connection_lost {
            problems.push(format!(
                "the connection to the appliance is {state}, and I/O waits or fails: look after the appliance and \
                 the network to it"
            ));
        }
        if let Some(why) = &self.stopped {
            problems.push(format!(
                "the file system has stopped ({why}): end the pods that use it on this node; it is checked and \
                 mounted anew for the next one"
            ));
        }
        if self.logged_errors > 0 {
            problems.push(format!(
                "the file system has logged {} errors: make a backup, then end the pods that use it on this node; it \
                 is checked before it is mounted again",
                self.logged_errors
            ));
        }
        if let Some(what) = &self.no_answer {
            problems.push(format!("how full it is cannot be said: {what}"));
        }
        if problems.is_empty() {
            return Condition { abnormal: false, message: "connected, and no error is known".to_owned() };
        }
        Condition { abnormal: true, message: problems.join("; ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_wrong_is_said_with_what_to_do() {
        let text = |text: &str| Some(text.to_owned());
        let well = Vitals::default();
        let rows: [(Vitals, &[&str]); 6] = [
            (Vitals { device_gone: true, ..well.clone() }, &["is gone for good", "delete the pods"]),
            (
                Vitals { connection_lost: text("connecting"), ..well.clone() },
                &["is connecting", "look after the appliance"],
            ),
            (
                Vitals { stopped: text("shutdown"), ..well.clone() },
                &["has stopped (shutdown)", "end the pods"],
            ),
            (Vitals { logged_errors: 3, ..well.clone() }, &["has logged 3 errors", "backup"]),
            (Vitals { no_answer: text("5000 ms"), ..well.clone() }, &["cannot be said: 5000 ms"]),
            (
                Vitals { connection_lost: text("dead"), logged_errors: 1, ..well.clone() },
                &["is dead", "; ", "has logged 1 errors"],
            ),
        ];
        for (vitals, words) in rows {
            let Condition { abnormal, message } = vitals.condition();
            assert!(abnormal, "{vitals:?}");
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        assert!(!well.condition().abnormal);
    }
}
