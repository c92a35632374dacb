//! JSON as a runtime writes it, read as Go's decoder would read it.
//!
//! The runtimes are Go programs and so were the plugins before us, and configurations live by what `encoding/json`
//! accepts: object keys match in any letter case (containerd really sends `HostPort` where the conventions say
//! `hostPort`), the last of several equal keys wins, unknown keys are ignored and `null` leaves a value as it is.
//! [`Json`] keeps objects in their order and with their duplicates, so that a plugin can care about either.
//!
//! What is read takes bounded memory, whatever comes: a list or object of more than [`ENTRIES_MAX`] entries, or one that
//! would make the whole take more than [`MEMORY_MAX`] bytes, is passed over while it is parsed. [`Json::Excess`] stands in
//! its place, which only those mind who need its value.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::Number;

use super::error::Error;

/// A JSON value whose objects keep their order and their duplicate keys.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Json {
    /// `null`
    #[default]
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object, in the order written, duplicates included.
    Object(Vec<(String, Json)>),
    /// An array or object that was too large to be kept: in what way.
    Excess(&'static str),
}

/// Entries of one array or object: 65,535 ports of three protocols are the longest list that anybody has use for.
pub const ENTRIES_MAX: usize = 196_605;

/// Bytes that the values of one document may take: that many mappings with every key take 90 MiB.
pub const MEMORY_MAX: usize = 96 << 20;

const TOO_MANY: &str = "more than 196605 entries";
const TOO_MUCH: &str = "more than 96 MiB of values";

impl Json {
    /// The value of `key` in an object, in any letter case; of several the last.
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(pairs) => pairs.iter().rev().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The string this is, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(s) => Some(s),
            _ => None,
        }
    }

    /// What kind of value this is, for a message.
    pub fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
            Json::Excess(how) => how,
        }
    }

    /// Whether all of it was kept.
    pub fn is_whole(&self) -> bool {
        match self {
            Json::Array(items) => items.iter().all(Json::is_whole),
            Json::Object(pairs) => pairs.iter().all(|(_, value)| value.is_whole()),
            Json::Excess(_) => false,
            _ => true,
        }
    }

    /// Reads this value into `T`, matching the keys of structs in any letter case.
    ///
    /// Keys that no field takes but that look like one are reported to `misspelt`.
    pub fn read<T: DeserializeOwned>(&self, misspelt: &mut Vec<Misspelt>) -> Result<T, DecodeError> {
        let mut seen = Misspellings { found: misspelt, also_known: &[] };
        T::deserialize(Folding { value: self, misspelt: &mut seen })
    }

    /// The pairs of this object whose value `T` can take.
    pub fn readable_by<T: DeserializeOwned>(&self) -> Readable<'_> {
        let Json::Object(pairs) = self else { return Readable(Vec::new()) };
        let is_readable = |pair: &&(String, Json)| Readable(vec![*pair]).read::<T>().is_ok();
        Readable(pairs.iter().filter(is_readable).collect())
    }

    /// Like [`Json::read`] for one of several readers of the same object: `also_known` are the keys of the others.
    pub fn read_beside<T: DeserializeOwned>(
        &self,
        also_known: &'static [&'static str],
        misspelt: &mut Vec<Misspelt>,
    ) -> Result<T, DecodeError> {
        let mut seen = Misspellings { found: misspelt, also_known };
        T::deserialize(Folding { value: self, misspelt: &mut seen })
    }
}

/// Some pairs of an object.
#[derive(Debug)]
pub struct Readable<'a>(Vec<&'a (String, Json)>);

impl Readable<'_> {
    /// Reads them as [`Json::read`] reads a whole object.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        struct Pairs<'a>(&'a [&'a (String, Json)]);

        impl<'de> Deserializer<'de> for Pairs<'_> {
            type Error = DecodeError;
            fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DecodeError> {
                Err(de::Error::custom("pairs are read by a struct only"))
            }
            fn deserialize_struct<V: Visitor<'de>>(
                self,
                _: &'static str,
                fields: &'static [&'static str],
                visitor: V,
            ) -> Result<V::Value, DecodeError> {
                let misspelt = &mut Misspellings { found: &mut Vec::new(), also_known: &[] };
                visit_fields(self.0.iter().copied(), fields, visitor, misspelt)
            }
            serde::forward_to_deserialize_any! {
                bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
                unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
            }
        }

        T::deserialize(Pairs(&self.0))
    }

    /// The value of `key` among them, as [`Json::get`] gives it.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.0.iter().rev().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v)
    }
}

