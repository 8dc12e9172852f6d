//! The paths that docs/security.md lists, each with the request that the daemon decides about. Tests compare the gateway's
//! own paths with them; tests/gateway/test_locked_gateway.py tries each documented one with each role.

use std::collections::BTreeSet;
use std::fs;

/// Returns the documented methods and paths, such as `GET /v2/models/MODEL`, whose first segment is as wanted.
pub fn where_first(wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md")).unwrap();
    let code = page.split('`').skip(1).step_by(2);
    code.filter(|text| {
        let Some((method, path)) = text.split_once(" /") else { return false };
        let first = path.split('/').next().unwrap_or_default();
        matches!(method, "GET" | "POST") && wanted(first)
    })
    .map(str::to_owned)
    .collect()
}
