//! JSON as Python writes it: `NaN`, `Infinity` and `-Infinity` may stand where a number may.
//!
//! Each becomes the text of its name, so that a setting that needs a number is refused under that name and never
//! taken for one that was left out.

use serde_json::{Map, Value};

/// Numbers that JSON does not have, longest first where one begins another.
const ODD_NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Parses one object. A byte order mark, as some editors leave it, means nothing.
///
/// # Errors
/// If it is not a JSON object, as one line.
pub fn parse(text: &str) -> Result<Map<String, Value>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(&quote_odd_numbers(text)).map_err(|error| format!("is not a JSON object: {error}"))
}

/// Reads the object in the file at `path`.
///
/// # Errors
/// If it cannot be read or is not a JSON object, as one line.
pub fn read(path: &std::path::Path) -> Result<Map<String, Value>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("is missing or unreadable ({error})"))?;
    parse(&text)
}

/// `text` with quotes around the odd numbers outside of strings.
fn quote_odd_numbers(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        let odd = if in_string { None } else { ODD_NUMBERS.into_iter().find(|odd| rest.starts_with(odd)) };
        let len = match (odd, c) {
            (Some(odd), _) => {
                quoted.push('"');
                quoted.push_str(odd);
                quoted.push('"');
                rest = &rest[odd.len()..];
                continue;
            }
            (None, '\\') if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, '"') => {
                in_string = !in_string;
                1
            }
            _ => c.len_utf8(),
        };
        quoted.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_does_not_have_become_their_names() {
        let values = parse("\u{feff}{\"a\":-Infinity,\"b\" : [NaN,Infinity , 1],\"c: NaN\":\"x \\\": NaN \\\\\"}");
        let values = Value::Object(values.expect("is an object"));
        let expected = serde_json::json!({"a": "-Infinity", "b": ["NaN", "Infinity", 1], "c: NaN": "x \": NaN \\"});
        assert_eq!(values, expected);
    }

    #[test]
    fn what_is_no_object_is_refused_in_one_line() {
        for text in ["", "[1]", "{\"a\": Nan}", "{\"a\": \"\\", "\u{feff}", "{\"a\": InfinityNaN}"] {
            let fault = parse(text).expect_err(text);
            assert!(fault.starts_with("is not a JSON object: ") && !fault.contains('\n'), "{fault}");
        }
    }
}
