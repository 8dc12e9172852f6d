//! Values of a request's JSON that must be of one kind. Errors name their place.

use crate::json::{Kind, Scanner};
use crate::mt1::DaemonError;
use crate::open_inference::refusals::{self, wrong};

/// Reads a string.
pub fn read_string(scanner: &mut Scanner<'_>, place: &str) -> Result<String, DaemonError> {
    if scanner.kind()? != Kind::String {
        return Err(wrong(place, "a string"));
    }
    Ok(scanner.string()?.into_owned())
}

/// Reads a string or null.
pub fn read_optional_string(scanner: &mut Scanner<'_>, place: &str) -> Result<Option<String>, DaemonError> {
    if scanner.kind()? == Kind::Null {
        scanner.null()?;
        return Ok(None);
    }
    read_string(scanner, place).map(Some)
}

/// Reads `true` or `false`.
pub fn read_boolean(scanner: &mut Scanner<'_>, place: &str) -> Result<bool, DaemonError> {
    match scanner.kind()? {
        Kind::True | Kind::False => Ok(scanner.boolean()?),
        _ => Err(wrong(place, "true or false")),
    }
}

/// Reads an integer from 0 on that MT1 can have.
pub fn read_unsigned(scanner: &mut Scanner<'_>, place: &str) -> Result<u64, DaemonError> {
    let refused = || refusals::not_an_integer(place);
    if scanner.kind()? != Kind::Number {
        return Err(refused());
    }
    let value = scanner.number()?.as_i64().ok_or_else(refused)?;
    u64::try_from(value).map_err(|_| refused())
}
