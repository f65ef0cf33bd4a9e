//! Commands to effects on the simulated appliance, and text.

use std::collections::BTreeMap;

use super::ast::{
    Block, Command, Expression, Filter, FilterOperator, Function, Menu, MenuCommand, Operator, Piece, Verb,
};
use super::parse::parse;
use super::value::Value;
use crate::appliance::{Appliance, Item};
use crate::config::SimulatorConfig;
use crate::log::Effect;
use crate::print;

/// What a script did and said.
#[derive(Debug, Default)]
pub(crate) struct Evaluation {
    /// What it printed, lines ended by CRLF.
    pub(crate) output: String,
    /// The error that stopped it.
    pub(crate) error: Option<String>,
    /// What it changed, in order.
    pub(crate) effects: Vec<Effect>,
}

/// A fault that strikes in the middle of a script.
#[derive(Debug, Clone, Default)]
pub(crate) enum Interference {
    /// None.
    #[default]
    Nothing,
    /// The first disk that is added is added without its export, and the script stops there.
    HalfDone,
    /// The first change to disks or files fails with these words.
    Fail(String),
}

/// Runs `text`; the caller holds the appliance's lock, so that scripts run one after the other.
pub(crate) fn run(
    text: &str,
    appliance: &mut Appliance,
    config: &SimulatorConfig,
    interference: Interference,
) -> Evaluation {
    let mut evaluator = Evaluator {
        appliance,
        config,
        interference,
        variables: BTreeMap::new(),
        evaluation: Evaluation::default(),
    };
    let outcome = match parse(text, config.knows_serialize) {
        Ok(block) => evaluator.block(&block),
        Err(words) => Err(words),
    };
    Evaluation { error: outcome.err(), ..evaluator.evaluation }
}

/// The words of the error that stops a script.
type Stop = String;

struct Evaluator<'a> {
    appliance: &'a mut Appliance,
    config: &'a SimulatorConfig,
    interference: Interference,
    variables: BTreeMap<String, Value>,
    evaluation: Evaluation,
}

