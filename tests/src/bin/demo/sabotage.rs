//! Finding the one thing in the host's rules whose loss takes a published port away.

use serde_json::Value;

/// The `nft` command line that deletes the map element, or else the rule, that has `port` in its key.
///
/// `ruleset` is what `nft -j -a list ruleset` prints (libnftables-json(5)).
pub(crate) fn command_against(ruleset: &str, port: u16) -> Option<String> {
    let ruleset: Value = serde_json::from_str(ruleset).ok()?;
    let objects = ruleset["nftables"].as_array()?;
    let element = objects.iter().find_map(|object| {
        let map = object.get("map")?;
        let key = map["elem"].as_array()?.iter().map(key_of).find(|key| mentions(key, port))?;
        Some(format!("nft delete element {} {{ {} }}", place(map, "name")?, text(key)?))
    });
    element.or_else(|| {
        let rule = objects.iter().filter_map(|o| o.get("rule")).find(|rule| mentions(&rule["expr"], port))?;
        Some(format!("nft delete rule {} handle {}", place(rule, "chain")?, rule["handle"]))
    })
}

/// `FAMILY TABLE NAME`
fn place(object: &Value, name: &str) -> Option<String> {
    Some(format!("{} {} {}", object["family"].as_str()?, object["table"].as_str()?, object[name].as_str()?))
}

/// A map's element is `[key, value]`; a key with a comment or the like is `{"elem": {"val": key, …}}`.
fn key_of(element: &Value) -> &Value {
    let key = element.get(0).unwrap_or(element);
    key.get("elem").map_or(key, |elem| &elem["val"])
}

fn text(key: &Value) -> Option<String> {
    match key {
        Value::Object(object) => {
            let parts: Option<Vec<String>> = object.get("concat")?.as_array()?.iter().map(text).collect();
            Some(parts?.join(" . "))
        }
        Value::String(word) => Some(word.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn mentions(json: &Value, port: u16) -> bool {
    match json {
        Value::Number(number) => number.as_u64() == Some(port.into()),
        Value::Array(items) => items.iter().any(|item| mentions(item, port)),
        Value::Object(object) => object.values().any(|value| mentions(value, port)),
        _ => false,
    }
}
