//! Parameters of requests, inputs and outputs: entries of `map<string, InferParameter>`.

use crate::grpc::wire::{Fields, Value};
use crate::mt1::DaemonError;
use crate::open_inference::refusals;

/// The value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Parameter<'a> {
    None,
    Bool(bool),
    Integer(i128),
    Double(f64),
    Text(&'a str),
}

/// Reads an entry of `map<string, InferParameter>`.
pub fn decode(entry: &[u8]) -> Result<(&str, Parameter<'_>), DaemonError> {
    let (mut name, mut parameter) = ("", Parameter::None);
    let mut fields = Fields::new(entry);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => name = value.text()?,
            2 => {
                let mut choice = Fields::new(value.slice()?);
                while let Some((number, value)) = choice.next_field()? {
                    parameter = match (number, value) {
                        (1, Value::Varint(number)) => Parameter::Bool(number != 0),
                        (2, Value::Varint(number)) => Parameter::Integer(i128::from(number as i64)),
                        (3, value) => Parameter::Text(value.text()?),
                        (4, Value::Fixed64(bits)) => Parameter::Double(f64::from_bits(bits)),
                        (5, Value::Varint(number)) => Parameter::Integer(i128::from(number)),
                        _ => parameter,
                    };
                }
            }
            _ => {}
        }
    }
    Ok((name, parameter))
}

/// Returns the integer of a parameter that must be one from 0 on.
pub fn whole_number(name: &str, parameter: Parameter) -> Result<u64, DaemonError> {
    let number = match parameter {
        Parameter::Integer(number) => u64::try_from(number).ok(),
        // Some clients send all parameters as text.
        Parameter::Text(text) => text.parse().ok(),
        _ => None,
    };
    let number = number.filter(|&number| i64::try_from(number).is_ok());
    number.ok_or_else(|| refusals::not_an_integer(&format!("parameters.{name}")))
}

/// Returns the text of a parameter that must be a string.
pub fn text<'a>(name: &str, parameter: Parameter<'a>) -> Result<&'a str, DaemonError> {
    match parameter {
        Parameter::Text(text) => Ok(text),
        _ => Err(refusals::wrong(&format!("parameters.{name}"), "a string")),
    }
}
