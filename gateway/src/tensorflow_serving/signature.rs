//! The signature of a model that a request runs.

use crate::mt1::{DaemonError, ModelMetadata, TensorMetadata};

/// The name that TensorFlow gives to a default signature.
pub const DEFAULT_SIGNATURE: &str = "serving_default";

/// A signature as a request names it.
#[derive(Clone, Copy, Debug)]
pub struct Signature<'a> {
    /// What the daemon must be asked for; `None`: the default signature.
    pub name: Option<&'a str>,
    pub inputs: &'a [TensorMetadata],
}

/// Finds the signature that a request names; without a name, or with an empty one, the default signature.
pub fn find<'a>(metadata: &'a ModelMetadata, name: Option<&str>) -> Result<Signature<'a>, DaemonError> {
    let default = Signature { name: None, inputs: &metadata.inputs };
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(default) };
    if metadata.signature_name.as_deref() == Some(name) {
        return Ok(default);
    }
    match metadata.signatures.get_key_value(name) {
        Some((_, signature)) if signature.cause.is_some() => {
            let cause = signature.cause.as_deref().unwrap_or_default();
            Err(DaemonError::invalid(format!("Serving signature name: \"{name}\" cannot be served: {cause}")))
        }
        Some((name, signature)) => Ok(Signature { name: Some(name), inputs: &signature.inputs }),
        // Formats without signatures have one in effect.
        None if metadata.signatures.is_empty() && name == DEFAULT_SIGNATURE => Ok(default),
        None => Err(not_found(name)),
    }
}

/// The error for a signature that the model does not have.
pub fn not_found(name: &str) -> DaemonError {
    DaemonError::invalid(format!("Serving signature name: \"{name}\" not found in signature def"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mt1::SignatureMetadata;
    use crate::tensor::Datatype;

    fn input(name: &str) -> TensorMetadata {
        TensorMetadata {
            name: name.to_owned(),
            datatype: Datatype::Fp32,
            shape: vec![-1],
            optional: false,
            signature_key: None,
        }
    }

    #[test]
    fn signatures_are_found_by_their_names() {
        let other = SignatureMetadata { inputs: vec![input("o")], ..Default::default() };
        let broken = SignatureMetadata { cause: Some("it is ragged".to_owned()), ..Default::default() };
        let metadata = ModelMetadata {
            inputs: vec![input("x")],
            signature_name: Some("serve".to_owned()),
            signatures: [("other".to_owned(), other), ("broken".to_owned(), broken)].into(),
            ..Default::default()
        };
        for (name, sent, inputs) in
            [(None, None, "x"), (Some(""), None, "x"), (Some("serve"), None, "x"), (Some("other"), Some("other"), "o")]
        {
            let signature = find(&metadata, name).expect("a signature");
            assert_eq!((signature.name, signature.inputs[0].name.as_str()), (sent, inputs));
        }
        for (name, message) in [
            ("serving_default", "Serving signature name: \"serving_default\" not found in signature def"),
            ("broken", "Serving signature name: \"broken\" cannot be served: it is ragged"),
        ] {
            assert_eq!(find(&metadata, Some(name)).expect_err(name).message, message);
        }
    }

    #[test]
    fn a_model_without_signatures_has_a_default_one() {
        let metadata = ModelMetadata { inputs: vec![input("x")], ..Default::default() };
        assert!(find(&metadata, Some("serving_default")).is_ok());
        assert!(find(&metadata, Some("other")).is_err());
    }
}
