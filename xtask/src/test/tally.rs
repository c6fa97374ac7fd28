//! How many tests a step ran, read from what the test programs print.

/// Which program's output is read, and so which lines count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Nothing: the step is one check, passed when its exit code is 0.
    Check,
    /// `cargo test`, and test binaries run by hand.
    Cargo,
    /// pytest.
    Pytest,
    /// `node --test`, in its TAP and its `spec` form.
    Node,
}

/// Counts of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Tests that ran and passed.
    pub passed: u64,
    /// Tests that ran and failed.
    pub failed: u64,
    /// Tests that were there and did not run.
    pub ignored: u64,
}

impl Tally {
    /// Adds what one line of output says; lines that say nothing change nothing.
    pub fn read(&mut self, reads: Reads, line: &str) {
        match reads {
            Reads::Check => {}
            Reads::Cargo => self.read_cargo(line),
            Reads::Pytest => self.read_pytest(line),
            Reads::Node => self.read_node(line),
        }
    }

    fn read_cargo(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        for part in counts.split([';', '.']) {
            self.add_worded(part, &["passed"], &["failed"], &["ignored"]);
        }
    }

    // "==== 1 failed, 5 passed, 2 skipped, 1 error in 0.31s ====", or without the bars when quiet.
    fn read_pytest(&mut self, line: &str) {
        let line = line.trim_matches(|c| c == '=' || c == ' ');
        let Some((counts, time)) = line.rsplit_once(" in ") else { return };
        if !time.trim_start().starts_with(|c: char| c.is_ascii_digit()) {
            return;
        }
        let mut read = Tally::default();
        for part in counts.split(',') {
            read.add_worded(
                part,
                &["passed", "xpassed"],
                &["failed", "error", "errors"],
                &["skipped", "xfailed", "deselected"],
            );
        }
        self.add(read);
    }

    // TAP: "# pass 3"; spec: "ℹ pass 3".
    fn read_node(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("# ").or_else(|| line.strip_prefix("ℹ ")) else { return };
        let Some((word, count)) = rest.split_once(' ') else { return };
        let Ok(count) = count.trim().parse::<u64>() else { return };
        match word {
            "pass" => self.passed += count,
            "fail" | "cancelled" => self.failed += count,
            "skipped" | "todo" => self.ignored += count,
            _ => {}
        }
    }

    fn add_worded(&mut self, part: &str, passed: &[&str], failed: &[&str], ignored: &[&str]) {
        let words: Vec<&str> = part.split_whitespace().collect();
        let [count, word] = words[..] else { return };
        let Ok(count) = count.parse::<u64>() else { return };
        if passed.contains(&word) {
            self.passed += count;
        } else if failed.contains(&word) {
            self.failed += count;
        } else if ignored.contains(&word) {
            self.ignored += count;
        }
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// The line without terminal colours.
pub fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            plain.push(c);
            continue;
        }
        // A colour is ESC [ ... letter.
        for c in chars.by_ref() {
            if c.is_ascii_alphabetic() {
                break;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reads: Reads, lines: &[&str], passed: u64, failed: u64, ignored: u64) {
        let mut tally = Tally::default();
        for line in lines {
            tally.read(reads, &plain(line));
        }
        assert_eq!(tally, Tally { passed, failed, ignored });
    }

    #[test]
    fn cargo_results_of_several_binaries_add_up() {
        check(
            Reads::Cargo,
            &[
                "running 3 tests",
                "test a ... ok",
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                "test result: \u{1b}[31mFAILED\u{1b}[0m. 2 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s",
            ],
            5,
            1,
            1,
        );
    }

    #[test]
    fn pytest_counts_errors_as_failed_and_skips_as_ignored() {
        check(Reads::Pytest, &["==== 1 failed, 5 passed, 2 skipped, 1 error in 0.31s ===="], 5, 2, 2);
        check(Reads::Pytest, &["12 passed in 61.00s (0:01:01)"], 12, 0, 0);
        check(Reads::Pytest, &["test_a.py::works in progress", "3 passed in spirit"], 0, 0, 0);
    }

    #[test]
    fn node_counts_are_read_in_both_of_its_forms() {
        check(Reads::Node, &["# tests 4", "# pass 3", "# fail 1", "# skipped 0"], 3, 1, 0);
        check(Reads::Node, &["ℹ tests 3", "ℹ pass 2", "ℹ cancelled 1", "ℹ todo 0", "ℹ duration_ms 12.5"], 2, 1, 0);
    }

    #[test]
    fn a_check_counts_no_lines() {
        check(Reads::Check, &["test result: ok. 3 passed; 0 failed; 1 ignored"], 0, 0, 0);
    }
}
