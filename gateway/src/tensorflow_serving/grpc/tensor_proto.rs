//! `tensorflow.TensorProto`: tensors in all forms that TensorFlow writes, as MT1 has them, and back.
//!
//! A TensorProto has its values in `tensor_content`, as they are in memory, or in a field for their type. There the
//! last value stands for all that are missing, and without any value all are 0.

use bytes::{Bytes, BytesMut};

use crate::grpc::wire::{Fields, Packed, Writer, packed_varints, read_varint};
use crate::mt1::{Code, DaemonError, MAX_DIMENSIONS};
use crate::proto::tensorflow::DataType;
use crate::tensor::{BytesElements, Datatype, Tensor, element_count, push_element};
use crate::tensorflow_serving::metadata::{datatype, dtype};

const STRING_VAL: u32 = 8;

/// Reads a TensorProto, which is a slice of `message`. Values of floating point stay slices of it.
///
/// A tensor of more than `limit` bytes is refused before anything is allocated for it: what a shape promises need not
/// have been sent.
pub fn decode(message: &Bytes, proto: &[u8], name: &str, limit: usize) -> Result<Tensor, DaemonError> {
    let (mut code, mut content) = (0, &[][..]);
    let mut shape = Vec::new();
    let mut fields = Fields::new(proto);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            1 => code = value.varint()? as i32,
            2 => decode_shape(value.slice()?, &mut shape, name)?,
            4 => content = value.slice()?,
            _ => {}
        }
    }
    let datatype = DataType::try_from(code)
        .map_err(|_| invalid(name, format!("has the unknown type {code}")))
        .and_then(|code| datatype(code).ok_or_else(|| unsupported(name, code)))?;
    let count =
        element_count(&shape).ok_or_else(|| invalid(name, format!("has the shape {shape:?}, which is not valid")))?;
    // Each string takes four bytes at least.
    if count.checked_mul(datatype.size().unwrap_or(4)).is_none_or(|bytes| bytes > limit) {
        let (shape, datatype) = (&shape, datatype.name());
        let mut error = invalid(name, format!("has the shape {shape:?} of {datatype}, more than {limit} bytes"));
        error.code = Code::ResourceExhausted;
        error.reason = "too_large".to_owned();
        return Err(error);
    }
    let data = match (datatype, datatype.size()) {
        (Datatype::Bytes, _) | (_, None) if content.is_empty() => strings(proto, count, name, limit)?,
        (Datatype::Bytes, _) | (_, None) => string_list(content, count, name)?,
        (_, Some(size)) if content.is_empty() => numbers(message, proto, datatype, size, count)?,
        (_, Some(size)) if content.len() == count * size => message.slice_ref(content),
        (_, Some(size)) => {
            let (given, wanted) = (content.len(), count * size);
            let mut error =
                invalid(name, format!("has {given} bytes of tensor_content, but its shape {shape:?} needs {wanted}"));
            error.reason = "size_mismatch".to_owned();
            return Err(error);
        }
    };
    Ok(Tensor { name: name.to_owned(), datatype, shape, data })
}

fn decode_shape(proto: &[u8], shape: &mut Vec<i64>, name: &str) -> Result<(), DaemonError> {
    let mut fields = Fields::new(proto);
    while let Some((number, value)) = fields.next_field()? {
        match number {
            2 if shape.len() == MAX_DIMENSIONS => {
                return Err(invalid(name, format!("has more than {MAX_DIMENSIONS} dimensions")));
            }
            2 => {
                let mut size = 0;
                let mut fields = Fields::new(value.slice()?);
                while let Some((number, value)) = fields.next_field()? {
                    if number == 1 {
                        size = value.varint()? as i64;
                    }
                }
                shape.push(size);
            }
            3 if value.varint()? != 0 => return Err(invalid(name, "has an unknown rank".to_owned())),
            _ => {}
        }
    }
    Ok(())
}

/// The field that has the values of a datatype.
fn values_field(datatype: Datatype) -> u32 {
    match datatype {
        Datatype::Fp32 => 5,
        Datatype::Fp64 => 6,
        Datatype::Int32 | Datatype::Int16 | Datatype::Int8 | Datatype::Uint8 | Datatype::Uint16 => 7,
        Datatype::Bytes => STRING_VAL,
        Datatype::Complex64 => 9,
        Datatype::Int64 => 10,
        Datatype::Bool => 11,
        Datatype::Complex128 => 12,
        Datatype::Fp16 | Datatype::Bf16 => 13,
        Datatype::Uint32 => 16,
        Datatype::Uint64 => 17,
    }
}