impl Evaluator<'_> {
    fn block(&mut self, block: &Block) -> Result<(), Stop> {
        block.iter().try_for_each(|command| self.command(command).map(drop))
    }

    fn command(&mut self, command: &Command) -> Result<Value, Stop> {
        match command {
            Command::Assign { name, value } => {
                let value = self.value(value)?;
                self.variables.insert(name.clone(), value);
            }
            Command::If { condition, then, otherwise } => match self.value(condition)? {
                Value::Bool(true) => self.block(then)?,
                Value::Bool(false) => self.block(otherwise)?,
                Value::Nothing | Value::Number(_) | Value::Text(_) | Value::List(_) | Value::Record(_) => {
                    return Err("conditional not boolean".to_owned());
                }
            },
            Command::Error(message) => return Err(self.value(message)?.to_text()),
            Command::Put(value) => {
                let text = self.value(value)?.to_text();
                self.evaluation.output.push_str(&text);
                self.evaluation.output.push_str("\r\n");
            }
            Command::Block(block) => self.block(block)?,
            Command::Function(function) => return self.function(function),
            Command::Menu(command) => return self.menu(command),
        }
        Ok(Value::Nothing)
    }

    fn function(&mut self, function: &Function) -> Result<Value, Stop> {
        Ok(match function {
            Function::Length(value) => Value::Number(self.value(value)?.length()),
            Function::ToNumber(value) => self.value(value)?.to_number().map_or(Value::Nothing, Value::Number),
            Function::ToText(value) => Value::Text(self.value(value)?.to_text()),
            Function::TypeOf(value) => Value::Text(self.value(value)?.type_name().to_owned()),
            Function::Serialize { value, keep_strings } => {
                Value::Text(self.value(value)?.to_json(*keep_strings, self.config.fractional_json_numbers))
            }
        })
    }

    fn value(&mut self, expression: &Expression) -> Result<Value, Stop> {
        match expression {
            Expression::Word(word) => Ok(match word.as_str() {
                "true" | "yes" => Value::Bool(true),
                "false" | "no" => Value::Bool(false),
                other => other.parse().map_or_else(|_| Value::Text(other.to_owned()), Value::Number),
            }),
            Expression::Quoted(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(piece) => text.push_str(piece),
                        Piece::Variable(name) => text.push_str(&self.variable(name).to_text()),
                    }
                }
                Ok(Value::Text(text))
            }
            Expression::Variable(name) => Ok(self.variable(name)),
            Expression::Substitution(command) => self.command(command),
            Expression::Not(value) => match self.value(value)? {
                Value::Bool(value) => Ok(Value::Bool(!value)),
                other @ (Value::Nothing
                | Value::Number(_)
                | Value::Text(_)
                | Value::List(_)
                | Value::Record(_)) => Err(format!("cannot negate {}", other.type_name())),
            },
            Expression::Binary { operator, left, right } => {
                let left = self.value(left)?;
                let right = self.value(right)?;
                binary(*operator, &left, &right)
            }
        }
    }

    fn variable(&self, name: &str) -> Value {
        self.variables.get(name).cloned().unwrap_or(Value::Nothing)
    }

    fn menu(&mut self, command: &MenuCommand) -> Result<Value, Stop> {
        match command.verb {
            Verb::Find => {
                let found = self.matching(command)?;
                Ok(Value::List(found.into_iter().map(|item| Value::Text(item.id)).collect()))
            }
            Verb::Print => self.print(command),
            Verb::Get => self.get(command),
            Verb::Add => {
                let arguments = self.arguments(command)?;
                if command.menu == Menu::SystemScript {
                    let effect = self.appliance.add_script(&arguments)?;
                    self.evaluation.effects.push(effect);
                    return Ok(Value::Nothing);
                }
                self.fail_if_told()?;
                let half_done = matches!(self.interference, Interference::HalfDone);
                let effect = self.appliance.add_disk(&arguments, !half_done)?;
                self.evaluation.effects.push(effect);
                if half_done { Err("simulated: half done".to_owned()) } else { Ok(Value::Nothing) }
            }
            Verb::Set | Verb::Remove => {
                let arguments = self.arguments(command)?;
                for id in self.targets(command)? {
                    if command.menu != Menu::SystemScript {
                        self.fail_if_told()?;
                    }
                    let effect = match (command.menu, command.verb) {
                        (Menu::SystemScript, Verb::Set) => self.appliance.set_script(&id, &arguments)?,
                        (Menu::SystemScript, _) => self.appliance.remove_script(&id)?,
                        (Menu::Disk, Verb::Set) => self.appliance.set_disk(&id, &arguments)?,
                        (Menu::Disk, _) => self.appliance.remove_disk(&id)?,
                        (Menu::File | Menu::SystemIdentity | Menu::SystemResource, _) => {
                            self.appliance.remove_file(&id)?
                        }
                    };
                    self.evaluation.effects.push(effect);
                }
                Ok(Value::Nothing)
            }
        }
    }

    fn fail_if_told(&mut self) -> Result<(), Stop> {
        match &self.interference {
            Interference::Fail(words) => Err(words.clone()),
            Interference::Nothing | Interference::HalfDone => Ok(()),
        }
    }

    fn arguments(&mut self, command: &MenuCommand) -> Result<BTreeMap<String, Value>, Stop> {
        command.named.iter().map(|(key, value)| Ok((key.clone(), self.value(value)?))).collect()
    }

    /// The ids that the positional arguments of `command` name.
    fn targets(&mut self, command: &MenuCommand) -> Result<Vec<String>, Stop> {
        let mut ids = Vec::new();
        for argument in &command.positional {
            match self.value(argument)? {
                Value::List(values) => ids.extend(values.iter().map(Value::to_text)),
                Value::Text(id) if id.starts_with('*') => ids.push(id),
                Value::Nothing | Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::Record(_) => {}
            }
        }
        Ok(ids)
    }

    fn matching(&mut self, command: &MenuCommand) -> Result<Vec<Item>, Stop> {
        let mut found = Vec::new();
        for item in self.appliance.items(command.menu) {
            let holds = match &command.filter {
                Some(filter) => self.holds(filter, &item)?,
                None => true,
            };
            if holds {
                found.push(item);
            }
        }
        Ok(found)
    }

    fn holds(&mut self, filter: &Filter, item: &Item) -> Result<bool, Stop> {
        Ok(match filter {
            Filter::And(left, right) => self.holds(left, item)? && self.holds(right, item)?,
            Filter::Or(left, right) => self.holds(left, item)? || self.holds(right, item)?,
            Filter::Not(inner) => !self.holds(inner, item)?,
            Filter::Compare { key, operator, value } => {
                let wanted = self.value(value)?;
                let found = item.value(key).unwrap_or(Value::Nothing);
                match operator {
                    FilterOperator::Equal => found.equals(&wanted),
                    FilterOperator::NotEqual => !found.equals(&wanted),
                    FilterOperator::Matches => found.to_text().contains(&wanted.to_text()),
                }
            }
        })
    }

    fn print(&mut self, command: &MenuCommand) -> Result<Value, Stop> {
        let items = self.matching(command)?;
        let words = |word: &str| {
            command.positional.iter().any(|e| matches!(e, Expression::Word(found) if found == word))
        };
        if words("as-value") {
            return Ok(Value::List(items.iter().map(Item::record).collect()));
        }
        let text = print::human(command.menu, &items, &self.config.print_style);
        self.evaluation.output.push_str(&text);
        Ok(Value::Nothing)
    }

    fn get(&mut self, command: &MenuCommand) -> Result<Value, Stop> {
        let no_such_item = || "no such item".to_owned();
        let ids = self.targets(command)?;
        let id = ids.first().ok_or_else(no_such_item)?;
        let item =
            self.appliance.items(command.menu).into_iter().find(|i| i.id == *id).ok_or_else(no_such_item)?;
        let property = match command.positional.last() {
            Some(Expression::Word(name)) => name.clone(),
            _ => return Ok(item.record()),
        };
        Ok(item.value(&property).unwrap_or(Value::Nothing))
    }
}

