//! Text to commands.

use super::ast::{
    Block, Command, Expression, Filter, FilterOperator, Function, Menu, MenuCommand, Operator, Verb,
};
use super::scan::{Scanner, SyntaxError};

/// Deepest nesting of blocks, brackets and parentheses: more is a syntax error, not a stack overflow.
const MAX_DEPTH: usize = 32;

/// Characters that end a word which is not quoted.
const WORD_ENDS: &[char] = &[' ', '\t', '\r', '\n', ';', ']', '}', ')', '(', '[', '{', '"', '$'];

/// Parses a whole script. `knows_serialize` says whether `:serialize` is a command on this appliance.
pub(super) fn parse(text: &str, knows_serialize: bool) -> Result<Block, SyntaxError> {
    let mut parser = Parser { scanner: Scanner::new(text), knows_serialize, depth: 0 };
    let block = parser.block()?;
    match parser.scanner.peek() {
        None => Ok(block),
        Some(_) => Err(parser.scanner.syntax_error()),
    }
}

struct Parser {
    scanner: Scanner,
    knows_serialize: bool,
    depth: usize,
}

impl Parser {
    /// Commands up to a closing brace or the end of the text.
    fn block(&mut self) -> Result<Block, SyntaxError> {
        let mut commands = Vec::new();
        loop {
            self.scanner.skip_separators();
            if matches!(self.scanner.peek(), None | Some('}')) {
                return Ok(commands);
            }
            commands.push(self.command(None)?);
            self.scanner.skip_spaces();
            if !matches!(self.scanner.peek(), None | Some(';' | '\r' | '\n' | '}')) {
                return Err(self.scanner.end_expected(self.scanner.position()));
            }
        }
    }

    fn braced(&mut self) -> Result<Block, SyntaxError> {
        self.scanner.require("{")?;
        self.deeper()?;
        let block = self.block()?;
        self.depth -= 1;
        self.scanner.require("}")?;
        Ok(block)
    }

