//! Characters, words and quoted strings of a script, with positions for error messages.

use super::ast::Piece;

/// What the appliance says about a script that it cannot parse.
pub(super) type SyntaxError = String;

/// A position in a script's text.
pub(super) struct Scanner {
    text: Vec<char>,
    position: usize,
}

impl Scanner {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.chars().collect(), position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn go_to(&mut self, position: usize) {
        self.position = position;
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.text.get(self.position).copied()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let found = self.peek()?;
        self.position += 1;
        Some(found)
    }

    /// Skips spaces on the line.
    pub(super) fn skip_spaces(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t')) {
            self.position += 1;
        }
    }

    /// Skips spaces, line ends and `;`: what may stand between commands.
    pub(super) fn skip_separators(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\r' | '\n' | ';')) {
            self.position += 1;
        }
    }

    /// Skips spaces and line ends.
    pub(super) fn skip_blank(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\r' | '\n')) {
            self.position += 1;
        }
    }

    /// Takes `expected` if it comes next.
    pub(super) fn take(&mut self, expected: &str) -> bool {
        let found = expected.chars().enumerate().all(|(i, c)| self.text.get(self.position + i) == Some(&c));
        if found {
            self.position += expected.chars().count();
        }
        found
    }

    /// Takes `word` if it comes next and ends there.
    pub(super) fn take_word(&mut self, word: &str) -> bool {
        let start = self.position;
        if self.take(word) && !self.peek().is_some_and(is_name) {
            return true;
        }
        self.position = start;
        false
    }

    pub(super) fn require(&mut self, expected: &str) -> Result<(), SyntaxError> {
        if self.take(expected) { Ok(()) } else { Err(self.syntax_error()) }
    }

    /// Takes the longest run of characters that `accept` accepts; it may be empty.
    pub(super) fn run(&mut self, accept: impl Fn(char) -> bool) -> String {
        let start = self.position;
        while self.peek().is_some_and(&accept) {
            self.position += 1;
        }
        self.text[start..self.position].iter().collect()
    }

    /// A name: of a command, a property or a variable.
    pub(super) fn name(&mut self) -> String {
        self.run(is_name)
    }

    /// A quoted string, whose opening quote is next.
    pub(super) fn quoted(&mut self) -> Result<Vec<Piece>, SyntaxError> {
        self.require("\"")?;
        let mut pieces = Vec::new();
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err(self.syntax_error()),
                Some('"') => break,
                Some('\\') => match self.next() {
                    Some('r') => text.push('\r'),
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some(c @ ('"' | '\\' | '$' | '?' | '_')) => text.push(c),
                    _ => return Err(self.syntax_error()),
                },
                Some('$') => {
                    let name = self.run(|c| c.is_ascii_alphanumeric());
                    if name.is_empty() {
                        return Err(self.syntax_error());
                    }
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                    pieces.push(Piece::Variable(name));
                }
                Some(c) => text.push(c),
            }
        }
        pieces.push(Piece::Text(text));
        Ok(pieces)
    }

    pub(super) fn syntax_error(&self) -> SyntaxError {
        format!("syntax error ({})", self.place(self.position))
    }

    pub(super) fn end_expected(&self, at: usize) -> SyntaxError {
        format!("expected end of command ({})", self.place(at))
    }

    pub(super) fn bad_command(&self, name: &str, at: usize) -> SyntaxError {
        format!("bad command name {name} ({})", self.place(at))
    }

    fn place(&self, at: usize) -> String {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.iter().filter(|c| **c == '\n').count() + 1;
        let column = before.iter().rev().take_while(|c| **c != '\n').count() + 1;
        format!("line {line} column {column}")
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')
}
