//! The inputs of an inference request and the outputs that it asks for, each an object of its JSON.

use bytes::Bytes;

use super::json_values::{read_boolean, read_string, read_unsigned};
use crate::json::{Decoder, Dialect, Kind, Scanner};
use crate::mt1::{Code, DaemonError, MAX_DIMENSIONS};
use crate::open_inference::refusals::{self, wrong};
use crate::tensor::{Datatype, byte_count, element_count};

/// An input.
#[derive(Debug, PartialEq, Eq)]
pub struct Input {
    pub name: String,
    pub datatype: Datatype,
    pub shape: Vec<i64>,
    pub source: Source,
}

/// Where the data of an input are.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// This many bytes after the JSON, in the order of the inputs.
    Binary(usize),
    /// They were in the JSON.
    Json(Bytes),
}

/// An output that is asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    pub name: String,
    /// Whether it is wanted binary; None: as `binary_data_output` says.
    pub binary: Option<bool>,
}

impl Input {
    /// Reads the input of this number, and decodes the data in it.
    pub fn read(scanner: &mut Scanner<'_>, index: usize) -> Result<Self, DaemonError> {
        let (mut name, mut datatype, mut shape, mut data, mut binary) = (None, None, None, None, None);
        let mut object = scanner.object().map_err(|_| wrong(&format!("inputs[{index}]"), "an object"))?;
        while let Some(key) = scanner.next_key(&mut object)? {
            match &*key {
                "name" => name = Some(read_string(scanner, &format!("inputs[{index}].name"))?),
                "datatype" => {
                    let written = read_string(scanner, &format!("inputs[{index}].datatype"))?;
                    datatype = Some(
                        Datatype::from_name(&written)
                            .ok_or_else(|| refusals::unknown_datatype(&format!("inputs[{index}]"), &written))?,
                    );
                }
                "shape" => shape = Some(read_shape(scanner, index)?),
                "data" => {
                    scanner.kind()?;
                    data = Some(*scanner);
                    scanner.skip()?;
                }
                "parameters" => binary = read_input_parameters(scanner, index)?,
                _ => drop(scanner.skip()?),
            }
        }
        let missing = |what: &str| DaemonError::invalid(format!("inputs[{index}] has no '{what}'"));
        let (name, shape) = (name.ok_or_else(|| missing("name"))?, shape.ok_or_else(|| missing("shape"))?);
        let datatype = datatype.ok_or_else(|| missing("datatype"))?;
        let source = match (data, binary) {
            (None, Some(size)) => Source::Binary(checked_size(&name, datatype, &shape, size)?),
            (Some(data), None) => Source::Json(decode(&name, datatype, &shape, data)?),
            (Some(_), Some(_)) => {
                let message = format!("input '{name}' has both 'data' and 'binary_data_size'");
                return Err(DaemonError::invalid(message));
            }
            (None, None) => {
                let message = format!("input '{name}' has neither 'data' nor 'binary_data_size'");
                return Err(DaemonError::invalid(message));
            }
        };
        Ok(Self { name, datatype, shape, source })
    }
}

impl Output {
    /// Reads the output of this number.
    pub fn read(scanner: &mut Scanner<'_>, index: usize) -> Result<Self, DaemonError> {
        let (mut name, mut binary) = (None, None);
        let mut object = scanner.object().map_err(|_| wrong(&format!("outputs[{index}]"), "an object"))?;
        while let Some(key) = scanner.next_key(&mut object)? {
            match &*key {
                "name" => name = Some(read_string(scanner, &format!("outputs[{index}].name"))?),
                "parameters" => binary = read_output_parameters(scanner, index)?,
                _ => drop(scanner.skip()?),
            }
        }
        let name = name.ok_or_else(|| DaemonError::invalid(format!("outputs[{index}] has no 'name'")))?;
        Ok(Self { name, binary })
    }
}

