//! The JSON Schemas of the plugins' configurations, from the types that read them.
//!
//! A schema says a little more and a little less than the plugin that it describes:
//!
//! * Keys match in any letter case, because the plugins read them so and containerd really writes `HostPort`. `properties`
//!   has the usual spelling, for editors; `patternProperties` leads every other one to the same place.
//! * A key that nobody reads is refused, although the plugins ignore it: finding a misspelt key is what a schema is for.
//!   Keys with a `/` in them and keys that begin with `x-` are other people's, and `$schema` is an editor's.
//! * `null` is accepted everywhere, because it leaves a key at its default.
//! * What depends on several keys or on the host (a rate without a burst, an interface that isn't there) is left to the
//!   plugin.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::Plugin;
use common::cni::Version;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// Where the schemas are kept.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conflists/schema")
}

/// Every schema by the name of its file.
pub fn all() -> BTreeMap<String, Value> {
    let plugins =
        [of::<portmap::Portmap>(), of::<bandwidth::Bandwidth>(), of::<firewall::Firewall>(), of::<tuning::Tuning>()];
    let conflist = conflist(&plugins.each_ref().map(|(plugin, _)| *plugin));
    let files = plugins.into_iter().map(|(plugin, schema)| (file(plugin), schema));
    files.chain([(file("conflist"), conflist)]).collect()
}

/// The text of a schema's file.
pub fn text(schema: &Value) -> String {
    format!("{schema:#}\n")
}

fn file(what: &str) -> String {
    format!("{what}.schema.json")
}

/// The schema of one plugin's configuration: the keys of its own and those that every plugin has.
fn of<P: Plugin>() -> (&'static str, Value)
where
    P::Written: JsonSchema,
{
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    // The keys of all first, so that a plugin's own description of one wins.
    let shared = properties::<common::cni::network::Written>(&mut generator);
    let own = properties::<P::Written>(&mut generator);
    let mut properties: Map<String, Value> = shared.into_iter().chain(own).collect();
    properties.insert("$schema".into(), json!({"type": "string", "description": "The address of this schema."}));
    properties["type"] = json!({"const": P::NAME, "description": "The plugin's name."});
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("Configuration of the CNI plugin {}", P::NAME),
        "type": "object",
        "properties": properties,
        "required": ["type"],
        "patternProperties": {"^x-|^[^/]+/": true},
        "$defs": generator.take_definitions(true),
    });
    if schema["$defs"].as_object().is_some_and(Map::is_empty) {
        schema.as_object_mut().map(|object| object.remove("$defs"));
    }
    let mut schema = Schema::try_from(schema).expect("an object is a schema");
    AsRead.transform(&mut schema);
    (P::NAME, with_every_spelling(schema.to_value()))
}

fn properties<T: JsonSchema>(generator: &mut SchemaGenerator) -> Map<String, Value> {
    let schema = T::json_schema(generator).to_value();
    schema["properties"].as_object().cloned().expect("a configuration has keys")
}

/// The schema of a whole conflist, whose plugins of ours are as their own schemas say.
fn conflist(plugins: &[&str]) -> Value {
    let ours = plugins.iter().map(|plugin| {
        json!({"if": {"properties": {"type": {"const": plugin}}, "required": ["type"]}, "then": {"$ref": file(plugin)}})
    });
    let versions = Version::ALL.map(Version::as_str);
    let one_that_is_spoken =
        json!({"properties": {"cniVersions": {"contains": {"enum": versions}}}, "required": ["cniVersions"]});
    // They may stand in a folder beside the conflist, but then the conflist says so.
    let in_folder =
        json!({"properties": {"loadOnlyInlinedPlugins": {"const": false}}, "required": ["loadOnlyInlinedPlugins"]});
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A list of CNI plugins, with those of cni-chain checked key by key",
        "type": "object",
        "properties": {
            "cniVersion": {"enum": versions},
            "cniVersions": {
                "type": "array",
                "items": {"type": "string", "pattern": "^[0-9]+(?:\\.[0-9]+){0,2}$"},
            },
            "name": {"type": "string", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]*$"},
            "disableCheck": {"type": ["boolean", "string"]},
            "disableGC": {"type": ["boolean", "string"]},
            "loadOnlyInlinedPlugins": {"type": "boolean"},
            "plugins": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {"type": {"type": "string", "minLength": 1}},
                    "required": ["type"],
                    "allOf": ours.collect::<Vec<_>>(),
                },
            },
        },
        "required": ["name"],
        "allOf": [
            {"anyOf": [{"required": ["cniVersion"]}, one_that_is_spoken]},
            {"anyOf": [{"required": ["plugins"]}, in_folder]},
        ],
    })
}

