//! When certificates expire (RFC 5280, section 4.1), and when the log says so.

use std::path::Path;

use prost_types::Timestamp;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::der::{SEQUENCE, next, take};

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version of a certificate, which those of version 1 do not have.
const VERSION: u8 = 0xa0;

const DAY_S: u64 = 86_400;

/// A certificate that expires within this time is worth a warning.
const SOON_S: u64 = 14 * DAY_S;

/// Returns when the first of these certificates expires, in seconds since 1970; None if a date cannot be read.
pub fn first_expiry(chain: &[CertificateDer<'_>]) -> Option<u64> {
    chain.iter().map(|certificate| not_after(certificate)).collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Returns when a certificate expires, in seconds since 1970; 0 if that was earlier.
fn not_after(mut certificate: &[u8]) -> Option<u64> {
    let mut certificate = take(&mut certificate, SEQUENCE)?;
    let mut body = take(&mut certificate, SEQUENCE)?;
    let (first, _) = next(&mut body)?;
    if first == VERSION {
        take(&mut body, INTEGER)?; // the serial number
    }
    take(&mut body, SEQUENCE)?; // the algorithm of the signature
    take(&mut body, SEQUENCE)?; // the issuer
    let mut validity = take(&mut body, SEQUENCE)?;
    next(&mut validity)?; // its beginning
    let (tag, date) = next(&mut validity)?;
    seconds_of(tag, date)
}

/// Returns the seconds since 1970 of a date such as `20261202120000Z`.
fn seconds_of(tag: u8, date: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(date.strip_suffix(b"Z")?).ok()?;
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (tag, digits.len()) {
        // Of two digits, up to 49 are of this century.
        (UTC_TIME, 12) => (if digits < "50" { "20" } else { "19" }.to_owned() + &digits[..2], &digits[2..]),
        (GENERALIZED_TIME, 14) => (digits[..4].to_owned(), &digits[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    let time = Timestamp::date_time(year.parse().ok()?, month, day, hour, minute, second).ok()?;
    Some(u64::try_from(time.seconds).unwrap_or(0))
}

/// Returns the date of a time in seconds since 1970, such as `2026-12-02`.
fn date_of(seconds: u64) -> String {
    let time = Timestamp { seconds: seconds as i64, nanos: 0 }.to_string();
    time.split_once('T').map_or_else(String::new, |(date, _)| date.to_owned())
}

/// What the log has said about the expiry of the certificate.
#[derive(Default)]
pub struct Reminder {
    /// The expiry that it was about, whether that had passed, and when it was said.
    said: Option<(u64, bool, u64)>,
}

impl Reminder {
    /// Returns a warning to log, and its fields, if the certificate has expired or expires soon: at once what is new, and
    /// otherwise once a day.
    ///
    /// Args: when the certificate expires, if that is known, and the present time, in seconds since 1970; its file.
    pub fn due(&mut self, expiry: Option<u64>, now: u64, file: &Path) -> Option<(&'static str, Value)> {
        let expiry = expiry?;
        let expired = expiry <= now;
        if !expired && expiry - now >= SOON_S {
            return None;
        }
        match self.said {
            // Not before it was said either: the clock was set back since.
            Some((said_expiry, said_expired, at))
                if (said_expiry, said_expired) == (expiry, expired) && (at..at + DAY_S).contains(&now) =>
            {
                None
            }
            _ => {
                self.said = Some((expiry, expired, now));
                let (file, date) = (file.to_string_lossy(), date_of(expiry));
                Some(if expired {
                    let days = (now - expiry) / DAY_S;
                    (
                        "the certificate has expired: clients refuse it",
                        json!({"certificate": file, "not_after": date, "days_ago": days}),
                    )
                } else {
                    let days = (expiry - now) / DAY_S;
                    ("the certificate expires soon", json!({"certificate": file, "not_after": date, "days_left": days}))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::der::tests::element;
    use super::*;

    #[test]
    fn dates_of_both_kinds_are_read() {
        for (tag, date, expected) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "261202120000Z", Some(1_796_212_800)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(0)), // 1950
            (GENERALIZED_TIME, "20240229000000Z", Some(1_709_164_800)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "20261202120000Z", None),
            (GENERALIZED_TIME, "261202120000Z", None),
            (GENERALIZED_TIME, "20261302120000Z", None),
            (GENERALIZED_TIME, "20260229120000Z", None), // no leap year
            (GENERALIZED_TIME, "00000101000000Z", Some(0)),
            (GENERALIZED_TIME, "20261200120000Z", None),
            (GENERALIZED_TIME, "20261202240000Z", None),
            (GENERALIZED_TIME, "20261202120000", None),
            (GENERALIZED_TIME, "2026120212000+Z", None),
            (UTC_TIME, "2612021200Z", None),
            (0x16, "261202120000Z", None),
        ] {
            assert_eq!(seconds_of(tag, date.as_bytes()), expected, "{date}");
        }
    }

    #[test]
    fn dates_are_written_as_they_were_read() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (1_709_164_799, "2024-02-28"),
            (1_709_164_800, "2024-02-29"),
            (4_107_542_400, "2100-03-01"),
            (253_402_300_799, "9999-12-31"),
        ] {
            assert_eq!(date_of(seconds), expected);
        }
    }

    #[test]
    fn the_first_end_of_a_chain_counts() {
        let certificate = |version: bool, expiry: &str| {
            let validity = [element(UTC_TIME, b"260101000000Z"), element(UTC_TIME, expiry.as_bytes())].concat();
            let mut body = if version { element(VERSION, &element(INTEGER, &[2])) } else { vec![] };
            for part in [element(INTEGER, &[7]), element(SEQUENCE, &[]), element(SEQUENCE, &[1; 200])] {
                body.extend(part);
            }
            body.extend(element(SEQUENCE, &validity));
            body.extend(element(SEQUENCE, &[2; 300]));
            CertificateDer::from(element(SEQUENCE, &element(SEQUENCE, &body)))
        };
        let [late, early] = [certificate(true, "261202120000Z"), certificate(false, "261202110000Z")];
        let broken = certificate(true, "soon");
        assert_eq!(first_expiry(std::slice::from_ref(&late)), Some(1_796_212_800));
        assert_eq!(first_expiry(&[late.clone(), early]), Some(1_796_209_200));
        assert_eq!(first_expiry(&[late, broken]), None);
        assert_eq!(first_expiry(&[]), None);
    }

    #[test]
    fn the_log_says_what_is_new_at_once_and_what_is_known_once_a_day() {
        let expiry = 1_796_212_800; // 2026-12-02 12:00
        let mut reminder = Reminder::default();
        let mut said = |expiry: u64, now: u64| {
            let (message, fields) = reminder.due(Some(expiry), now, Path::new("/c.pem"))?;
            let days = fields.get("days_left").or(fields.get("days_ago")).and_then(Value::as_u64);
            Some((message, fields["not_after"].as_str().map(str::to_owned), days))
        };
        let soon = |date: &str, days| Some(("the certificate expires soon", Some(date.to_owned()), Some(days)));
        let expired =
            |days| Some(("the certificate has expired: clients refuse it", Some("2026-12-02".to_owned()), Some(days)));
        for (expiry, now, expected) in [
            (expiry, expiry - 15 * DAY_S, None),
            (expiry, expiry - SOON_S, None),
            (expiry, expiry - SOON_S + 1, soon("2026-12-02", 13)),
            (expiry, expiry - SOON_S + 2, None),
            (expiry, expiry - SOON_S + DAY_S, None),
            (expiry, expiry - SOON_S + DAY_S + 1, soon("2026-12-02", 12)),
            // Another certificate.
            (expiry - DAY_S, expiry - SOON_S + DAY_S + 2, soon("2026-12-01", 11)),
            (expiry, expiry - 1, soon("2026-12-02", 0)),
            (expiry, expiry, expired(0)),
            (expiry, expiry + DAY_S - 1, None),
            (expiry, expiry + DAY_S, expired(1)),
            // It was replaced, and the clock was set back.
            (expiry + 90 * DAY_S, expiry + DAY_S + 1, None),
            (expiry, expiry - 1, soon("2026-12-02", 0)),
            (expiry, expiry - DAY_S, soon("2026-12-02", 1)),
        ] {
            assert_eq!(said(expiry, now), expected, "{} s before its expiry", expiry as i64 - now as i64);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_end_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = not_after(&bytes);
            let _ = seconds_of(GENERALIZED_TIME, &bytes);
        }

        #[test]
        fn each_day_has_one_date(days in 0u64..2_932_896) {
            let date = date_of(days * DAY_S).replace('-', "");
            prop_assert_eq!(seconds_of(GENERALIZED_TIME, format!("{date}000000Z").as_bytes()), Some(days * DAY_S));
        }
    }
}
