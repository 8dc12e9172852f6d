//! Bodies of replies: outputs of a model, written from the bytes that the daemon sent.

use super::predict::Format;
use crate::json::{BytesAs, Values, WriteError, write_float32, write_string};
use crate::mt1::DaemonError;
use crate::proto::tensorflow::serving::{ClassificationResult, RegressionResult};
use crate::tensor::{Datatype, Tensor};

/// BYTES outputs whose names end so are binary.
const BINARY_SUFFIX: &str = "_bytes";

/// Returns the body of the reply to a `:predict` request: `predictions` or `outputs`. A single output has no name there.
pub fn predictions(format: Format, outputs: &[Tensor]) -> Result<Vec<u8>, DaemonError> {
    if outputs.is_empty() {
        return Err(DaemonError::invalid("Cannot convert empty tensor map to JSON"));
    }
    let bytes: usize = outputs.iter().map(|tensor| tensor.data.len()).sum();
    // Most numbers take two to three times as many characters as bytes.
    let mut out = Vec::with_capacity(64 + 3 * bytes);
    match format {
        Format::Row => rows(&mut out, outputs)?,
        Format::Column => columns(&mut out, outputs)?,
    }
    Ok(out)
}

/// Returns the body of the reply to a `:classify` request: for each example its classes, each with a label and a score.
pub fn classifications(result: &ClassificationResult) -> Vec<u8> {
    let mut out = b"{\"results\":[".to_vec();
    for (index, classes) in result.classifications.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"[" } else { b",[" });
        for (index, class) in classes.classes.iter().enumerate() {
            out.extend_from_slice(if index == 0 { b"[" } else { b",[" });
            write_string(&mut out, &class.label);
            out.push(b',');
            write_float32(&mut out, class.score);
            out.push(b']');
        }
        out.push(b']');
    }
    out.extend_from_slice(b"]}\n");
    out
}

/// Returns the body of the reply to a `:regress` request: a value for each example.
pub fn regressions(result: &RegressionResult) -> Vec<u8> {
    let mut out = b"{\"results\":[".to_vec();
    for (index, regression) in result.regressions.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_float32(&mut out, regression.value);
    }
    out.extend_from_slice(b"]}\n");
    out
}

fn values(tensor: &Tensor) -> Result<Values<'_>, DaemonError> {
    let binary = tensor.datatype == Datatype::Bytes && tensor.name.ends_with(BINARY_SUFFIX);
    let bytes_as = if binary { BytesAs::Base64 } else { BytesAs::TextOrBase64 };
    Values::new(tensor, bytes_as).map_err(|error| unwritable(tensor, error))
}

#[cold]
fn unwritable(tensor: &Tensor, error: WriteError) -> DaemonError {
    let message = match error {
        WriteError::Unsupported(_) => error.to_string(),
        _ => format!("the output {} cannot be written as JSON: {error}", tensor.name),
    };
    crate::http::unwritable(error, message)
}

fn rows(out: &mut Vec<u8>, outputs: &[Tensor]) -> Result<(), DaemonError> {
    let mut columns = Vec::with_capacity(outputs.len());
    let mut batch_size = None;
    for tensor in outputs {
        let name = &tensor.name;
        let [size, shape @ ..] = &tensor.shape[..] else {
            return Err(DaemonError::invalid(format!("Tensor name: {name} has no shape information")));
        };
        let expected = *batch_size.get_or_insert(*size);
        if *size != expected {
            let message = format!("Tensor name: {name} has inconsistent batch size: {size} expecting: {expected}");
            return Err(DaemonError::invalid(message));
        }
        columns.push((tensor, values(tensor)?, shape));
    }
    let named = columns.len() > 1;
    out.extend_from_slice(b"{\"predictions\":[");
    for row in 0..batch_size.unwrap_or_default() {
        if row > 0 {
            out.push(b',');
        }
        if named {
            out.push(b'{');
        }
        for (index, (tensor, values, shape)) in columns.iter_mut().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            if named {
                write_string(out, &tensor.name);
                out.push(b':');
            }
            values.write(out, shape).map_err(|error| unwritable(tensor, error))?;
        }
        if named {
            out.push(b'}');
        }
    }
    out.extend_from_slice(b"]}\n");
    Ok(())
}

