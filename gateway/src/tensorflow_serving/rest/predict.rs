//! Bodies of `:predict` requests, in row and in column format.
//!
//! ```text
//! {"signature_name": "...", "instances": [ROW, ...]}       a row is a value, or an object with a value for each input
//! {"signature_name": "...", "inputs": VALUE}               a value, or an object with a value for each input
//! ```

use std::collections::HashMap;

use crate::json::{Category, Decoder, Dialect, Error, Kind, Result, Scanner, is_base64_object};
use crate::mt1::{DaemonError, ModelMetadata, TensorMetadata};
use crate::tensor::Tensor;
use crate::tensorflow_serving::signature;

/// Whether inputs and outputs are written row by row, or each as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Row,
    Column,
}

/// The body of a `:predict` request.
#[derive(Debug)]
pub struct PredictBody {
    pub format: Format,
    pub signature_name: Option<String>,
    pub inputs: Vec<Tensor>,
}

/// Reads the body of a `:predict` request. What follows the first JSON value is ignored, as TensorFlow Serving does.
///
/// The signature decides how values are read, but its name may come after them. So values are read as those of the
/// default signature, unless another name came before, and are read again if it comes after.
pub fn read_body(body: &[u8], metadata: &ModelMetadata) -> std::result::Result<PredictBody, DaemonError> {
    let members = Members::read(body, metadata).map_err(DaemonError::from)?;
    let name = members.signature_name.as_deref();
    let signature = signature::find(metadata, name)?;
    let label = name.filter(|name| !name.is_empty()).unwrap_or("DEFAULT");
    if signature.inputs.is_empty() {
        return Err(DaemonError::invalid(format!("Failed to get input map for signature: {label}")));
    }
    let (format, mut values, decoded) = match (members.instances, members.inputs) {
        (Some(instances), None) => (Format::Row, instances, members.decoded),
        (None, Some(inputs)) => (Format::Column, inputs, members.decoded),
        (Some(_), Some(_)) => {
            let message = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist";
            return Err(DaemonError::invalid(message));
        }
        (None, None) => return Err(DaemonError::invalid("Missing 'inputs' or 'instances' key")),
    };
    let inputs = match decoded {
        Some(decoded) if decoded.signature == signature.name => decoded.inputs,
        _ => decode(format, &mut values, signature.inputs),
    };
    let inputs = inputs.map_err(DaemonError::from)?;
    Ok(PredictBody { format, signature_name: signature.name.map(str::to_owned), inputs })
}

/// The error of a body that is no JSON object, or `None`.
pub fn syntax_error(body: &[u8]) -> Option<DaemonError> {
    let error = Members::read(body, &ModelMetadata::default()).err()?;
    Some(error.into())
}

/// Reads the value of `instances` or `inputs`, and returns a tensor for each input that has a value.
fn decode(format: Format, scanner: &mut Scanner<'_>, inputs: &[TensorMetadata]) -> Result<Vec<Tensor>> {
    match format {
        Format::Row => read_rows(scanner, inputs),
        Format::Column => read_columns(scanner, inputs),
    }
}

/// The members of the body that matter. The first of several with the same key counts.
struct Members<'a> {
    signature_name: Option<String>,
    /// Positions of the values.
    instances: Option<Scanner<'a>>,
    inputs: Option<Scanner<'a>>,
    /// The first of both, as it was read.
    decoded: Option<Decoded<'a>>,
}

struct Decoded<'a> {
    /// For which signature.
    signature: Option<&'a str>,
    inputs: Result<Vec<Tensor>>,
}

impl<'a> Members<'a> {
    fn read(body: &'a [u8], metadata: &'a ModelMetadata) -> Result<Self> {
        let mut scanner = Scanner::lenient(body);
        let mut members = Self { signature_name: None, instances: None, inputs: None, decoded: None };
        if scanner.kind()? != Kind::Object {
            scanner.skip()?;
            return Err(Error::value(0, "JSON Value: Is not object"));
        }
        let mut object = scanner.object()?;
        while let Some(key) = scanner.next_key(&mut object)? {
            match key.as_ref() {
                "signature_name" if members.signature_name.is_none() => {
                    if scanner.kind()? != Kind::String {
                        scanner.skip()?;
                        let message = "not formatted correctly. 'signature_name' key must be a string value.";
                        return Err(Error::value(scanner.offset(), message));
                    }
                    members.signature_name = Some(scanner.string()?.into_owned());
                }
                "instances" if members.instances.is_none() => {
                    members.instances = Some(scanner);
                    members.value(&mut scanner, Format::Row, metadata)?;
                }
                "inputs" if members.inputs.is_none() => {
                    members.inputs = Some(scanner);
                    members.value(&mut scanner, Format::Column, metadata)?;
                }
                _ => {
                    scanner.skip()?;
                }
            }
        }
        Ok(members)
    }