impl<'de> serde::Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Within(&mut Room { left: MEMORY_MAX }).deserialize(deserializer)
    }
}

impl serde::Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(b) => serializer.serialize_bool(*b),
            Json::Number(n) => n.serialize(serializer),
            Json::String(s) => serializer.serialize_str(s),
            Json::Array(items) => serializer.collect_seq(items),
            Json::Object(pairs) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                for (key, value) in pairs {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
            Json::Excess(how) => Err(serde::ser::Error::custom(how)),
        }
    }
}

/// Bytes that a document's values may still take.
struct Room {
    left: usize,
}

impl Room {
    /// Takes so many bytes; whether there were as many.
    fn take(&mut self, bytes: usize) -> bool {
        let rest = self.left.checked_sub(bytes);
        self.left = rest.unwrap_or(self.left);
        rest.is_some()
    }

    /// What a vector has grown by with its last entry.
    fn take_growth<T>(&mut self, before: usize, vector: &Vec<T>) -> bool {
        before == vector.capacity() || self.take((vector.capacity() - before) * size_of::<T>())
    }

    /// A string with what its allocation takes beside it.
    fn take_text(&mut self, text: &str) -> bool {
        self.take(text.len().next_multiple_of(16) + 16)
    }
}

/// Reads one value into the room that is left.
struct Within<'a>(&'a mut Room);

impl<'de> DeserializeSeed<'de> for Within<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Within<'_> {
    fn text(self, text: impl AsRef<str> + Into<String>) -> Json {
        if self.0.take_text(text.as_ref()) { Json::String(text.into()) } else { Json::Excess(TOO_MUCH) }
    }
}

impl<'de> Visitor<'de> for Within<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
    fn visit_none<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Json, E> {
        Ok(Json::Bool(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Json, E> {
        Ok(Json::Number(v.into()))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Json, E> {
        Ok(Json::Number(v.into()))
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Json, E> {
        Number::from_f64(v).map(Json::Number).ok_or_else(|| E::custom("not a finite number"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Json, E> {
        Ok(self.text(v))
    }
    fn visit_string<E>(self, v: String) -> Result<Json, E> {
        Ok(self.text(v))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let (room, whole) = (self.0.left, self.0);
        let mut items = Vec::new();
        let how = loop {
            let Some(item) = seq.next_element_seed(Within(whole))? else { return Ok(Json::Array(items)) };
            let before = items.capacity();
            items.push(item);
            if items.len() > ENTRIES_MAX {
                break TOO_MANY;
            }
            if !whole.take_growth(before, &items) {
                break TOO_MUCH;
            }
        };
        drop(items);
        whole.left = room;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Json::Excess(how))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let (room, whole) = (self.0.left, self.0);
        let mut pairs: Vec<(String, Json)> = Vec::new();
        let how = loop {
            let Some(key) = map.next_key::<String>()? else { return Ok(Json::Object(pairs)) };
            let mut fits = whole.take_text(&key);
            let before = pairs.capacity();
            pairs.push((key, map.next_value_seed(Within(whole))?));
            fits &= whole.take_growth(before, &pairs);
            if pairs.len() > ENTRIES_MAX {
                break TOO_MANY;
            }
            if !fits {
                break TOO_MUCH;
            }
        };
        drop(pairs);
        whole.left = room;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Json::Excess(how))
    }
}

/// A key that nothing reads, and the key its author probably meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misspelt {
    /// The key as written.
    pub written: String,
    /// The key that would have been read.
    pub meant: &'static str,
}

impl fmt::Display for Misspelt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration key \"{}\" is not known and ignored; was \"{}\" meant?", self.written, self.meant)
    }
}

struct Misspellings<'a> {
    found: &'a mut Vec<Misspelt>,
    also_known: &'static [&'static str],
}

/// Misspelt keys that are told: more are hardly slips.
const MISSPELT_MAX: usize = 16;

impl Misspellings<'_> {
    fn note(&mut self, key: &str, fields: &'static [&'static str]) {
        if self.found.len() >= MISSPELT_MAX || self.also_known.iter().any(|k| k.eq_ignore_ascii_case(key)) {
            return;
        }
        let lower = key.to_ascii_lowercase();
        let length = lower.chars().count();
        let near = fields.iter().chain(self.also_known).copied().find(|field| {
            let allowed = if field.len() < 6 { 1 } else { 2 };
            // No distance is less than these differences, and they are known at once.
            field.len() >= 3
                && field.len().abs_diff(length) <= allowed
                && letters_apart(&lower, field) <= allowed
                && strsim::damerau_levenshtein(&lower, &field.to_ascii_lowercase()) <= allowed
        });
        if let Some(meant) = near {
            self.found.push(Misspelt { written: key.to_owned(), meant });
        }
    }
}

