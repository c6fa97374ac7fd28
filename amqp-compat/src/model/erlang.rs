//! AMQP values as Erlang prints terms, for the texts of errors in which RabbitMQ does.
//!
//! The lines are broken as Erlang/OTP 25's `io_lib_pretty` breaks them for `~p`: 80 columns, bytes as Latin-1.

use amq_protocol::types::{AMQPValue, FieldTable};

use super::arguments::{integer, type_name};

const LINE: usize = 80;

/// A value as `~p` prints it after `before` characters of its line.
pub fn term(value: &AMQPValue, before: usize) -> String {
    let term = Term::of(value);
    let column = before + 1;
    let text = if term.length() < LINE.saturating_sub(column) {
        term.flat()
    } else {
        [Indent::AfterTag, Indent::Of(4)]
            .into_iter()
            .find_map(|indent| Layout::of(&term, column, indent, true))
            .or_else(|| Layout::of(&term, column, Indent::Of(1), false))
            .unwrap_or_default()
    };
    String::from_utf8_lossy(&text).into_owned()
}

/// What is printed, in the parts between which a line may end.
#[derive(Debug)]
enum Term {
    /// In one piece.
    Atom(Vec<u8>),
    /// Bytes that are no text.
    Bytes(Vec<u8>),
    List(Vec<Term>),
    /// Tagged if its first part is an atom of Erlang's.
    Tuple(bool, Vec<Term>),
}

impl Term {
    fn of(value: &AMQPValue) -> Term {
        if let Some(number) = integer(value) {
            return Term::word(&number.to_string());
        }
        match value {
            AMQPValue::Boolean(value) => Term::word(&value.to_string()),
            AMQPValue::Float(value) => Term::word(&float(f64::from(*value))),
            AMQPValue::Double(value) => Term::word(&float(*value)),
            AMQPValue::DecimalValue(decimal) => {
                let parts = [decimal.scale.to_string(), decimal.value.to_string()];
                Term::Tuple(false, parts.iter().map(|part| Term::word(part)).collect())
            }
            AMQPValue::Timestamp(at) => Term::word(&at.to_string()),
            AMQPValue::LongString(text) => Term::binary(text.as_bytes()),
            AMQPValue::ShortString(text) => Term::binary(text.as_str().as_bytes()),
            AMQPValue::ByteArray(bytes) => Term::binary(bytes.as_slice()),
            AMQPValue::FieldArray(array) => Term::list(
                array
                    .as_slice()
                    .iter()
                    .map(|value| Term::Tuple(true, vec![Term::word(type_name(value)), Term::of(value)])),
            ),
            AMQPValue::FieldTable(table) => Term::table(table),
            _ => Term::word("undefined"),
        }
    }

    fn word(text: &str) -> Term {
        Term::Atom(text.as_bytes().to_vec())
    }

    fn table(table: &FieldTable) -> Term {
        Term::list(table.inner().iter().map(|(name, value)| {
            let name = Term::binary(name.as_str().as_bytes());
            Term::Tuple(false, vec![name, Term::word(type_name(value)), Term::of(value)])
        }))
    }

    fn list(parts: impl Iterator<Item = Term>) -> Term {
        let parts: Vec<_> = parts.collect();
        if parts.is_empty() { Term::word("[]") } else { Term::List(parts) }
    }

    fn binary(bytes: &[u8]) -> Term {
        if bytes.is_empty() {
            return Term::word("<<>>");
        }
        let mut text = b"<<\"".to_vec();
        for &byte in bytes {
            let escaped = match byte {
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0x0B => b'v',
                0x08 => b'b',
                0x0C => b'f',
                0x1B => b'e',
                b'"' | b'\\' => byte,
                b' '..=b'~' | 160.. => {
                    text.push(byte);
                    continue;
                }
                _ => return Term::Bytes(bytes.to_vec()),
            };
            text.extend([b'\\', escaped]);
        }
        text.extend(b"\">>");
        Term::Atom(text)
    }

