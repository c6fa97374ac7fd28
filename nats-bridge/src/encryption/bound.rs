//! What a payload is bound to. Pure.

/// Subject, id and content headers, each on a line of its own: none of them has a line's end in it. Headers in the order of
/// their names in lower case, `name:value`; values without white space around them, which the wire does not keep.
pub(super) fn text<'a>(subject: &str, id: &str, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut content: Vec<(String, &str, &str)> = headers
        .into_iter()
        .filter(|(name, _)| is_bound(name))
        .map(|(name, value)| (name.to_ascii_lowercase(), name, value.trim()))
        .collect();
    // Values of one name stay in their order; the order of names is nobody's.
    content.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let mut text = format!("{subject}\n{id}\n");
    for (name, _, value) in content {
        text.push_str(&name);
        text.push(':');
        text.push_str(value);
        text.push('\n');
    }
    text
}

/// Whether a header says how the payload is to be read.
fn is_bound(name: &str) -> bool {
    let starts = |prefix: &str| {
        name.len() >= prefix.len() && name.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
    };
    starts("Content-") || name.eq_ignore_ascii_case("Schema")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_headers_are_bound_whatever_their_order_and_case() {
        let one = [("content-type", " a/b "), ("tenant", "acme"), ("Schema", "orders/3")];
        let other = [("Schema", "orders/3"), ("content-type", "a/b")];
        let expected = "orders.new\no-17\ncontent-type:a/b\nschema:orders/3\n";
        assert_eq!(text("orders.new", "o-17", one), expected);
        assert_eq!(text("orders.new", "o-17", other), expected);
    }

    proptest! {
        #[test]
        fn what_differs_is_bound_differently(
            a in ("[a-z.]{1,4}", "[ -~]{0,4}", proptest::option::of("[!-~]{0,4}")),
            b in ("[a-z.]{1,4}", "[ -~]{0,4}", proptest::option::of("[!-~]{0,4}"))
        ) {
            let of = |(subject, id, value): &(String, String, Option<String>)| {
                text(subject, id, value.iter().map(|value| ("Content-Type", value.as_str())))
            };
            prop_assert_eq!(of(&a) == of(&b), a == b);
        }
    }
}