/// Whether values are written as they are in memory.
fn is_fixed(datatype: Datatype) -> bool {
    matches!(datatype, Datatype::Fp32 | Datatype::Fp64 | Datatype::Complex64 | Datatype::Complex128)
}

fn numbers(message: &Bytes, proto: &[u8], datatype: Datatype, size: usize, count: usize) -> Result<Bytes, DaemonError> {
    let wanted = values_field(datatype);
    let mut values = Packed::default();
    let mut fields = Fields::new(proto);
    while let Some((number, value)) = fields.next_field()? {
        if number == wanted {
            values.extend(message, value);
        }
    }
    let packed = values.into_bytes();
    let length = count * size;
    if is_fixed(datatype) {
        let given = packed.len() / size * size;
        if given >= length {
            return Ok(packed.slice(..length));
        }
        let mut data = BytesMut::with_capacity(length);
        data.extend_from_slice(&packed[..given]);
        return Ok(repeated(data, size, length));
    }
    let mut data = BytesMut::with_capacity(length);
    let mut rest = &packed[..];
    while !rest.is_empty() && data.len() < length {
        let value = read_varint(&mut rest)?;
        let value = if datatype == Datatype::Bool { u64::from(value != 0) } else { value };
        data.extend_from_slice(&value.to_le_bytes()[..size]);
    }
    Ok(repeated(data, size, length))
}

/// Fills up with the last value, or with 0 if there is none.
fn repeated(mut data: BytesMut, size: usize, length: usize) -> Bytes {
    match data.len().checked_sub(size).map(|last| data[last..].to_vec()) {
        Some(last) if last.iter().any(|&byte| byte != 0) => {
            while data.len() < length {
                data.extend_from_slice(&last);
            }
        }
        _ => data.resize(length, 0),
    }
    data.freeze()
}

/// Reads `string_val`.
fn strings(proto: &[u8], count: usize, name: &str, limit: usize) -> Result<Bytes, DaemonError> {
    let (mut data, mut given, mut last) = (Vec::new(), 0, &[][..]);
    let mut fields = Fields::new(proto);
    while let Some((number, value)) = fields.next_field()? {
        if number == STRING_VAL && given < count {
            last = value.slice()?;
            push_element(&mut data, last);
            given += 1;
        }
    }
    let missing = count - given;
    if missing.checked_mul(last.len() + 4).is_none_or(|bytes| bytes > limit) {
        let mut error = invalid(name, format!("repeats a string {missing} times, more than {limit} bytes"));
        error.code = Code::ResourceExhausted;
        error.reason = "too_large".to_owned();
        return Err(error);
    }
    for _ in 0..missing {
        push_element(&mut data, last);
    }
    Ok(data.into())
}

/// Reads strings in `tensor_content`: first all lengths as varints, then all strings.
fn string_list(content: &[u8], count: usize, name: &str) -> Result<Bytes, DaemonError> {
    let mismatch = || invalid(name, format!("has a tensor_content that does not hold {count} strings"));
    // Each length takes a byte.
    if count > content.len() {
        return Err(mismatch());
    }
    let mut rest = content;
    let mut lengths = Vec::with_capacity(count);
    for _ in 0..count {
        let length = read_varint(&mut rest).map_err(|_| mismatch())?;
        lengths.push(u32::try_from(length).map_err(|_| mismatch())?);
    }
    let mut data = Vec::with_capacity(rest.len() + 4 * count);
    for length in lengths {
        let (string, tail) = rest.split_at_checked(length as usize).ok_or_else(mismatch)?;
        push_element(&mut data, string);
        rest = tail;
    }
    if rest.is_empty() { Ok(data.into()) } else { Err(mismatch()) }
}

