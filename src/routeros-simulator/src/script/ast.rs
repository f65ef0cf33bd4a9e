//! What a script is made of.

/// Commands in order.
pub(crate) type Block = Vec<Command>;

/// One command.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// `:local name value` or `:set name value`.
    Assign { name: String, value: Expression },
    /// `:if (condition) do={ } else={ }`.
    If { condition: Expression, then: Block, otherwise: Block },
    /// `:error message`.
    Error(Expression),
    /// `:put value`.
    Put(Expression),
    /// `{ ... }`.
    Block(Block),
    /// A function used as a command; its value is dropped.
    Function(Function),
    /// A command of a menu, such as `/disk add`.
    Menu(MenuCommand),
}

/// A global function that yields a value.
#[derive(Debug, Clone)]
pub(crate) enum Function {
    /// `:len value`.
    Length(Expression),
    /// `:tonum value`.
    ToNumber(Expression),
    /// `:tostr value`.
    ToText(Expression),
    /// `:typeof value`.
    TypeOf(Expression),
    /// `:serialize to=json value=... options=...`.
    Serialize { value: Expression, keep_strings: bool },
}

/// The menus of the simulated appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Menu {
    Disk,
    File,
    SystemScript,
    SystemIdentity,
    SystemResource,
}

/// What a menu can be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Set,
    Remove,
    Print,
    Get,
    Find,
}

/// `/menu verb arguments`.
#[derive(Debug, Clone)]
pub(crate) struct MenuCommand {
    pub(crate) menu: Menu,
    pub(crate) verb: Verb,
    /// `key=value` arguments in order.
    pub(crate) named: Vec<(String, Expression)>,
    /// The others: items, flags such as `detail`, property names.
    pub(crate) positional: Vec<Expression>,
    /// The condition after `where`.
    pub(crate) filter: Option<Filter>,
}

/// A condition on the items of a menu.
#[derive(Debug, Clone)]
pub(crate) enum Filter {
    /// `key=value`, `key!=value`, `key~value`.
    Compare {
        key: String,
        operator: FilterOperator,
        value: Expression,
    },
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
    Not(Box<Filter>),
}

/// How a [`Filter`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FilterOperator {
    Equal,
    NotEqual,
    /// `~`: contains. Anchors and other regular expressions are not simulated: on hardware they broke matching.
    Matches,
}

/// What yields a value.
#[derive(Debug, Clone)]
pub(crate) enum Expression {
    /// A word or number that was not quoted.
    Word(String),
    /// A quoted string with its variables.
    Quoted(Vec<Piece>),
    /// `$name`.
    Variable(String),
    /// `[command]`.
    Substitution(Box<Command>),
    /// `!value`.
    Not(Box<Expression>),
    /// Two values and an operator between them.
    Binary { operator: Operator, left: Box<Expression>, right: Box<Expression> },
}

/// A piece of a quoted string.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    Text(String),
    Variable(String),
}

/// Operators between values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Matches,
    Concatenate,
    Add,
    Subtract,
}