fn binary(operator: Operator, left: &Value, right: &Value) -> Result<Value, Stop> {
    let numbers = |apply: fn(i64, i64) -> Value| match (left, right) {
        (Value::Number(left), Value::Number(right)) => Ok(apply(*left, *right)),
        _ => Err(format!("cannot compute with {} and {}", left.type_name(), right.type_name())),
    };
    let booleans = |apply: fn(bool, bool) -> bool| match (left, right) {
        (Value::Bool(left), Value::Bool(right)) => Ok(Value::Bool(apply(*left, *right))),
        _ => Err(format!("cannot combine {} and {}", left.type_name(), right.type_name())),
    };
    match operator {
        Operator::Or => booleans(|l, r| l || r),
        Operator::And => booleans(|l, r| l && r),
        Operator::Equal => Ok(Value::Bool(left == right)),
        Operator::NotEqual => Ok(Value::Bool(left != right)),
        Operator::Less => numbers(|l, r| Value::Bool(l < r)),
        Operator::LessOrEqual => numbers(|l, r| Value::Bool(l <= r)),
        Operator::Greater => numbers(|l, r| Value::Bool(l > r)),
        Operator::GreaterOrEqual => numbers(|l, r| Value::Bool(l >= r)),
        Operator::Matches => Ok(Value::Bool(left.to_text().contains(&right.to_text()))),
        Operator::Concatenate => Ok(Value::Text(left.to_text() + &right.to_text())),
        Operator::Add => numbers(|l, r| Value::Number(l.saturating_add(r))),
        Operator::Subtract => numbers(|l, r| Value::Number(l.saturating_sub(r))),
    }
}