/// Writes a TensorProto with the values in the field for their type, as TensorFlow Serving answers.
pub fn encode(tensor: Tensor) -> Result<Writer, DaemonError> {
    let Tensor { name, datatype, shape, data } = tensor;
    let mut writer = Writer::new();
    writer.varint(1, dtype(datatype) as u64);
    let mut proto = Writer::new();
    for size in shape {
        let mut dimension = Writer::new();
        if size != 0 {
            dimension.varint(1, size as u64);
        }
        proto.message(2, dimension);
    }
    writer.message(2, proto);
    if data.is_empty() {
        return Ok(writer);
    }
    let field = values_field(datatype);
    match datatype {
        Datatype::Bytes => {
            for element in BytesElements::new(&data) {
                let element = element.map_err(|_| {
                    let message = format!("the output {name:?} ends within a string");
                    DaemonError::new(Code::Internal, "output_invalid", message)
                })?;
                writer.large(field, data.slice_ref(element));
            }
        }
        // Booleans are 0 or 1, which as varints take one byte each, too.
        Datatype::Bool => writer.large(field, data),
        _ if is_fixed(datatype) => writer.large(field, data),
        _ => writer.large(field, packed_integers(datatype, &data).freeze()),
    }
    Ok(writer)
}

/// Negative numbers are extended to 64 bits, as Protocol Buffers write them.
fn packed_integers(datatype: Datatype, data: &[u8]) -> BytesMut {
    let two = || data.as_chunks::<2>().0.iter();
    let four = || data.as_chunks::<4>().0.iter();
    let eight = || data.as_chunks::<8>().0.iter();
    match datatype {
        Datatype::Int8 => packed_varints(data.iter().map(|&byte| i64::from(byte as i8) as u64)),
        Datatype::Int16 => packed_varints(two().map(|&bytes| i64::from(i16::from_le_bytes(bytes)) as u64)),
        Datatype::Int32 => packed_varints(four().map(|&bytes| i64::from(i32::from_le_bytes(bytes)) as u64)),
        Datatype::Uint16 | Datatype::Fp16 | Datatype::Bf16 => {
            packed_varints(two().map(|&bytes| u64::from(u16::from_le_bytes(bytes))))
        }
        Datatype::Uint32 => packed_varints(four().map(|&bytes| u64::from(u32::from_le_bytes(bytes)))),
        Datatype::Int64 | Datatype::Uint64 => packed_varints(eight().map(|&bytes| u64::from_le_bytes(bytes))),
        _ => packed_varints(data.iter().map(|&byte| u64::from(byte))),
    }
}

fn invalid(name: &str, what: String) -> DaemonError {
    let mut error = DaemonError::invalid(format!("input {name:?} {what}"));
    error.field = Some(name.to_owned());
    error
}

