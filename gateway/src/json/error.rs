//! Errors of reading JSON.

use std::fmt;

/// What an error concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// The text is not JSON.
    Syntax,
    /// The text is JSON, but a value is not what was expected.
    Value,
    /// The value cannot be converted to the datatype, whatever it is.
    Unsupported,
}

#[derive(Debug)]
struct Detail {
    category: Category,
    offset: usize,
    message: String,
}

/// Why a text was refused. Its display is a sentence for the client.
#[derive(Debug)]
pub struct Error(Box<Detail>);

impl Error {
    /// The text is not JSON: `problem` is a sentence about what is wrong at `offset`.
    #[cold]
    pub fn syntax(offset: usize, problem: &str) -> Self {
        Self::new(Category::Syntax, offset, problem.to_owned())
    }

    /// A value is not what was expected.
    #[cold]
    pub fn value(offset: usize, message: impl Into<String>) -> Self {
        Self::new(Category::Value, offset, message.into())
    }

    /// No value can be converted to this datatype.
    #[cold]
    pub fn unsupported(offset: usize, message: impl Into<String>) -> Self {
        Self::new(Category::Unsupported, offset, message.into())
    }

    fn new(category: Category, offset: usize, message: String) -> Self {
        Self(Box::new(Detail { category, offset, message }))
    }

    pub fn category(&self) -> Category {
        self.0.category
    }

    /// Position in the text, in bytes.
    pub fn offset(&self) -> usize {
        self.0.offset
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.category {
            Category::Syntax => {
                write!(formatter, "JSON Parse error: {} at offset: {}", self.0.message, self.0.offset)
            }
            Category::Value | Category::Unsupported => formatter.write_str(&self.0.message),
        }
    }
}

impl std::error::Error for Error {}