    fn is_atom(&self) -> bool {
        matches!(self, Term::Atom(_))
    }

    fn length(&self) -> usize {
        match self {
            Term::Atom(text) => text.len(),
            Term::Bytes(bytes) => 3 + bytes.iter().map(|byte| 1 + byte.to_string().len()).sum::<usize>(),
            Term::List(parts) | Term::Tuple(_, parts) => 1 + parts.iter().map(|part| 1 + part.length()).sum::<usize>(),
        }
    }

    /// All on one line.
    fn flat(&self) -> Vec<u8> {
        match self {
            Term::Atom(text) => text.clone(),
            Term::Bytes(bytes) => {
                let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
                format!("<<{}>>", numbers.join(",")).into_bytes()
            }
            Term::List(parts) | Term::Tuple(_, parts) => {
                let parts: Vec<_> = parts.iter().map(Term::flat).collect();
                let (open, close) = self.brackets();
                [&[open][..], &parts.join(&b','), &[close]].concat()
            }
        }
    }

    fn brackets(&self) -> (u8, u8) {
        if matches!(self, Term::List(_)) { (b'[', b']') } else { (b'{', b'}') }
    }
}

/// How far what follows the tag of a tuple is indented.
#[derive(Debug, Clone, Copy)]
enum Indent {
    AfterTag,
    Of(usize),
}

/// Where a part stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    column: usize,
    /// Brackets that are closed right after it.
    closing: usize,
    /// What its line has already, without its indentation.
    used: usize,
}

/// A term over several lines.
struct Layout {
    out: Vec<u8>,
    indent: Indent,
    /// The most that a line may have, without its indentation.
    most: usize,
    /// Whether what stands too far to the right is given up.
    strict: bool,
}

impl Layout {
    fn of(term: &Term, column: usize, indent: Indent, strict: bool) -> Option<Vec<u8>> {
        let mut layout = Layout { out: Vec::new(), indent, most: term.length(), strict };
        layout.put(term, Place { column, closing: 0, used: 0 }, column - 1)?;
        Some(layout.out)
    }

    fn fits(&self, length: usize, Place { column, closing, used }: Place) -> bool {
        length + column + closing < LINE && length + used + closing <= self.most
    }

    fn put(&mut self, term: &Term, place: Place, indent: usize) -> Option<()> {
        if self.fits(term.length(), place) {
            self.out.extend(term.flat());
            return Some(());
        }
        let Place { column, closing, used } = place;
        let parts = match term {
            Term::Atom(text) => {
                self.out.extend(text);
                return Some(());
            }
            Term::Bytes(bytes) => {
                self.put_bytes(bytes, place, indent + 2);
                return Some(());
            }
            Term::List(parts) | Term::Tuple(_, parts) => parts,
        };
        let (open, close) = term.brackets();
        self.out.push(open);
        match (term, parts.as_slice()) {
            (Term::Tuple(true, _), [tag, rest @ ..]) => {
                let after_tag = tag.length() + 2;
                self.out.extend(tag.flat());
                match self.indent {
                    Indent::Of(by) if after_tag > by => {
                        let column = column + by;
                        if self.strict && self.most + column > LINE && column > LINE / 2 {
                            return None;
                        }
                        let start = Place { column, closing, used: used + 1 + tag.length() };
                        self.put_rest(rest, start, column - by + after_tag, indent + by)?;
                    }
                    _ => {
                        let column = column + after_tag;
                        if self.strict && self.most + column >= LINE && column >= LINE / 2 {
                            return None;
                        }
                        self.out.push(b',');
                        self.put_parts(rest, Place { column, closing, used: used + after_tag }, indent + after_tag)?;
                    }
                }
            }
            (_, parts) => {
                self.put_parts(parts, Place { column: column + 1, closing, used: used + 1 }, indent + 1)?;
            }
        }
        self.out.push(close);
        Some(())
    }

