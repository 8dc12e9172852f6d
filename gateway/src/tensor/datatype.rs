//! The datatypes of the Open Inference Protocol, and two complex ones that MT1 adds.

/// The datatype of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bf16,
    Complex64,
    Complex128,
    Bytes,
}

impl Datatype {
    pub const ALL: [Datatype; 16] = [
        Datatype::Bool,
        Datatype::Uint8,
        Datatype::Uint16,
        Datatype::Uint32,
        Datatype::Uint64,
        Datatype::Int8,
        Datatype::Int16,
        Datatype::Int32,
        Datatype::Int64,
        Datatype::Fp16,
        Datatype::Fp32,
        Datatype::Fp64,
        Datatype::Bf16,
        Datatype::Complex64,
        Datatype::Complex128,
        Datatype::Bytes,
    ];

    /// Returns the datatype of a name such as `FP32`, or None if there is no such datatype.
    pub fn from_name(name: &str) -> Option<Datatype> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name)
    }

    /// Returns the name as the Open Inference Protocol and MT1 write it.
    pub fn name(self) -> &'static str {
        match self {
            Datatype::Bool => "BOOL",
            Datatype::Uint8 => "UINT8",
            Datatype::Uint16 => "UINT16",
            Datatype::Uint32 => "UINT32",
            Datatype::Uint64 => "UINT64",
            Datatype::Int8 => "INT8",
            Datatype::Int16 => "INT16",
            Datatype::Int32 => "INT32",
            Datatype::Int64 => "INT64",
            Datatype::Fp16 => "FP16",
            Datatype::Fp32 => "FP32",
            Datatype::Fp64 => "FP64",
            Datatype::Bf16 => "BF16",
            Datatype::Complex64 => "COMPLEX64",
            Datatype::Complex128 => "COMPLEX128",
            Datatype::Bytes => "BYTES",
        }
    }

    /// Returns the name that TensorFlow has for it, as in `tf.float32.name`, but `float` and `double` as its errors have.
    pub fn tensorflow_name(self) -> &'static str {
        match self {
            Datatype::Bool => "bool",
            Datatype::Uint8 => "uint8",
            Datatype::Uint16 => "uint16",
            Datatype::Uint32 => "uint32",
            Datatype::Uint64 => "uint64",
            Datatype::Int8 => "int8",
            Datatype::Int16 => "int16",
            Datatype::Int32 => "int32",
            Datatype::Int64 => "int64",
            Datatype::Fp16 => "half",
            Datatype::Fp32 => "float",
            Datatype::Fp64 => "double",
            Datatype::Bf16 => "bfloat16",
            Datatype::Complex64 => "complex64",
            Datatype::Complex128 => "complex128",
            Datatype::Bytes => "string",
        }
    }

    /// Returns the bytes of one element; None for BYTES, whose elements differ in length.
    pub fn size(self) -> Option<usize> {
        match self {
            Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => Some(1),
            Datatype::Uint16 | Datatype::Int16 | Datatype::Fp16 | Datatype::Bf16 => Some(2),
            Datatype::Uint32 | Datatype::Int32 | Datatype::Fp32 => Some(4),
            Datatype::Uint64 | Datatype::Int64 | Datatype::Fp64 | Datatype::Complex64 => Some(8),
            Datatype::Complex128 => Some(16),
            Datatype::Bytes => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for datatype in Datatype::ALL {
            assert_eq!(Datatype::from_name(datatype.name()), Some(datatype));
        }
        for unknown in ["", "fp32", "FP8", "STRING"] {
            assert_eq!(Datatype::from_name(unknown), None);
        }
    }
}
