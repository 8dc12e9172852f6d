//! Tensors as MT1 transmits them: a name, a datatype, a shape, and the bytes of one frame.

mod bytes_elements;
mod datatype;

pub use bytes_elements::{BytesElements, push_element};
pub use datatype::Datatype;

use bytes::Bytes;

/// One tensor: little-endian, row-major, without padding. BYTES elements have a length of four bytes before each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub datatype: Datatype,
    pub shape: Vec<i64>,
    pub data: Bytes,
}

/// Returns the number of elements that a shape has, or None if a dimension is negative or the product overflows.
pub fn element_count(shape: &[i64]) -> Option<usize> {
    if shape.contains(&0) && shape.iter().all(|&dimension| dimension >= 0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |count, &dimension| count.checked_mul(usize::try_from(dimension).ok()?))
}

/// Returns the bytes that a tensor needs, or None for BYTES, or if the shape is negative or too large.
pub fn byte_count(datatype: Datatype, shape: &[i64]) -> Option<usize> {
    element_count(shape)?.checked_mul(datatype.size()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_elements() {
        let table: &[(&[i64], Option<usize>)] = &[
            (&[], Some(1)),
            (&[3], Some(3)),
            (&[2, 3], Some(6)),
            (&[2, 0, 5], Some(0)),
            (&[-1, 2], None),
            (&[0, -1], None),
            (&[i64::MAX, 3], None),
            (&[i64::MAX, i64::MAX, 0], Some(0)),
        ];
        for (shape, count) in table {
            assert_eq!(element_count(shape), *count, "{shape:?}");
        }
        assert_eq!(byte_count(Datatype::Fp32, &[2, 3]), Some(24));
        assert_eq!(byte_count(Datatype::Bytes, &[2]), None);
        assert_eq!(byte_count(Datatype::Fp64, &[i64::MAX]), None);
    }
}