/// How many letters one of two words has at least more of than the other, whatever their order: one that is left out, put in
/// or exchanged changes it by one, and two that change places by none. `a` is in lower case.
fn letters_apart(a: &str, b: &str) -> usize {
    let mut more = [0i16; 26];
    let place = |byte: u8| usize::from(byte.to_ascii_lowercase().wrapping_sub(b'a'));
    for (word, step) in [(a, 1), (b, -1)] {
        for byte in word.bytes() {
            if let Some(count) = more.get_mut(place(byte)) {
                *count += step;
            }
        }
    }
    let sum =
        |of: fn(i16) -> bool| more.iter().filter(|count| of(**count)).map(|c| usize::from(c.unsigned_abs())).sum();
    usize::max(sum(|count| count > 0), sum(|count| count < 0))
}

/// A value that isn't what its key takes: where, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    path: Vec<String>,
    reason: String,
    /// The value in words where it is of its type, and only too large.
    excess: Option<String>,
}

impl DecodeError {
    fn at(mut self, step: impl Into<String>) -> Self {
        self.path.push(step.into());
        self
    }

    /// The key in dotted form, as `runtimeConfig.portMappings.0.hostPort`.
    pub fn key(&self) -> String {
        let steps: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        steps.join(".")
    }

    fn excess(value: impl Into<String>, reason: impl Into<String>) -> Self {
        DecodeError { path: Vec::new(), reason: reason.into(), excess: Some(value.into()) }
    }

    /// The same of a value that stands within another.
    pub fn within(self, key: &str) -> Self {
        self.at(key)
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.key(), self.reason) }
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        DecodeError { path: Vec::new(), reason: msg.to_string(), excess: None }
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        DecodeError::excess(format!("{length} entries"), format!("expected {expected}"))
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Error {
        let key = error.key();
        match error.excess {
            Some(value) => Error::invalid(key, value, error.reason),
            None => Error::WrongType { key, reason: error.reason },
        }
    }
}

/// Reads a list of at most `MOST` entries: what is more is refused before it is read, by the key and the bound.
pub fn at_most<'de, const MOST: usize, D: Deserializer<'de>, T: serde::Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct List<T, const MOST: usize>(std::marker::PhantomData<T>);

    impl<'de, T: serde::Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MOST}")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let told = seq.size_hint().unwrap_or_default();
            if told > MOST {
                return Err(de::Error::invalid_length(told, &self));
            }
            let mut items = Vec::with_capacity(told);
            while let Some(item) = seq.next_element()? {
                items.push(item);
                if items.len() > MOST {
                    return Err(de::Error::invalid_length(items.len(), &self));
                }
            }
            Ok(items)
        }
    }

    deserializer.deserialize_seq(List::<T, MOST>(std::marker::PhantomData))
}

/// Deserializer over a [`Json`] that folds the case of struct keys and lets the last duplicate win.
struct Folding<'a, 'm, 'k> {
    value: &'a Json,
    misspelt: &'m mut Misspellings<'k>,
}

