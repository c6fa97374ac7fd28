//! How deep the field tables of a frame nest.
//!
//! `amq-protocol` reads tables by recursion, and each level costs a peer six bytes: without a bound one frame could use
//! up the stack. The bound is ours; RabbitMQ has none.

use crate::codec::flag;

/// How many tables and arrays may lie inside one another.
pub(crate) const MAX_DEPTH: usize = 64;

/// Whether the arguments of a method (`payload` begins with class and method id) nest at most [`MAX_DEPTH`] deep.
pub(crate) fn method_is_shallow(payload: &[u8]) -> bool {
    let (Some(class), Some(method)) = (u16_at(payload, 0), u16_at(payload, 2)) else { return true };
    // Short strings (s) and fixed widths that come before the method's one table.
    let before: &[Field] = match (class, method) {
        (10, 11) => &[],
        (40, 10) => &[Field::Bytes(2), Field::Short, Field::Short, Field::Bytes(1)],
        (40, 30 | 40) => &[Field::Bytes(2), Field::Short, Field::Short, Field::Short, Field::Bytes(1)],
        (50, 10) => &[Field::Bytes(2), Field::Short, Field::Bytes(1)],
        (50, 20) => &[Field::Bytes(2), Field::Short, Field::Short, Field::Short, Field::Bytes(1)],
        (50, 50) => &[Field::Bytes(2), Field::Short, Field::Short, Field::Short],
        (60, 20) => &[Field::Bytes(2), Field::Short, Field::Short, Field::Bytes(1)],
        // The server never reads the other methods that carry one.
        (10, 10) => return few_containers(payload),
        _ => return true,
    };
    few_containers(payload) || table_after(payload, 4, before)
}

/// Whether the headers of a content header (`payload` begins with the class id) nest at most [`MAX_DEPTH`] deep.
pub(crate) fn properties_are_shallow(payload: &[u8]) -> bool {
    let Some(flags) = u16_at(payload, 12) else { return true };
    if flags & flag::HEADERS == 0 || few_containers(payload) {
        return true;
    }
    let before = [Field::Short, Field::Short];
    let strings = (flags & (flag::CONTENT_TYPE | flag::CONTENT_ENCODING)).count_ones() as usize;
    table_after(payload, 14, &before[..strings])
}

/// Whether the entries of a table (without its length) nest at most [`MAX_DEPTH`] deep.
pub(crate) fn table_is_shallow(entries: &[u8]) -> bool {
    walk(entries, 0, entries.len())
}

/// A field that is stepped over.
enum Field {
    Bytes(usize),
    Short,
}

/// Nothing nests deeper than the number of bytes that could begin a table or an array.
fn few_containers(payload: &[u8]) -> bool {
    payload.iter().filter(|byte| matches!(byte, b'F' | b'A')).count() < MAX_DEPTH
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
}

/// A truncated payload counts as shallow: decoding refuses it before it recurses further than what is there.
fn table_after(payload: &[u8], mut at: usize, before: &[Field]) -> bool {
    for field in before {
        at += match field {
            Field::Bytes(width) => *width,
            Field::Short => match payload.get(at) {
                Some(length) => 1 + usize::from(*length),
                None => return true,
            },
        };
    }
    let Some(length) = u32_at(payload, at) else { return true };
    let end = (at + 4).saturating_add(length).min(payload.len());
    walk(payload, at + 4, end)
}

/// Walks a table's entries without recursion.
fn walk(bytes: &[u8], start: usize, end: usize) -> bool {
    // (end, whether entries have names) of each table or array that is open.
    let mut open = vec![(end, true)];
    let mut at = start;
    while let Some(&(end, named)) = open.last() {
        if at >= end {
            open.pop();
            continue;
        }
        if named {
            at += 1 + usize::from(bytes[at]);
        }
        let Some(kind) = bytes.get(at) else { return true };
        at += 1;
        at += match kind {
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'V' => 0,
            b'S' | b'x' => match u32_at(bytes, at) {
                Some(length) => length.saturating_add(4),
                None => return true,
            },
            b'F' | b'A' => {
                let Some(length) = u32_at(bytes, at) else { return true };
                if open.len() >= MAX_DEPTH {
                    return false;
                }
                let inner = (at + 4).saturating_add(length).min(end);
                open.push((inner, *kind == b'F'));
                4
            }
            _ => return true,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> Vec<u8> {
        let mut table = Vec::new();
        for _ in 0..depth {
            let mut outer = vec![1, b'k', b'F'];
            outer.extend((u32::try_from(table.len()).expect("small")).to_be_bytes());
            outer.extend(&table);
            table = outer;
        }
        table
    }

    fn declare(table: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 50, 0, 10, 0, 0, 1, b'q', 0];
        payload.extend((u32::try_from(table.len()).expect("small")).to_be_bytes());
        payload.extend(table);
        payload
    }

    #[test]
    fn tables_nest_up_to_the_bound_and_no_deeper() {
        assert!(method_is_shallow(&declare(&nested(MAX_DEPTH - 1))));
        assert!(!method_is_shallow(&declare(&nested(MAX_DEPTH))));
        assert!(!method_is_shallow(&declare(&nested(15_000))));
    }

    #[test]
    fn many_flat_entries_are_fine() {
        let mut table = Vec::new();
        for _ in 0..1000 {
            table.extend([1, b'F', b'A', 0, 0, 0, 0]);
        }
        assert!(method_is_shallow(&declare(&table)));
    }

    #[test]
    fn headers_are_found_behind_other_properties() {
        let table = nested(MAX_DEPTH + 1);
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0b1110_0000, 0, 1, b'c', 2, b'e', b'e'];
        payload.extend((u32::try_from(table.len()).expect("small")).to_be_bytes());
        payload.extend(table);
        assert!(!properties_are_shallow(&payload));
    }
}