fn columns(out: &mut Vec<u8>, outputs: &[Tensor]) -> Result<(), DaemonError> {
    let named = outputs.len() > 1;
    out.extend_from_slice(b"{\"outputs\":");
    if named {
        out.push(b'{');
    }
    for (index, tensor) in outputs.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if named {
            write_string(out, &tensor.name);
            out.push(b':');
        }
        values(tensor)?.write(out, &tensor.shape).map_err(|error| unwritable(tensor, error))?;
    }
    if named {
        out.push(b'}');
    }
    out.extend_from_slice(b"}\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mt1::Code;
    use crate::proto::tensorflow::serving::{Class, Classifications, Regression};
    use crate::tensor::push_element;

    fn floats(name: &str, shape: &[i64], values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { name: name.to_owned(), datatype: Datatype::Fp32, shape: shape.to_vec(), data: Bytes::from(data) }
    }

    fn strings(name: &str, shape: &[i64], values: &[&[u8]]) -> Tensor {
        let mut data = Vec::new();
        values.iter().for_each(|value| push_element(&mut data, value));
        Tensor { name: name.to_owned(), datatype: Datatype::Bytes, shape: shape.to_vec(), data: Bytes::from(data) }
    }

    fn text(format: Format, outputs: &[Tensor]) -> String {
        String::from_utf8(predictions(format, outputs).expect("a body")).expect("UTF-8")
    }

    #[test]
    fn a_single_output_has_no_name() {
        let output = [floats("y", &[2, 2], &[2.5, 3.0, 3.5, f32::NAN])];
        assert_eq!(text(Format::Row, &output), "{\"predictions\":[[2.5,3.0],[3.5,NaN]]}\n");
        assert_eq!(text(Format::Column, &output), "{\"outputs\":[[2.5,3.0],[3.5,NaN]]}\n");
        let scalars = [floats("y", &[2], &[1.0, 2.0])];
        assert_eq!(text(Format::Row, &scalars), "{\"predictions\":[1.0,2.0]}\n");
        assert_eq!(text(Format::Column, &[floats("y", &[], &[1.0])]), "{\"outputs\":1.0}\n");
        assert_eq!(text(Format::Row, &[floats("y", &[0, 3], &[])]), "{\"predictions\":[]}\n");
    }

    #[test]
    fn several_outputs_have_names() {
        let outputs = [floats("p", &[2, 1], &[1.0, 2.0]), strings("q\"", &[2], &[b"a", b"\xff"])];
        assert_eq!(
            text(Format::Row, &outputs),
            "{\"predictions\":[{\"p\":[1.0],\"q\\\"\":\"a\"},{\"p\":[2.0],\"q\\\"\":{\"b64\":\"/w==\"}}]}\n"
        );
        assert_eq!(
            text(Format::Column, &outputs),
            "{\"outputs\":{\"p\":[[1.0],[2.0]],\"q\\\"\":[\"a\",{\"b64\":\"/w==\"}]}}\n"
        );
    }

    #[test]
    fn outputs_whose_names_end_in_bytes_are_base64() {
        assert_eq!(
            text(Format::Row, &[strings("image_bytes", &[1, 1], &[b"a"])]),
            "{\"predictions\":[[{\"b64\":\"YQ==\"}]]}\n"
        );
        assert_eq!(text(Format::Row, &[floats("f_bytes", &[1], &[1.0])]), "{\"predictions\":[1.0]}\n");
    }

    #[test]
    fn outputs_without_common_rows_cannot_be_written_row_by_row() {
        let scalar = floats("s", &[], &[1.0]);
        let (two, three) = (floats("a", &[2], &[0.0; 2]), floats("b", &[3], &[0.0; 3]));
        for (outputs, message) in [
            (vec![scalar], "Tensor name: s has no shape information"),
            (vec![two, three], "Tensor name: b has inconsistent batch size: 3 expecting: 2"),
            (vec![], "Cannot convert empty tensor map to JSON"),
        ] {
            assert_eq!(predictions(Format::Row, &outputs).expect_err(message).message, message);
        }
    }

    #[test]
    fn classes_and_values_are_results() {
        let class = |label: &str, score| Class { label: label.to_owned(), score };
        let classes = |classes| Classifications { classes };
        let result = ClassificationResult {
            classifications: vec![classes(vec![class("a\"", 0.25), class("", 1.0)]), classes(vec![])],
        };
        let text = String::from_utf8(classifications(&result)).expect("UTF-8");
        assert_eq!(text, "{\"results\":[[[\"a\\\"\",0.25],[\"\",1.0]],[]]}\n");
        let values = [42.0, f32::NAN].map(|value| Regression { value }).into();
        let text = String::from_utf8(regressions(&RegressionResult { regressions: values })).expect("UTF-8");
        assert_eq!(text, "{\"results\":[42.0,NaN]}\n");
    }

    #[test]
    fn outputs_that_json_cannot_have_are_errors() {
        let complex = Tensor { datatype: Datatype::Complex64, ..floats("c", &[1], &[0.0; 2]) };
        let error = predictions(Format::Column, &[complex]).expect_err("complex");
        assert_eq!(error.message, "Failed to write JSON value for tensor type: complex64");
        assert_eq!(error.code, Code::Unimplemented);
        let short = floats("y", &[3], &[0.0]);
        assert_eq!(predictions(Format::Row, &[short]).expect_err("short").code, Code::Internal);
    }
}