    /// The parts of a list or tuple, the first one here.
    fn put_parts(&mut self, parts: &[Term], place: Place, indent: usize) -> Option<()> {
        let [first, rest @ ..] = parts else { return Some(()) };
        let width = self.put_part(first, Place { closing: closing(rest, place), ..place }, indent)?;
        self.put_rest(rest, Place { used: place.used + width, ..place }, place.column + width, indent)
    }

    /// The parts after the first one: on its line, at column `at`, as long as they are atoms and fit; else at `start`.
    fn put_rest(&mut self, mut parts: &[Term], start: Place, mut at: usize, indent: usize) -> Option<()> {
        let mut used = start.used;
        while let [part, rest @ ..] = parts {
            let closing = closing(rest, start);
            let length = 1 + part.length();
            let after = closing.max(1);
            self.out.push(b',');
            if part.is_atom() && at + length + after < LINE && used + length + after <= self.most {
                self.out.extend(part.flat());
                at += length;
                used += length;
            } else {
                self.out.push(b'\n');
                self.out.resize(self.out.len() + indent, b' ');
                let width = self.put_part(part, Place { column: start.column, closing, used: 0 }, indent)?;
                at = start.column + width;
                used = width;
            }
            parts = rest;
        }
        Some(())
    }

    /// Answers how much of the line is gone then: all of it, if it is not an atom.
    fn put_part(&mut self, part: &Term, place: Place, indent: usize) -> Option<usize> {
        let is_short = part.is_atom() && self.fits(part.length(), place);
        self.put(part, place, indent)?;
        Some(if is_short { part.length() } else { LINE })
    }

    fn put_bytes(&mut self, bytes: &[u8], Place { column, closing, used }: Place, indent: usize) {
        let room =
            LINE.saturating_sub(column + 2).min(self.most.saturating_sub(4 + used)).saturating_sub(closing).max(8);
        let mut left = room;
        self.out.extend(b"<<");
        for (at, byte) in bytes.iter().enumerate() {
            let mut number = byte.to_string();
            if at + 1 < bytes.len() {
                number.push(',');
            }
            if number.len() > left {
                self.out.push(b'\n');
                self.out.resize(self.out.len() + indent, b' ');
                left = room;
            }
            left -= number.len();
            self.out.extend(number.as_bytes());
        }
        self.out.extend(b">>");
    }
}

/// How many brackets are closed after the part before `rest`.
fn closing(rest: &[Term], place: Place) -> usize {
    if rest.is_empty() { place.closing + 1 } else { 0 }
}

