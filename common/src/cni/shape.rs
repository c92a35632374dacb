//! What a text must look like, for the JSON Schemas: the forms that plugins read, in the regular expressions of JSON
//! Schema (ECMA-262, without flags). Each is held against the code that reads the text by `tests/tests/schemas.rs`.

/// One of the numbers of an IPv4 address.
const OCTET: &str = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";

/// One group of an IPv6 address.
const GROUP: &str = "[0-9a-fA-F]{1,4}";

/// `IPv4address` of RFC 3986, appendix A.
fn v4() -> String {
    format!("(?:{OCTET}\\.){{3}}{OCTET}")
}

/// `IPv6address` of RFC 3986, appendix A.
fn v6() -> String {
    let last = format!("(?:{GROUP}:{GROUP}|{})", v4());
    let mut forms = vec![format!("(?:{GROUP}:){{6}}{last}")];
    // So many groups at the most before the `::`, and just so many behind it.
    let before = |most: usize| match most {
        0 => String::new(),
        1 => format!("(?:{GROUP})?"),
        _ => format!("(?:(?:{GROUP}:){{0,{}}}{GROUP})?", most - 1),
    };
    forms.extend((0..5).map(|most| format!("{}::(?:{GROUP}:){{{}}}{last}", before(most), 5 - most)));
    forms.push(format!("{}::{last}", before(5)));
    forms.push(format!("{}::{GROUP}", before(6)));
    forms.push(format!("{}::", before(7)));
    format!("(?:{})", forms.join("|"))
}

/// An address, or nothing.
pub fn address() -> String {
    format!("^(?:{}|{})?$", v4(), v6())
}

/// An address that is not one of this host's but of many: 224.0.0.0/4 and ff00::/8. One in the form of the other family is
/// not found.
pub fn multicast() -> String {
    "^(?:2(?:2[4-9]|3[0-9])\\.|[fF]{2}[0-9a-fA-F]{2}:)".to_owned()
}

/// A subnet, as [`super::decode::cidr`] reads it.
pub fn cidr() -> String {
    let (of_v4, of_v6) = ("(?:3[0-2]|[0-2]?[0-9])", "(?:12[0-8]|1[01][0-9]|0?[0-9]?[0-9])");
    format!("^(?:{}/{of_v4}|{}/{of_v6})$", v4(), v6())
}

/// A hardware address of 6, 8 or 20 bytes, or nothing, as Go's `net.ParseMAC` reads it.
pub fn mac() -> String {
    let digits = |count: usize| format!("[0-9a-fA-F]{{{count}}}");
    let separated = |digits: String, separator: &str, more: [usize; 3]| {
        more.map(|more| format!("{digits}(?:{separator}{digits}){{{more}}}")).join("|")
    };
    let forms = [
        separated(digits(2), ":", [5, 7, 19]),
        separated(digits(2), "-", [5, 7, 19]),
        separated(digits(4), "\\.", [2, 3, 9]),
    ];
    format!("^(?:{})?$", forms.join("|"))
}

/// A hardware address of 6 bytes that can be no interface's own: a group's, or noughts.
pub fn nobodys_mac() -> String {
    let six = |first: &str, other: &str| {
        let pairs = |separator: &str| format!("{first}(?:{separator}{other}{{2}}){{5}}");
        format!("{}|{}|{first}{other}{{2}}(?:\\.{other}{{4}}){{2}}", pairs(":"), pairs("-"))
    };
    format!("^(?:{}|{})$", six("[0-9a-fA-F][13579bdfBDF]", "[0-9a-fA-F]"), six("00", "0"))
}

/// A key of `sysctl`, as [`crate::sysctl::Key::parse`] reads it: below `net`.
pub fn sysctl_key() -> String {
    "^[./]*net[./]+[^./\\u0000][^\\u0000]*$".to_owned()
}

/// What leads astray in such a key: a step that is `.` or `..`, however it is written.
pub fn sysctl_key_with_a_step_aside() -> String {
    "(?:^|/)\\.{1,2}(?:/|$)|^[^./]*\\.(?:.*\\.)?/{1,2}(?:\\.|$)".to_owned()
}