/// What serde's types don't say of how [`common::cni::decode`] reads: objects have no keys that nobody reads, and `null`
/// stands for a default.
struct AsRead;

impl Transform for AsRead {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        // To JSON Schema 1e300 is an integer like any other. (So is 1.0, which a plugin refuses, as Go does: no schema can
        // tell them apart.)
        if object.get("format").is_some_and(|format| format == "uint64" || format == "int64") {
            object.entry("maximum").or_insert(json!(u64::MAX));
            object.entry("minimum").or_insert(json!(i64::MIN));
        }
        // Words of OpenAPI about the width of a number, and the zero values of Rust's types.
        object.remove("format");
        object.remove("default");
        let required = object.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) else { return };
        // The default of a key that must be there is a value that is refused.
        let must_be_there = |key: &str| required.iter().any(|r| r == key);
        for (_, property) in properties.iter_mut().filter(|(key, _)| *key != "type" && !must_be_there(key)) {
            *property = or_null(property.take());
        }
        object.entry("additionalProperties").or_insert(Value::Bool(false));
    }
}

fn or_null(mut property: Value) -> Value {
    let null = json!("null");
    if property.get("$ref").is_some() {
        let description = property.as_object_mut().and_then(|p| p.remove("description"));
        property = json!({"anyOf": [property, {"type": "null"}]});
        if let Some(description) = description {
            property["description"] = description;
        }
    }
    match property.get_mut("type") {
        Some(Value::Array(types)) if types.contains(&null) => {}
        Some(Value::Array(types)) => types.push(null),
        Some(one) => *one = json!([one, "null"]),
        None => {}
    }
    if let Some(values) = property.get_mut("enum").and_then(Value::as_array_mut)
        && !values.contains(&Value::Null)
    {
        values.push(Value::Null);
    }
    property
}

/// Leads every spelling of a key to its property, at every level.
fn with_every_spelling(mut schema: Value) -> Value {
    let mut places = vec![String::new()];
    let definitions = schema["$defs"].as_object().into_iter().flatten();
    places.extend(definitions.map(|(name, _)| format!("/$defs/{name}")));
    for place in places {
        let Some(object) = schema.pointer_mut(&place).and_then(Value::as_object_mut) else { continue };
        let Some(properties) = object.get("properties").and_then(Value::as_object) else { continue };
        let spelling = |key: &String| {
            let there = key.replace('~', "~0").replace('/', "~1");
            (any_case(key), json!({"$ref": format!("#{place}/properties/{there}")}))
        };
        let spellings: Vec<(String, Value)> = properties.keys().filter(|k| !k.starts_with('$')).map(spelling).collect();
        // A key that must be there may be there in any spelling.
        let required = object.remove("required").unwrap_or_default();
        let names = required.as_array().into_iter().flatten().filter_map(Value::as_str);
        let demands: Vec<Value> = names.map(demand).collect();
        if !demands.is_empty() {
            object.insert("allOf".into(), json!(demands));
        }
        let patterns = object.entry("patternProperties").or_insert_with(|| json!({}));
        spellings.into_iter().for_each(|(pattern, to)| patterns[pattern] = to);
    }
    schema
}

/// "There is such a key, however it is spelt": not every key is another one.
fn demand(key: &str) -> Value {
    json!({"not": {"propertyNames": {"not": {"pattern": any_case(key)}}}})
}

/// A regular expression for a key in any letter case, in the dialect that JSON Schema has (no flags).
fn any_case(key: &str) -> String {
    let letter = |c: char| match c {
        c if c.is_ascii_alphabetic() => format!("[{}{}]", c.to_ascii_lowercase(), c.to_ascii_uppercase()),
        '.' => "\\.".to_owned(),
        c => c.to_string(),
    };
    format!("^{}$", key.chars().map(letter).collect::<String>())
}