    fn value(&mut self, scanner: &mut Scanner<'a>, format: Format, metadata: &'a ModelMetadata) -> Result<()> {
        let start = *scanner;
        let signature = signature::find(metadata, self.signature_name.as_deref());
        let Some(signature) = signature.ok().filter(|_| self.decoded.is_none()) else {
            return scanner.skip().map(drop);
        };
        let inputs = decode(format, scanner, signature.inputs);
        if inputs.is_err() {
            // The values may be those of another signature; what follows is read in any case.
            *scanner = start;
            scanner.skip()?;
        }
        // The name must outlive the one in `self`, so it is taken from the metadata.
        let name = signature.name.and_then(|name| metadata.signatures.get_key_value(name));
        self.decoded = Some(Decoded { signature: name.map(|(name, _)| name.as_str()), inputs });
        Ok(())
    }
}

/// The data of one input, as it is collected row by row.
struct Rows<'a> {
    input: &'a TensorMetadata,
    decoder: Decoder,
    count: usize,
    /// The shape of each row, once there is one.
    shape: Option<Vec<usize>>,
}

impl<'a> Rows<'a> {
    fn new(input: &'a TensorMetadata) -> Self {
        Self { input, decoder: Decoder::new(input.datatype, Dialect::TensorflowServing), count: 0, shape: None }
    }

    fn read(&mut self, scanner: &mut Scanner<'_>) -> Result<()> {
        let offset = scanner.offset();
        let shape = self.decoder.value(scanner)?;
        self.count += 1;
        match &self.shape {
            None => self.shape = Some(shape.to_vec()),
            Some(expected) if expected == shape => {}
            Some(expected) => {
                let size = |shape: &[usize]| shape.iter().product::<usize>();
                let message = if size(expected) == size(shape) {
                    format!("Expecting shape {} but got: {}", shape_text(expected), shape_text(shape))
                } else {
                    format!("Expecting tensor size: {} but got: {}", size(expected), size(shape))
                };
                return Err(Error::value(offset, message));
            }
        }
        Ok(())
    }

    fn finish(self) -> Tensor {
        let mut shape = vec![self.count];
        shape.extend(self.shape.unwrap_or_default());
        tensor(self.input, &shape, self.decoder)
    }
}

fn tensor(input: &TensorMetadata, shape: &[usize], decoder: Decoder) -> Tensor {
    Tensor {
        name: input.name.clone(),
        datatype: input.datatype,
        // Sizes of lists in memory are far below 2^63.
        shape: shape.iter().map(|size| *size as i64).collect(),
        data: decoder.finish(),
    }
}

fn shape_text(shape: &[usize]) -> String {
    let sizes: Vec<_> = shape.iter().map(usize::to_string).collect();
    format!("[{}]", sizes.join(","))
}

/// The input of a signature that has one only, or only one that must be given.
fn only_input(inputs: &[TensorMetadata]) -> Option<&TensorMetadata> {
    if let [input] = inputs {
        return Some(input);
    }
    let mut required = inputs.iter().filter(|input| !input.optional);
    required.next().filter(|_| required.next().is_none())
}

/// Whether the next value is an object with a value for each input.
fn is_named(scanner: &mut Scanner<'_>) -> Result<bool> {
    Ok(scanner.kind()? == Kind::Object && !is_base64_object(*scanner))
}

/// Reads the value of `instances`.
fn read_rows(scanner: &mut Scanner<'_>, inputs: &[TensorMetadata]) -> Result<Vec<Tensor>> {
    if scanner.kind()? != Kind::Array {
        return Err(Error::value(scanner.offset(), "Expecting 'instances' to be an list/array"));
    }
    let mut list = scanner.list()?;
    if !scanner.next_element(&mut list)? {
        return Err(Error::value(scanner.offset(), "No values in 'instances' array"));
    }
    if is_named(scanner)? {
        let mut rows = NamedRows::new(inputs);
        loop {
            rows.read(scanner)?;
            if !scanner.next_element(&mut list)? {
                return Ok(rows.finish());
            }
        }
    }
    let Some(input) = only_input(inputs) else {
        let message = "instances is a plain list, but expecting list of objects as multiple input tensors required as \
                       per tensorinfo_map";
        return Err(Error::value(scanner.offset(), message));
    };
    let mut rows = Rows::new(input);
    loop {
        if scanner.kind()? == Kind::Object && is_named(scanner)? {
            let message = format!("Expecting value/list but got object at item {} of input list", rows.count);
            return Err(Error::value(scanner.offset(), message));
        }
        let row = rows.count;
        rows.read(scanner).map_err(|error| in_row(error, row, None))?;
        if !scanner.next_element(&mut list)? {
            return Ok(vec![rows.finish()]);
        }
    }
}

/// Says in which row a value is wrong. A text that is no JSON is so everywhere.
#[cold]
fn in_row(error: Error, row: usize, key: Option<&str>) -> Error {
    let key = key.map(|key| format!(" key: {key}")).unwrap_or_default();
    let message = format!("Failed to process element: {row}{key} of 'instances' list. Error: {error}");
    match error.category() {
        Category::Syntax => error,
        Category::Value => Error::value(error.offset(), message),
        Category::Unsupported => Error::unsupported(error.offset(), message),
    }
}