/// A float in its shortest form, with an exponent where that is shorter or the number has no digits behind the point.
fn float(value: f64) -> String {
    let short = format!("{:e}", value.abs());
    let Some((digits, exponent)) = short.split_once('e') else { return short };
    let Ok(exponent) = exponent.parse::<i32>() else { return short };
    let sign = if value.is_sign_negative() { "-" } else { "" };
    let digits = digits.replace('.', "");
    let (length, point) = (digits.len() as i32, exponent + 1);
    let scientific = || {
        let rest = if digits.len() == 1 { "0" } else { &digits[1..] };
        format!("{sign}{}.{rest}e{exponent}", &digits[..1])
    };
    if value == 0.0 {
        return format!("{sign}0.0");
    }
    if value.abs() >= 9_007_199_254_740_992.0 {
        return scientific();
    }
    // What the exponent costs: its digits, the `e`, and `.0` or the point.
    let cost = exponent.to_string().len() as i32 + 1 + if length == 1 { 2 } else { 1 };
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    match point {
        0 => format!("{sign}0.{digits}"),
        ..0 if 2 - point <= cost => format!("{sign}0.{}{digits}", zeros(-point)),
        1.. if point < length => {
            let (whole, part) = digits.split_at(point as usize);
            format!("{sign}{whole}.{part}")
        }
        1.. if point - length + 2 <= cost => format!("{sign}{digits}{}.0", zeros(point - length)),
        _ => scientific(),
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::types::DecimalValue;

    use super::*;

    fn text(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn array(values: Vec<AMQPValue>) -> AMQPValue {
        AMQPValue::FieldArray(values.into())
    }

    fn nested(entries: &[(&str, AMQPValue)]) -> AMQPValue {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), value.clone());
        }
        AMQPValue::FieldTable(table)
    }

    /// As RabbitMQ 3.10.8 on OTP 25 printed them in `received the value '…`; the last three, which a reply text has no room
    /// for, as `~p` of the same OTP did. `tests/oracle/texts.rs` asks RabbitMQ itself.
    #[test]
    fn every_type_is_printed_as_rabbitmq_printed_it() {
        let bytes = |bytes: &[u8]| AMQPValue::ByteArray(bytes.to_vec().into());
        let decimal = AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 });
        let long = || text("a text of thirty bytes is here");
        let cases = [
            (AMQPValue::Boolean(true), "true"),
            (AMQPValue::ShortShortInt(-128), "-128"),
            (AMQPValue::LongUInt(u32::MAX), "4294967295"),
            (AMQPValue::Timestamp(u64::MAX), "18446744073709551615"),
            (AMQPValue::Void, "undefined"),
            (AMQPValue::Float(0.1), "0.10000000149011612"),
            (AMQPValue::Double(-0.1), "-0.1"),
            (AMQPValue::Double(3.0), "3.0"),
            (AMQPValue::Double(100_000.0), "1.0e5"),
            (AMQPValue::Double(123_456.789), "123456.789"),
            (AMQPValue::Double(1e22), "1.0e22"),
            (AMQPValue::Double(1e-7), "1.0e-7"),
            (AMQPValue::Double(0.001), "0.001"),
            (decimal.clone(), "{2,314}"),
            (array(vec![]), "[]"),
            (nested(&[]), "[]"),
            (
                array(vec![text("x"), AMQPValue::LongInt(1), AMQPValue::Void, decimal.clone()]),
                "[{longstr,<<\"x\">>},\n            {signedint,1},\n            {void,undefined},\n            {decimal,{2,314}}]",
            ),
            (
                array(vec![array(vec![AMQPValue::Boolean(false)]), nested(&[("in", AMQPValue::Double(1e16))])]),
                "[{array,[{bool,false}]},{table,[{<<\"in\">>,double,1.0e16}]}]",
            ),
            (
                nested(&[("b", bytes(&[0, 200])), ("€", text("\"ä\"\n"))]),
                "[{<<\"b\">>,binary,<<0,200>>},\n            {<<226,130,172>>,longstr,<<\"\\\"ä\\\"\\n\">>}]",
            ),
            (
                nested(&[("inner", nested(&[("list", array(vec![long(), long()]))]))]),
                "[{<<\"inner\">>,table,\n             [{<<\"list\">>,array,\n               [{longstr,<<\"a text of thirty bytes is here\">>},\n                {longstr,<<\"a text of thirty bytes is here\">>}]}]}]",
            ),
            (
                array(vec![long(), bytes(&(0..30).collect::<Vec<_>>())]),
                "[{longstr,<<\"a text of thirty bytes is here\">>},\n            {binary,<<0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,\n                      21,22,23,24,25,26,27,28,29>>}]",
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(term(&value, "the value '".len()), expected, "{value:?}");
        }
    }

    #[test]
    fn what_stands_too_far_to_the_right_begins_a_line_of_its_own() {
        let bytes = AMQPValue::ByteArray((0..30).collect::<Vec<u8>>().into());
        let value = array(vec![text("a text of thirty bytes is here"), bytes]);
        // As RabbitMQ printed it in `Invalid x-match field type array (value …`.
        let expected = "[{longstr,\n                                          <<\"a text of thirty bytes is here\">>},\n                                         {binary,\n                                          <<0,1,";
        let printed = term(&value, "Invalid x-match field type array (value ".len());
        assert!(printed.starts_with(expected), "{printed}");
    }
}
