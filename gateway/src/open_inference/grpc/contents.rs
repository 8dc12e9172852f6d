//! The typed contents of an input, as opposed to raw ones: `InferTensorContents`.

use bytes::Bytes;

use crate::grpc::wire::{Fields, Packed, read_varint};
use crate::mt1::DaemonError;
use crate::tensor::{Datatype, Tensor, element_count, push_element};

/// The typed contents of an input as they were sent.
#[derive(Default, Debug)]
pub struct Contents {
    /// The number of the field that was used, or 0.
    field: u32,
    numbers: Packed,
    /// The elements of a BYTES tensor, as its data.
    strings: Vec<u8>,
    string_count: usize,
}

impl Contents {
    /// Adds what one InferTensorContents has.
    pub fn extend(&mut self, message: &Bytes, contents: &[u8]) -> Result<(), DaemonError> {
        let mut fields = Fields::new(contents);
        while let Some((number, value)) = fields.next_field()? {
            if !(1..=8).contains(&number) {
                continue;
            }
            if self.field != 0 && self.field != number {
                return Err(DaemonError::invalid("the contents of an input have values of more than one type"));
            }
            self.field = number;
            if number == 8 {
                self.string_count += 1;
                push_element(&mut self.strings, value.slice()?);
            } else {
                self.numbers.extend(message, value);
            }
        }
        Ok(())
    }

    /// Whether the input has contents.
    pub fn is_used(&self) -> bool {
        self.field != 0
    }

    /// Returns the contents as the data of a tensor, whose datatype and shape they must fit.
    pub fn into_data(self, tensor: &Tensor) -> Result<Bytes, DaemonError> {
        let name = &tensor.name;
        let wanted = element_count(&tensor.shape).ok_or_else(|| {
            DaemonError::invalid(format!("the shape {:?} of input {name:?} is not valid", tensor.shape))
        })?;
        let (field, field_name) = match tensor.datatype {
            Datatype::Bool => (1, "bool_contents"),
            Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => (2, "int_contents"),
            Datatype::Int64 => (3, "int64_contents"),
            Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => (4, "uint_contents"),
            Datatype::Uint64 => (5, "uint64_contents"),
            Datatype::Fp32 => (6, "fp32_contents"),
            Datatype::Fp64 => (7, "fp64_contents"),
            Datatype::Bytes => (8, "bytes_contents"),
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Complex64 | Datatype::Complex128 => {
                let datatype = tensor.datatype.name();
                return Err(DaemonError::invalid(format!(
                    "input {name:?} has the datatype {datatype}, which only raw_input_contents can carry"
                )));
            }
        };
        if self.field != field && !(self.field == 0 && wanted == 0) {
            let datatype = tensor.datatype.name();
            return Err(DaemonError::invalid(format!(
                "input {name:?} has the datatype {datatype} and needs {field_name}, or raw_input_contents"
            )));
        }
        let bytes = self.numbers.into_bytes();
        let given = match tensor.datatype {
            Datatype::Bytes => self.string_count,
            Datatype::Fp32 => bytes.len() / 4,
            Datatype::Fp64 => bytes.len() / 8,
            // The last byte of each integer is below 0x80.
            _ => bytes.iter().filter(|&&byte| byte < 0x80).count(),
        };
        // Before integers are converted: they may take eight times the bytes that were sent.
        if given != wanted {
            let shape = &tensor.shape;
            let mut error = DaemonError::invalid(format!(
                "input {name:?} has {given} elements in its contents, but its shape {shape:?} needs {wanted}"
            ));
            error.reason = "size_mismatch".to_owned();
            error.field = Some(name.clone());
            return Err(error);
        }
        match tensor.datatype {
            Datatype::Bytes => Ok(self.strings.into()),
            Datatype::Fp32 | Datatype::Fp64 => Ok(bytes),
            datatype => integers(&bytes, given, datatype, name),
        }
    }
}

/// Converts so many packed integers into the data of a tensor.
fn integers(packed: &[u8], count: usize, datatype: Datatype, name: &str) -> Result<Bytes, DaemonError> {
    let size = datatype.size().unwrap_or(1);
    let mut data = Vec::with_capacity(count * size);
    let mut rest = packed;
    while !rest.is_empty() {
        let number = read_varint(&mut rest)?;
        let fits = match datatype {
            Datatype::Bool => number <= 1,
            Datatype::Int8 => i8::try_from(number as i64).is_ok(),
            Datatype::Int16 => i16::try_from(number as i64).is_ok(),
            Datatype::Int32 => i32::try_from(number as i64).is_ok(),
            Datatype::Uint8 => u8::try_from(number).is_ok(),
            Datatype::Uint16 => u16::try_from(number).is_ok(),
            Datatype::Uint32 => u32::try_from(number).is_ok(),
            _ => true,
        };
        if !fits {
            let (number, datatype) = (number as i64, datatype.name());
            return Err(DaemonError::invalid(format!("input {name:?}: {number} does not fit {datatype}")));
        }
        data.extend_from_slice(&number.to_le_bytes()[..size]);
    }
    Ok(Bytes::from(data))
}