    fn deeper(&mut self) -> Result<(), SyntaxError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(self.scanner.syntax_error()) } else { Ok(()) }
    }

    /// One command; `menu` is the one around it, which a bare verb such as `find` belongs to.
    fn command(&mut self, menu: Option<Menu>) -> Result<Command, SyntaxError> {
        match self.scanner.peek() {
            Some('{') => self.braced().map(Command::Block),
            Some(':') => self.global(menu),
            Some('/') => {
                let menu = self.menu()?;
                self.scanner.skip_spaces();
                self.scanner.take("/");
                self.verb(menu)
            }
            Some(_) => match menu {
                Some(menu) => self.verb(menu),
                None => {
                    let at = self.scanner.position();
                    let name = self.scanner.name();
                    Err(if name.is_empty() {
                        self.scanner.syntax_error()
                    } else {
                        self.scanner.bad_command(&name, at)
                    })
                }
            },
            None => Err(self.scanner.syntax_error()),
        }
    }

    /// `:name arguments`.
    fn global(&mut self, menu: Option<Menu>) -> Result<Command, SyntaxError> {
        self.scanner.require(":")?;
        let at = self.scanner.position();
        let name = self.scanner.name();
        self.scanner.skip_spaces();
        Ok(match name.as_str() {
            "local" | "set" | "global" => {
                let name = self.scanner.run(|c| c.is_ascii_alphanumeric());
                if name.is_empty() {
                    return Err(self.scanner.syntax_error());
                }
                self.scanner.skip_spaces();
                Command::Assign { name, value: self.term(menu)? }
            }
            "if" => self.condition(menu)?,
            "error" => Command::Error(self.term(menu)?),
            "put" => Command::Put(self.term(menu)?),
            "len" => Command::Function(Function::Length(self.term(menu)?)),
            "tonum" => Command::Function(Function::ToNumber(self.term(menu)?)),
            "tostr" => Command::Function(Function::ToText(self.term(menu)?)),
            "typeof" => Command::Function(Function::TypeOf(self.term(menu)?)),
            "serialize" if self.knows_serialize => self.serialize(menu)?,
            unknown => return Err(self.scanner.bad_command(unknown, at)),
        })
    }

    fn condition(&mut self, menu: Option<Menu>) -> Result<Command, SyntaxError> {
        let condition = self.term(menu)?;
        self.scanner.skip_blank();
        self.scanner.require("do=")?;
        let then = self.braced()?;
        let end = self.scanner.position();
        self.scanner.skip_blank();
        let otherwise = if self.scanner.take("else=") {
            self.braced()?
        } else {
            self.scanner.go_to(end);
            Vec::new()
        };
        Ok(Command::If { condition, then, otherwise })
    }

    fn serialize(&mut self, menu: Option<Menu>) -> Result<Command, SyntaxError> {
        let (mut value, mut keep_strings) = (None, false);
        loop {
            self.scanner.skip_spaces();
            let at = self.scanner.position();
            match self.scanner.name().as_str() {
                "to" if self.scanner.take("=json") => {}
                "value" if self.scanner.take("=") => value = Some(self.term(menu)?),
                "options" if self.scanner.take("=") => {
                    keep_strings = self.scanner.name().split(',').any(|o| o == "json.no-string-conversion");
                }
                "" => break,
                _ => return Err(self.scanner.end_expected(at)),
            }
        }
        let value = value.ok_or_else(|| self.scanner.syntax_error())?;
        Ok(Command::Function(Function::Serialize { value, keep_strings }))
    }

    /// `/menu` or `/menu submenu`.
    fn menu(&mut self) -> Result<Menu, SyntaxError> {
        self.scanner.require("/")?;
        let at = self.scanner.position();
        match self.scanner.name().as_str() {
            "disk" => Ok(Menu::Disk),
            "file" => Ok(Menu::File),
            "system" => {
                self.scanner.skip_spaces();
                self.scanner.take("/");
                let at = self.scanner.position();
                match self.scanner.name().as_str() {
                    "script" => Ok(Menu::SystemScript),
                    "identity" => Ok(Menu::SystemIdentity),
                    "resource" => Ok(Menu::SystemResource),
                    unknown => Err(self.scanner.bad_command(unknown, at)),
                }
            }
            unknown => Err(self.scanner.bad_command(unknown, at)),
        }
    }

    /// `verb arguments` of `menu`.
    fn verb(&mut self, menu: Menu) -> Result<Command, SyntaxError> {
        let at = self.scanner.position();
        let name = self.scanner.name();
        let verb = match (name.as_str(), menu) {
            ("print", _) => Verb::Print,
            ("get", _) => Verb::Get,
            ("add", Menu::Disk | Menu::SystemScript) => Verb::Add,
            ("set", Menu::Disk | Menu::SystemScript) => Verb::Set,
            ("remove", Menu::Disk | Menu::File | Menu::SystemScript) => Verb::Remove,
            ("find", Menu::Disk | Menu::File | Menu::SystemScript) => Verb::Find,
            _ => return Err(self.scanner.bad_command(&name, at)),
        };
        let mut command = MenuCommand { menu, verb, named: Vec::new(), positional: Vec::new(), filter: None };
        loop {
            self.scanner.skip_spaces();
            let at = self.scanner.position();
            match self.scanner.peek() {
                None | Some(';' | '\r' | '\n' | ']' | '}' | ')') => return Ok(Command::Menu(command)),
                Some('[' | '(' | '"' | '$') => command.positional.push(self.term(Some(menu))?),
                Some(_) => {
                    if self.scanner.take_word("where") {
                        command.filter = Some(self.filter_or(menu)?);
                        continue;
                    }
                    let name = self.scanner.name();
                    if name.is_empty() {
                        return Err(self.scanner.syntax_error());
                    }
                    let after = self.scanner.position();
                    if verb == Verb::Find && matches!(self.scanner.peek(), Some('=' | '~' | '!')) {
                        self.scanner.go_to(at);
                        command.filter = Some(self.filter_or(menu)?);
                    } else if self.scanner.take("=") {
                        if !takes(menu, verb, &name) {
                            return Err(self.scanner.end_expected(at));
                        }
                        command.named.push((name, self.term(Some(menu))?));
                    } else {
                        self.scanner.go_to(after);
                        command.positional.push(Expression::Word(name));
                    }
                }
            }
        }
    }

    fn filter_or(&mut self, menu: Menu) -> Result<Filter, SyntaxError> {
        self.deeper()?;
        let mut left = self.filter_and(menu)?;
        loop {
            self.scanner.skip_spaces();
            if !(self.scanner.take("||") || self.scanner.take_word("or")) {
                self.depth -= 1;
                return Ok(left);
            }
            left = Filter::Or(Box::new(left), Box::new(self.filter_and(menu)?));
        }
    }

    fn filter_and(&mut self, menu: Menu) -> Result<Filter, SyntaxError> {
        let mut left = self.filter_term(menu)?;
        loop {
            self.scanner.skip_spaces();
            let joined = self.scanner.take("&&") || self.scanner.take_word("and");
            let at = self.scanner.position();
            if !joined {
                // Conditions that stand side by side must all hold.
                let next =
                    !self.scanner.take_word("or") && self.scanner.peek().is_some_and(char::is_alphabetic);
                self.scanner.go_to(at);
                if !next {
                    return Ok(left);
                }
            }
            left = Filter::And(Box::new(left), Box::new(self.filter_term(menu)?));
        }
    }

    fn filter_term(&mut self, menu: Menu) -> Result<Filter, SyntaxError> {
        self.scanner.skip_spaces();
        if self.scanner.take("!") {
            return Ok(Filter::Not(Box::new(self.filter_term(menu)?)));
        }
        if self.scanner.take("(") {
            let inner = self.filter_or(menu)?;
            self.scanner.skip_spaces();
            self.scanner.require(")")?;
            return Ok(inner);
        }
        let key = self.scanner.name();
        if key.is_empty() {
            return Err(self.scanner.syntax_error());
        }
        let operator = if self.scanner.take("!=") {
            FilterOperator::NotEqual
        } else if self.scanner.take("=") {
            FilterOperator::Equal
        } else if self.scanner.take("~") {
            FilterOperator::Matches
        } else {
            return Err(self.scanner.syntax_error());
        };
        Ok(Filter::Compare { key, operator, value: self.term(Some(menu))? })
    }

    /// A value as it stands in an argument.
    fn term(&mut self, menu: Option<Menu>) -> Result<Expression, SyntaxError> {
        match self.scanner.peek() {
            Some('"') => self.scanner.quoted().map(Expression::Quoted),
            Some('$') => {
                self.scanner.next();
                let name = self.scanner.run(|c| c.is_ascii_alphanumeric());
                if name.is_empty() {
                    Err(self.scanner.syntax_error())
                } else {
                    Ok(Expression::Variable(name))
                }
            }
            Some('[') => {
                self.scanner.next();
                self.deeper()?;
                self.scanner.skip_blank();
                let command = self.command(menu)?;
                self.scanner.skip_blank();
                self.depth -= 1;
                self.scanner.require("]")?;
                Ok(Expression::Substitution(Box::new(command)))
            }
            Some('(') => {
                self.scanner.next();
                self.deeper()?;
                let value = self.expression(menu, 0)?;
                self.scanner.skip_blank();
                self.depth -= 1;
                self.scanner.require(")")?;
                Ok(value)
            }
            Some(_) => {
                let word = self.scanner.run(|c| !WORD_ENDS.contains(&c));
                if word.is_empty() { Err(self.scanner.syntax_error()) } else { Ok(Expression::Word(word)) }
            }
            None => Err(self.scanner.syntax_error()),
        }
    }

    /// An expression in parentheses; `weakest` is the level of the weakest operator that it may take.
    fn expression(&mut self, menu: Option<Menu>, weakest: usize) -> Result<Expression, SyntaxError> {
        let Some(operators) = OPERATORS.get(weakest) else { return self.operand(menu) };
        let mut left = self.expression(menu, weakest + 1)?;
        loop {
            self.scanner.skip_blank();
            let taken = operators.iter().find(|(text, _)| {
                if text.starts_with(char::is_alphabetic) {
                    self.scanner.take_word(text)
                } else {
                    self.scanner.take(text)
                }
            });
            let Some((_, operator)) = taken else { return Ok(left) };
            let right = self.expression(menu, weakest + 1)?;
            left = Expression::Binary { operator: *operator, left: Box::new(left), right: Box::new(right) };
        }
    }

    fn operand(&mut self, menu: Option<Menu>) -> Result<Expression, SyntaxError> {
        self.scanner.skip_blank();
        if self.scanner.take("!") {
            self.deeper()?;
            let value = self.operand(menu)?;
            self.depth -= 1;
            return Ok(Expression::Not(Box::new(value)));
        }
        if matches!(self.scanner.peek(), Some('"' | '$' | '[' | '(')) {
            return self.term(menu);
        }
        let word = self.scanner.run(|c| c.is_ascii_alphanumeric());
        if word.is_empty() { Err(self.scanner.syntax_error()) } else { Ok(Expression::Word(word)) }
    }
}

/// Operators from the weakest level to the strongest; within a level the longer text first.
const OPERATORS: &[&[(&str, Operator)]] = &[
    &[("||", Operator::Or), ("or", Operator::Or)],
    &[("&&", Operator::And), ("and", Operator::And)],
    &[
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("!=", Operator::NotEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
        ("=", Operator::Equal),
        ("~", Operator::Matches),
    ],
    &[(".", Operator::Concatenate), ("+", Operator::Add), ("-", Operator::Subtract)],
];

/// Whether `verb` in `menu` takes the argument `name=`.
fn takes(menu: Menu, verb: Verb, name: &str) -> bool {
    const DISK: &[&str] = &[
        "type",
        "file-path",
        "file-size",
        "slot",
        "mount-filesystem",
        "compress",
        "nvme-tcp-export",
        "nvme-tcp-server-port",
        "nvme-tcp-server-nqn",
    ];
    match (menu, verb) {
        (Menu::Disk, Verb::Add | Verb::Set) => DISK.contains(&name),
        (Menu::SystemScript, Verb::Add | Verb::Set) => ["name", "source"].contains(&name),
        (_, Verb::Get) => name == "value-name",
        _ => false,
    }
}
