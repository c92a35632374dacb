//! Configurations that are nearly real ones.

use serde_json::{Value, json};

/// What a value that all plugins read by the same code is replaced with.
fn a_few_hostile_values() -> Vec<Value> {
    vec![json!(null), json!(-1), json!(u64::MAX), json!("\u{0}"), json!("x".repeat(100_000)), json!([]), json!({})]
}

/// What a value of a plugin's own is replaced with.
fn hostile_values() -> Vec<Value> {
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(1e300),
        json!(65536),
        json!(4294967296_u64),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}"),
        json!("x".repeat(100_000)),
        json!("a b\n\"';`$(true) %s %n ../.."),
        json!("💥\u{202e}"),
        json!([]),
        json!({}),
        deep,
    ]
}

/// JSON pointers of every value in `json`, containers included.
fn pointers(json: &Value, at: &str, out: &mut Vec<String>) {
    match json {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let pointer = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
            out.push(pointer.clone());
            pointers(value, &pointer, out);
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| {
            let pointer = format!("{at}/{index}");
            out.push(pointer.clone());
            pointers(value, &pointer, out);
        }),
        _ => {}
    }
}

/// `config` with every value replaced by every kind of nonsense, and without each key, one at a time.
pub fn mutations(config: &Value) -> Vec<Value> {
    let (mut places, mut out) = (Vec::new(), Vec::new());
    pointers(config, "", &mut places);
    for place in places {
        let shared = place.starts_with("/prevResult/") || place == "/cniVersion" || place == "/name";
        for value in if shared { a_few_hostile_values() } else { hostile_values() } {
            let mut mutant = config.clone();
            if let Some(at) = mutant.pointer_mut(&place) {
                *at = value;
            }
            out.push(mutant);
        }
        let mut without = config.clone();
        let Some((parent, key)) = place.rsplit_once('/') else { continue };
        if let Some(map) = without.pointer_mut(parent).and_then(Value::as_object_mut) {
            map.remove(&key.replace("~1", "/").replace("~0", "~"));
            out.push(without);
        }
    }
    out
}

/// Random numbers, the same every time (Marsaglia's xorshift).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed that isn't nought.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// One below `bound`, which isn't nought.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// One of these.
    pub fn of<'a, T>(&mut self, some: &'a [T]) -> &'a T {
        &some[self.below(some.len())]
    }
}

/// `config` with one to four values replaced by nonsense, or by another value of it, or removed.
pub fn mutant(config: &Value, random: &mut Random) -> Value {
    let mut mutant = config.clone();
    let hostile = hostile_values();
    for _ in 0..=random.below(4) {
        let mut places = Vec::new();
        pointers(&mutant, "", &mut places);
        if places.is_empty() {
            break;
        }
        let place = random.of(&places);
        let value = match random.below(4) {
            0 => mutant.pointer(random.of(&places).as_str()).cloned(),
            1 => None,
            _ => Some(random.of(&hostile).clone()),
        };
        let (parent, key) = place.rsplit_once('/').unwrap_or_default();
        let key = key.replace("~1", "/").replace("~0", "~");
        match (mutant.pointer_mut(parent), value) {
            (Some(Value::Object(map)), Some(value)) => drop(map.insert(key, value)),
            (Some(Value::Object(map)), None) => drop(map.remove(&key)),
            (Some(Value::Array(items)), value) => {
                let at = key.parse().unwrap_or(0);
                drop(items.splice(at..=at, value));
            }
            _ => {}
        }
    }
    mutant
}

/// `bytes` with a few of them changed, doubled, or cut off.
pub fn garbled(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes.truncate(at),
            1 => {
                let another = bytes[random.below(bytes.len())];
                bytes.insert(at, another);
            }
            _ => bytes[at] = random.below(256) as u8,
        }
    }
    bytes
}
