//! Amounts of money in minor units, never floats.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An ISO 4217 code: three capital letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

impl Currency {
    /// The code.
    pub fn as_str(&self) -> &str {
        // The only constructor admits nothing but capital letters.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A currency code that is not three capital letters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no currency code; send the three capital letters of ISO 4217, for example \"EUR\""
)]
pub struct InvalidCurrency(String);

impl FromStr for Currency {
    type Err = InvalidCurrency;

    fn from_str(code: &str) -> Result<Self, InvalidCurrency> {
        match <[u8; 3]>::try_from(code.as_bytes()) {
            Ok(bytes) if bytes.iter().all(u8::is_ascii_uppercase) => Ok(Self(bytes)),
            _ => Err(InvalidCurrency(code.chars().take(16).collect())),
        }
    }
}

impl TryFrom<String> for Currency {
    type Error = InvalidCurrency;

    fn try_from(code: String) -> Result<Self, InvalidCurrency> {
        code.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.as_str().to_owned()
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// An amount in the smallest unit of its currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// The currency.
    pub currency: Currency,
    /// The amount in minor units: 1250 is 12.50 EUR, and 1250 JPY.
    pub minor_units: i64,
}

impl fmt::Display for Money {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} minor units of {}", self.minor_units, self.currency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_three_capital_letters_are_a_currency() {
        assert_eq!("EUR".parse::<Currency>().unwrap().to_string(), "EUR");
        for wrong in ["", "eur", "EU", "EURO", "E R", "ÄÖ", "E\0R"] {
            assert!(wrong.parse::<Currency>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_currency_is_written_as_it_was_read(text in r"[A-Z]{2,4}|\PC{0,4}") {
            let fits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase());
            match text.parse::<Currency>() {
                Ok(currency) => prop_assert_eq!(currency.as_str(), text),
                Err(_) => prop_assert!(!fits),
            }
        }
    }
}