fn unsupported(name: &str, code: DataType) -> DaemonError {
    match code {
        DataType::DtInvalid => invalid(name, "has no type (dtype)".to_owned()),
        _ => {
            let mut error = DaemonError::unsupported(format!("input {name:?} has the type {}", code.as_str_name()));
            error.message.push_str(", which is not supported");
            error
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto::tensorflow::tensor_shape_proto::Dim;
    use crate::proto::tensorflow::{TensorProto, TensorShapeProto};

    const LIMIT: usize = 1 << 20;

    fn proto(dtype: DataType, shape: &[i64]) -> TensorProto {
        let dim = shape.iter().map(|&size| Dim { size, name: String::new() }).collect();
        TensorProto {
            dtype: dtype.into(),
            tensor_shape: Some(TensorShapeProto { dim, unknown_rank: false }),
            ..Default::default()
        }
    }

    fn read(proto: &TensorProto) -> Result<Tensor, DaemonError> {
        let message = Bytes::from(proto.encode_to_vec());
        decode(&message, &message, "x", LIMIT)
    }

    /// For each type a TensorProto with the values in their field, and the data.
    fn typed() -> Vec<(TensorProto, Vec<u8>)> {
        use DataType as T;
        vec![
            (TensorProto { float_val: vec![1.5, -2.0], ..proto(T::DtFloat, &[2]) }, {
                [1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat()
            }),
            (TensorProto { double_val: vec![0.1], ..proto(T::DtDouble, &[]) }, 0.1f64.to_le_bytes().to_vec()),
            (TensorProto { int_val: vec![-3, 4], ..proto(T::DtInt32, &[2, 1]) }, {
                [(-3i32).to_le_bytes(), 4i32.to_le_bytes()].concat()
            }),
            (TensorProto { int_val: vec![-3], ..proto(T::DtInt16, &[1]) }, (-3i16).to_le_bytes().to_vec()),
            (TensorProto { int_val: vec![-3], ..proto(T::DtInt8, &[1]) }, vec![0xfd]),
            (TensorProto { int_val: vec![200], ..proto(T::DtUint8, &[1]) }, vec![200]),
            (TensorProto { int_val: vec![60_000], ..proto(T::DtUint16, &[1]) }, 60_000u16.to_le_bytes().to_vec()),
            (TensorProto { uint32_val: vec![u32::MAX], ..proto(T::DtUint32, &[1]) }, vec![255; 4]),
            (TensorProto { uint64_val: vec![u64::MAX], ..proto(T::DtUint64, &[1]) }, vec![255; 8]),
            (TensorProto { int64_val: vec![i64::MIN], ..proto(T::DtInt64, &[1]) }, i64::MIN.to_le_bytes().to_vec()),
            (TensorProto { bool_val: vec![true, false], ..proto(T::DtBool, &[2]) }, vec![1, 0]),
            (TensorProto { half_val: vec![0x3c00], ..proto(T::DtHalf, &[1]) }, vec![0x00, 0x3c]),
            (TensorProto { half_val: vec![0xbf80], ..proto(T::DtBfloat16, &[1]) }, vec![0x80, 0xbf]),
            (TensorProto { scomplex_val: vec![1.0, 2.0], ..proto(T::DtComplex64, &[1]) }, {
                [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat()
            }),
            (TensorProto { dcomplex_val: vec![1.0, 2.0], ..proto(T::DtComplex128, &[1]) }, {
                [1f64.to_le_bytes(), 2f64.to_le_bytes()].concat()
            }),
            (TensorProto { string_val: vec!["ab".into(), "".into()], ..proto(T::DtString, &[2]) }, {
                vec![2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]
            }),
        ]
    }

    #[test]
    fn values_of_every_type_are_read_and_written() {
        for (proto, data) in typed() {
            let tensor = read(&proto).unwrap();
            assert_eq!(tensor.data, data, "{:?}", proto.dtype());
            let written = encode(tensor).unwrap().finish().concat();
            assert_eq!(TensorProto::decode(&written[..]).unwrap(), proto);
        }
    }

    #[test]
    fn tensor_content_is_the_data() {
        for (typed, data) in typed() {
            if typed.dtype() == DataType::DtString {
                continue;
            }
            let content = TensorProto {
                dtype: typed.dtype,
                tensor_shape: typed.tensor_shape,
                tensor_content: data.clone().into(),
                ..Default::default()
            };
            let message = Bytes::from(content.encode_to_vec());
            let tensor = decode(&message, &message, "x", LIMIT).unwrap();
            assert_eq!(tensor.data, data);
            assert!(message.as_ptr_range().contains(&tensor.data.as_ptr()));
        }
        let strings = TensorProto { tensor_content: b"\x02\x00ab"[..].into(), ..proto(DataType::DtString, &[1, 2]) };
        assert_eq!(read(&strings).unwrap().data, &b"\x02\0\0\0ab\0\0\0\0"[..]);
    }

    #[test]
    fn the_last_value_stands_for_those_that_are_missing() {
        let floats = |values: &[f32]| TensorProto { float_val: values.to_vec(), ..proto(DataType::DtFloat, &[3]) };
        let ints = |values: &[i32]| TensorProto { int_val: values.to_vec(), ..proto(DataType::DtUint8, &[3]) };
        let strings = |values: &[&'static str]| TensorProto {
            string_val: values.iter().map(|&value| value.into()).collect(),
            ..proto(DataType::DtString, &[2])
        };
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        for (proto, data) in [
            (floats(&[]), bytes(&[0.0; 3])),
            (floats(&[1.0]), bytes(&[1.0; 3])),
            (floats(&[1.0, 2.0]), bytes(&[1.0, 2.0, 2.0])),
            (floats(&[1.0, 2.0, 3.0, 4.0]), bytes(&[1.0, 2.0, 3.0])),
            (ints(&[]), vec![0; 3]),
            (ints(&[7, 9]), vec![7, 9, 9]),
            (ints(&[7, 0]), vec![7, 0, 0]),
            (ints(&[1, 2, 3, 4]), vec![1, 2, 3]),
            (strings(&[]), vec![0; 8]),
            (strings(&["a"]), b"\x01\0\0\0a\x01\0\0\0a".to_vec()),
            (strings(&["a", "b", "c"]), b"\x01\0\0\0a\x01\0\0\0b".to_vec()),
        ] {
            assert_eq!(read(&proto).unwrap().data, data);
        }
    }

    #[test]
    fn hostile_tensors_are_refused() {
        let string = |shape: &[i64], text: &'static str| TensorProto {
            string_val: vec![text.into()],
            ..proto(DataType::DtString, shape)
        };
        let content = |dtype, shape: &[i64], content: &'static [u8]| TensorProto {
            tensor_content: content.into(),
            ..proto(dtype, shape)
        };
        let mut unknown_rank = proto(DataType::DtFloat, &[]);
        unknown_rank.tensor_shape = Some(TensorShapeProto { dim: vec![], unknown_rank: true });
        let unknown_type = TensorProto { dtype: 99, ..Default::default() };
        for (proto, part) in [
            (proto(DataType::DtFloat, &[-1]), "is not valid"),
            (proto(DataType::DtFloat, &[i64::MAX, i64::MAX]), "is not valid"),
            (proto(DataType::DtFloat, &[0, -1]), "is not valid"),
            (proto(DataType::DtFloat, &[i64::MAX]), "more than 1048576 bytes"),
            (proto(DataType::DtFloat, &[1 << 19]), "more than 1048576 bytes"),
            (proto(DataType::DtString, &[1 << 20]), "more than 1048576 bytes"),
            (string(&[1 << 18], "abcdef"), "repeats a string"),
            (proto(DataType::DtFloat, &[1; 65]), "more than 64 dimensions"),
            (proto(DataType::DtInvalid, &[]), "has no type"),
            (proto(DataType::DtResource, &[]), "DT_RESOURCE, which is not supported"),
            (unknown_type, "unknown type 99"),
            (unknown_rank, "unknown rank"),
            (content(DataType::DtFloat, &[2], b"abcd"), "has 4 bytes of tensor_content"),
            (content(DataType::DtString, &[2], b"\x01"), "does not hold 2 strings"),
            (content(DataType::DtString, &[1], b"\x05a"), "does not hold 1 strings"),
            (content(DataType::DtString, &[1], b"\x01ab"), "does not hold 1 strings"),
        ] {
            let error = read(&proto).unwrap_err();
            assert!(error.message.contains(part), "{} does not contain {part}", error.message);
        }
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Bytes::from(bytes);
            let _ = decode(&message, &message, "x", LIMIT);
        }

        #[test]
        fn tensors_have_the_bytes_that_their_shape_needs_and_stay_within_the_limit(
            dtype in 0..24i32,
            shape in proptest::collection::vec(prop_oneof![-1i64..9, Just(i64::MAX), any::<i64>()], 0..5),
            ints in proptest::collection::vec(any::<i32>(), 0..9),
            floats in proptest::collection::vec(any::<f32>(), 0..9),
            content in proptest::collection::vec(any::<u8>(), 0..9),
            strings in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5), 0..5),
        ) {
            let dim = shape.iter().map(|&size| Dim { size, name: String::new() }).collect();
            let proto = TensorProto {
                dtype,
                tensor_shape: Some(TensorShapeProto { dim, unknown_rank: false }),
                half_val: ints.clone(),
                int_val: ints,
                scomplex_val: floats.clone(),
                float_val: floats,
                tensor_content: content.into(),
                string_val: strings.into_iter().map(Bytes::from).collect(),
                ..Default::default()
            };
            let message = Bytes::from(proto.encode_to_vec());
            if let Ok(tensor) = decode(&message, &message, "x", 4096) {
                let count = element_count(&tensor.shape).unwrap();
                match tensor.datatype.size() {
                    Some(size) => prop_assert_eq!(tensor.data.len(), count * size),
                    None => prop_assert_eq!(BytesElements::new(&tensor.data).count(), count),
                }
                prop_assert!(tensor.data.len() <= 4096 + message.len() * 2);
            }
        }
    }
}