/// Checks the size of a binary input, as far as its datatype says what it must be.
fn checked_size(name: &str, datatype: Datatype, shape: &[i64], size: usize) -> Result<usize, DaemonError> {
    let required = if datatype == Datatype::Bytes { Some(size) } else { byte_count(datatype, shape) };
    match required {
        Some(required) if required == size => Ok(size),
        Some(required) => {
            let datatype = datatype.name();
            let message =
                format!("input '{name}' has {size} bytes, but {datatype} of shape {shape:?} takes {required} bytes");
            Err(DaemonError::new(Code::InvalidArgument, "size_mismatch", message))
        }
        None => Err(DaemonError::invalid(format!("the shape of input '{name}' is too large: {shape:?}"))),
    }
}

/// Decodes the data of an input: a list of all elements, or lists nested as the shape says.
fn decode(name: &str, datatype: Datatype, shape: &[i64], mut data: Scanner<'_>) -> Result<Bytes, DaemonError> {
    let mut decoder = Decoder::new(datatype, Dialect::OpenInference);
    let read = decoder.value(&mut data).map_err(|error| {
        let mut error = DaemonError::from(error);
        error.message.insert_str(0, &format!("input '{name}': "));
        error
    })?;
    let count = read.iter().try_fold(1usize, |count, &dimension| count.checked_mul(dimension));
    if count != element_count(shape) {
        let message = format!("the data of input '{name}' have the shape {read:?}, which does not fit {shape:?}");
        return Err(DaemonError::new(Code::InvalidArgument, "size_mismatch", message));
    }
    Ok(decoder.finish())
}

fn read_shape(scanner: &mut Scanner<'_>, index: usize) -> Result<Vec<i64>, DaemonError> {
    let refused = || wrong(&format!("inputs[{index}].shape"), "a list of integers from 0 on");
    let mut list = scanner.list().map_err(|_| refused())?;
    let mut shape = Vec::new();
    while scanner.next_element(&mut list)? {
        if shape.len() == MAX_DIMENSIONS {
            let message = format!("inputs[{index}].shape has more than {MAX_DIMENSIONS} dimensions");
            return Err(DaemonError::invalid(message));
        }
        let dimension = scanner.number().ok().and_then(|number| number.as_i64());
        shape.push(dimension.filter(|&dimension| dimension >= 0).ok_or_else(refused)?);
    }
    Ok(shape)
}

fn read_input_parameters(scanner: &mut Scanner<'_>, index: usize) -> Result<Option<usize>, DaemonError> {
    let mut binary = None;
    if scanner.kind()? == Kind::Null {
        scanner.null()?;
        return Ok(None);
    }
    let mut object = scanner.object().map_err(|_| wrong(&format!("inputs[{index}].parameters"), "an object"))?;
    while let Some(key) = scanner.next_key(&mut object)? {
        match &*key {
            "binary_data_size" => {
                let size = read_unsigned(scanner, &format!("inputs[{index}].parameters.binary_data_size"))?;
                binary = Some(usize::try_from(size).unwrap_or(usize::MAX));
            }
            "shared_memory_region" => return Err(refusals::shared_memory()),
            _ => drop(scanner.skip()?),
        }
    }
    Ok(binary)
}

fn read_output_parameters(scanner: &mut Scanner<'_>, index: usize) -> Result<Option<bool>, DaemonError> {
    let mut binary = None;
    if scanner.kind()? == Kind::Null {
        scanner.null()?;
        return Ok(None);
    }
    let mut object = scanner.object().map_err(|_| wrong(&format!("outputs[{index}].parameters"), "an object"))?;
    while let Some(key) = scanner.next_key(&mut object)? {
        match &*key {
            "binary_data" => {
                binary = Some(read_boolean(scanner, &format!("outputs[{index}].parameters.binary_data"))?);
            }
            "classification" => {
                if read_unsigned(scanner, &format!("outputs[{index}].parameters.classification"))? > 0 {
                    return Err(refusals::classification());
                }
            }
            "shared_memory_region" => return Err(refusals::shared_memory()),
            _ => drop(scanner.skip()?),
        }
    }
    Ok(binary)
}