impl<'de> Deserializer<'de> for Folding<'_, '_, '_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Json::Null => visitor.visit_unit(),
            Json::Bool(b) => visitor.visit_bool(*b),
            Json::Number(n) => visit_number(n, visitor),
            Json::String(s) => visitor.visit_str(s),
            Json::Array(items) => visitor.visit_seq(Items { items: items.iter(), at: 0, misspelt: self.misspelt }),
            Json::Object(pairs) => {
                let entries = pairs.iter().map(|(k, v)| (Key::Written(k), v)).collect();
                visitor.visit_map(Entries { entries, at: 0, misspelt: self.misspelt })
            }
            Json::Excess(how) => Err(excessive(how)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Json::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        // Of an array, serde would take the items for the fields, in turn; and it would name the type in Rust.
        match self.value {
            Json::Object(pairs) => visit_fields(pairs.iter(), fields, visitor, self.misspelt),
            Json::Excess(how) => Err(excessive(how)),
            other => Err(de::Error::custom(format!("invalid type: {}, expected an object", other.kind()))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.value {
            Json::String(s) => visitor.visit_enum(IntoDeserializer::<DecodeError>::into_deserializer(s.as_str())),
            Json::Excess(how) => Err(excessive(how)),
            other => Err(de::Error::custom(format!("must be a string, not {}", other.kind()))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier
    }
}

fn excessive(how: &str) -> DecodeError {
    DecodeError::excess(how, "nothing has so much of anything; it was not read")
}

/// Those of an object's pairs that are fields.
fn visit_fields<'de, 'a, V: Visitor<'de>>(
    pairs: impl Iterator<Item = &'a (String, Json)>,
    fields: &'static [&'static str],
    visitor: V,
    misspelt: &mut Misspellings<'_>,
) -> Result<V::Value, DecodeError> {
    let mut entries: Vec<(Key<'_>, &Json)> = Vec::with_capacity(fields.len());
    for (key, value) in pairs {
        match fields.iter().find(|f| f.eq_ignore_ascii_case(key)) {
            // `null` leaves a field at its default, as in Go.
            Some(_) if *value == Json::Null => {}
            Some(field) => {
                entries.retain(|(k, _)| !matches!(k, Key::Field(f) if f == field));
                entries.push((Key::Field(field), value));
            }
            None => misspelt.note(key, fields),
        }
    }
    visitor.visit_map(Entries { entries, at: 0, misspelt })
}

fn visit_number<'de, V: Visitor<'de>>(n: &Number, visitor: V) -> Result<V::Value, DecodeError> {
    if let Some(u) = n.as_u64() {
        visitor.visit_u64(u)
    } else if let Some(i) = n.as_i64() {
        visitor.visit_i64(i)
    } else {
        visitor.visit_f64(n.as_f64().unwrap_or(f64::NAN))
    }
}

struct Items<'a, 'm, 'k> {
    items: std::slice::Iter<'a, Json>,
    at: usize,
    misspelt: &'m mut Misspellings<'k>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_, '_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        let Some(value) = self.items.next() else { return Ok(None) };
        let at = self.at;
        self.at += 1;
        let inner = &mut Misspellings { found: self.misspelt.found, also_known: &[] };
        seed.deserialize(Folding { value, misspelt: inner }).map(Some).map_err(|e| e.at(at.to_string()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

#[derive(Clone, Copy)]
enum Key<'a> {
    Field(&'static str),
    Written(&'a str),
}

impl<'a> Key<'a> {
    fn text(self) -> &'a str {
        match self {
            Key::Field(f) => f,
            Key::Written(w) => w,
        }
    }
}

struct Entries<'a, 'm, 'k> {
    entries: Vec<(Key<'a>, &'a Json)>,
    at: usize,
    misspelt: &'m mut Misspellings<'k>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_, '_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        let Some((key, _)) = self.entries.get(self.at) else { return Ok(None) };
        seed.deserialize(IntoDeserializer::<DecodeError>::into_deserializer(key.text())).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let Some((key, value)) = self.entries.get(self.at).copied() else {
            return Err(de::Error::custom("value asked for before its key"));
        };
        self.at += 1;
        let inner = &mut Misspellings { found: self.misspelt.found, also_known: &[] };
        seed.deserialize(Folding { value, misspelt: inner }).map_err(|e| e.at(key.text()))
    }
}

/// An address with the length of its prefix, as Go's `net.ParseCIDR` reads it: a number of the address doesn't begin with a
/// nought, which elsewhere makes it octal.
pub fn cidr(text: &str) -> Option<IpNet> {
    let (address, _) = text.split_once('/')?;
    address.parse::<IpAddr>().ok()?;
    text.parse().ok()
}

/// The names of the fields that `T` reads from an object.
pub fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Probe<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = DecodeError;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DecodeError> {
            Err(de::Error::custom("only the field names were wanted"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, DecodeError> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
            unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut fields: &'static [&'static str] = &[];
    let _ = T::deserialize(Probe(&mut fields));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Mapping {
        host_port: i64,
        #[serde(rename = "hostIP")]
        host_ip: String,
        wide: Option<u64>,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Outer {
        port_mappings: Vec<Mapping>,
        sysctl: std::collections::BTreeMap<String, String>,
    }

    fn read(text: &str) -> (Result<Outer, DecodeError>, Vec<Misspelt>) {
        let json: Json = serde_json::from_str(text).unwrap();
        let mut misspelt = Vec::new();
        let outer = json.read(&mut misspelt);
        (outer, misspelt)
    }

    proptest::proptest! {
        #[test]
        fn no_distance_is_less_than_the_letters_apart(a in "[a-dé]{0,9}", b in "[a-dA-Dé]{0,9}") {
            let distance = strsim::damerau_levenshtein(&a, &b.to_ascii_lowercase());
            proptest::prop_assert!(letters_apart(&a, &b) <= distance);
        }
    }

    #[test]
    fn letters_that_change_places_are_not_apart() {
        assert_eq!(letters_apart("ingressrate", "igrnessRate"), 0);
        assert_eq!(letters_apart("ingressrate", "ingressRates"), 1);
        assert_eq!(letters_apart("prevresult", "egressRate"), 4);
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_duplicate_wins() {
        let (outer, _) =
            read(r#"{"PORTmappings":[{"HostPort":1,"hostPort":2,"HOSTIP":"::"}],"sysctl":{"A":"1","a":"2"}}"#);
        let outer = outer.unwrap();
        assert_eq!(outer.port_mappings, [Mapping { host_port: 2, host_ip: "::".into(), wide: None }]);
        assert_eq!(outer.sysctl.len(), 2, "keys of maps keep their case");
    }

    #[test]
    fn null_leaves_the_default() {
        let (outer, _) = read(r#"{"portMappings":null,"sysctl":{}}"#);
        assert_eq!(outer.unwrap(), Outer::default());
    }

    #[test]
    fn a_wrong_type_is_named_with_its_path() {
        let (outer, _) = read(r#"{"portMappings":[{},{"hostPort":"eighty"}]}"#);
        let error = outer.unwrap_err();
        assert_eq!(error.key(), "portMappings.1.hostPort");
        assert!(error.to_string().contains("eighty"), "{error}");
    }

    #[test]
    fn an_array_is_no_object() {
        let (outer, _) = read(r#"{"portMappings":[[8080,"::"]]}"#);
        assert_eq!(outer.unwrap_err().key(), "portMappings.0");
    }

    #[test]
    fn a_key_that_is_nearly_ours_is_reported() {
        let (_, misspelt) = read(r#"{"portMapings":[],"unrelated":1}"#);
        assert_eq!(misspelt, [Misspelt { written: "portMapings".into(), meant: "portMappings" }]);
    }

    #[test]
    fn field_names_are_known_without_a_value() {
        assert_eq!(fields_of::<Mapping>(), ["hostPort", "hostIP", "wide"]);
    }

    #[test]
    fn what_is_too_long_is_passed_over_and_minded_by_whoever_needs_it() {
        let many = |entry: &str| vec![entry; ENTRIES_MAX + 1].join(",");
        let text = format!(r#"{{"portMappings":[{}],"sysctl":{{{}}}}}"#, many("{}"), many(r#""a":"1""#));
        let json: Json = serde_json::from_str(&text).unwrap();
        assert_eq!(json.get("portMappings"), Some(&Json::Excess(TOO_MANY)));
        assert_eq!(json.get("sysctl"), Some(&Json::Excess(TOO_MANY)));
        let error = Error::from(json.read::<Outer>(&mut Vec::new()).unwrap_err());
        assert_eq!(error.code(), 7);
        let text = error.to_string();
        assert!(text.contains("portMappings = more than 196605 entries"), "{text}");
        let exactly = format!(r#"{{"portMappings":[{}]}}"#, vec!["{}"; ENTRIES_MAX].join(","));
        assert_eq!(read(&exactly).0.unwrap().port_mappings.len(), ENTRIES_MAX);
    }

    #[test]
    fn what_takes_too_much_memory_is_passed_over_where_it_does() {
        let small = vec![r#"{"":{"":{"":0}}}"#; 300].join(",");
        let large = vec![format!("[{small}]"); 2_000].join(",");
        let json: Json = serde_json::from_str(&format!(r#"{{"x":[{large}],"name":"n","y":[{small}]}}"#)).unwrap();
        assert_eq!(json.get("x"), Some(&Json::Excess(TOO_MUCH)));
        // What comes behind it has the room that it took.
        assert!(matches!(json.get("y"), Some(Json::Array(items)) if items.len() == 300));
        assert_eq!(json.get("name").and_then(Json::as_str), Some("n"));
    }

    #[test]
    fn few_misspelt_keys_are_told() {
        let (_, misspelt) = read(&format!(r#"{{{}}}"#, vec![r#""portMapings":0"#; 1_000].join(",")));
        assert_eq!(misspelt.len(), MISSPELT_MAX);
    }

    #[test]
    fn order_and_duplicates_survive() {
        let json: Json = serde_json::from_str(r#"{"b":1,"a":2,"b":3}"#).unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), r#"{"b":1,"a":2,"b":3}"#);
    }
}