/// Rows that are objects.
struct NamedRows<'a> {
    inputs: &'a [TensorMetadata],
    columns: Vec<Rows<'a>>,
    positions: HashMap<&'a str, usize>,
    count: usize,
}

impl<'a> NamedRows<'a> {
    fn new(inputs: &'a [TensorMetadata]) -> Self {
        let positions = inputs.iter().enumerate().map(|(position, input)| (input.key(), position)).collect();
        Self { inputs, columns: inputs.iter().map(Rows::new).collect(), positions, count: 0 }
    }

    fn read(&mut self, scanner: &mut Scanner<'_>) -> Result<()> {
        let row = self.count;
        let offset = scanner.offset();
        if !is_named(scanner)? {
            let message = format!("Expecting object but got list at item {row} of input list");
            return Err(Error::value(offset, message));
        }
        let mut object = scanner.object()?;
        // Rows usually have their keys in the same order.
        let mut next = 0;
        while let Some(key) = scanner.next_key(&mut object)? {
            let expected = self.inputs.get(next).is_some_and(|input| input.key() == key);
            let position = if expected { Some(next) } else { self.positions.get(key.as_ref()).copied() };
            let Some((position, column)) = position.and_then(|at| Some((at, self.columns.get_mut(at)?))) else {
                let message = format!("JSON object: does not have named input: {key}");
                return Err(in_row(Error::value(scanner.offset(), message), row, Some(&key)));
            };
            if column.count > row {
                let error = Error::value(scanner.offset(), "the key occurs twice");
                return Err(in_row(error, row, Some(&key)));
            }
            if column.count < row {
                // An input with a default that earlier rows do not have.
                return Err(self.wrong_keys(offset, row));
            }
            column.read(scanner).map_err(|error| in_row(error, row, Some(&key)))?;
            next = position + 1;
        }
        self.count += 1;
        let complete = |column: &Rows<'_>| column.count == self.count || (column.count == 0 && column.input.optional);
        if self.columns.iter().all(complete) { Ok(()) } else { Err(self.wrong_keys(offset, row)) }
    }

    /// A row does not have exactly the keys that it should have: those of the first row, or all required inputs.
    #[cold]
    fn wrong_keys(&self, offset: usize, row: usize) -> Error {
        let required = |column: &&Rows<'_>| if row == 0 { !column.input.optional } else { column.count >= row };
        let names: Vec<_> = self.columns.iter().filter(required).map(|column| column.input.key()).collect();
        let names = names.join(",");
        let message = format!(
            "Failed to process element: {row} of 'instances' list. JSON object: keys must be equal to: {names}"
        );
        Error::value(offset, message)
    }

    fn finish(self) -> Vec<Tensor> {
        self.columns.into_iter().filter(|column| column.count > 0).map(Rows::finish).collect()
    }
}

/// Reads the value of `inputs`.
fn read_columns(scanner: &mut Scanner<'_>, inputs: &[TensorMetadata]) -> Result<Vec<Tensor>> {
    if !is_named(scanner)? {
        let Some(input) = only_input(inputs) else {
            let message = "inputs is a plain value/list, but expecting an object as multiple input tensors required as \
                           per tensorinfo_map";
            return Err(Error::value(scanner.offset(), message));
        };
        return Ok(vec![read_column(scanner, input)?]);
    }
    let offset = scanner.offset();
    let positions: HashMap<_, _> = inputs.iter().enumerate().map(|(at, input)| (input.key(), (at, input))).collect();
    let mut tensors: Vec<Option<Tensor>> = inputs.iter().map(|_| None).collect();
    let mut object = scanner.object()?;
    while let Some(key) = scanner.next_key(&mut object)? {
        let place = positions.get(key.as_ref()).and_then(|(at, input)| Some((tensors.get_mut(*at)?, input)));
        match place {
            Some((place @ None, input)) => *place = Some(read_column(scanner, input)?),
            // Of several values with the same key the first counts; inputs that the signature does not have are ignored.
            _ => {
                scanner.skip()?;
            }
        }
    }
    for (input, tensor) in inputs.iter().zip(&tensors) {
        if tensor.is_none() && !input.optional {
            let message = format!("Missing named input: {} in 'inputs' object.", input.key());
            return Err(Error::value(offset, message));
        }
    }
    Ok(tensors.into_iter().flatten().collect())
}

fn read_column(scanner: &mut Scanner<'_>, input: &TensorMetadata) -> Result<Tensor> {
    let mut decoder = Decoder::new(input.datatype, Dialect::TensorflowServing);
    let shape = decoder.value(scanner)?.to_vec();
    Ok(tensor(input, &shape, decoder))
}

#[cfg(test)]
mod tests;
