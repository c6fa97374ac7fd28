//! A schema as a tree, with its named types aside. Pure.

use foldhash::{HashMap, HashMapExt};
use serde_json::{Map, Value};

/// A schema and the types that it names, by full name.
#[derive(Debug)]
pub(super) struct Model {
    pub root: Type,
    pub named: HashMap<String, Named>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    /// Bytes with a scale and a precision.
    Decimal(Decimal),
    Array(Box<Type>),
    Map(Box<Type>),
    Union(Vec<Type>),
    /// A record, an enum or a fixed, by full name.
    Named(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decimal {
    pub precision: u64,
    pub scale: u64,
}

#[derive(Debug)]
pub(super) struct Named {
    /// Without its namespace, which resolution does not look at.
    pub name: String,
    /// Full names that it had.
    pub aliases: Vec<String>,
    pub kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Record(Vec<Field>),
    Enum { symbols: Vec<String>, default: Option<String> },
    Fixed { size: usize, decimal: Option<Decimal> },
}

#[derive(Debug)]
pub(super) struct Field {
    pub name: String,
    pub aliases: Vec<String>,
    pub schema: Type,
    pub has_default: bool,
}

/// How deep types may be in each other, written out.
const DEPTH: u32 = 100;

impl Model {
    /// Of a schema that the parser has accepted.
    pub fn read(json: &Value) -> Result<Model, String> {
        let mut named = HashMap::new();
        let root = Reader { named: &mut named }.schema(json, "", 0)?;
        Ok(Model { root, named })
    }
}

struct Reader<'a> {
    named: &'a mut HashMap<String, Named>,
}

impl Reader<'_> {
    fn schema(&mut self, json: &Value, namespace: &str, depth: u32) -> Result<Type, String> {
        if depth > DEPTH {
            return Err(format!("types are more than {DEPTH} deep in each other"));
        }
        match json {
            Value::String(name) => Ok(primitive(name).unwrap_or_else(|| Type::Named(full(name, namespace)))),
            Value::Array(branches) => {
                let branches = branches.iter().map(|branch| self.schema(branch, namespace, depth + 1));
                Ok(Type::Union(branches.collect::<Result<_, _>>()?))
            }
            Value::Object(object) => self.object(object, namespace, depth),
            _ => Err("a schema is a name, an object or an array".into()),
        }
    }

    fn object(&mut self, object: &Map<String, Value>, namespace: &str, depth: u32) -> Result<Type, String> {
        let part = |name: &str| object.get(name).ok_or_else(|| format!("`{name}` is missing"));
        match object.get("type") {
            Some(Value::String(kind)) => match kind.as_str() {
                "array" => Ok(Type::Array(Box::new(self.schema(part("items")?, namespace, depth + 1)?))),
                "map" => Ok(Type::Map(Box::new(self.schema(part("values")?, namespace, depth + 1)?))),
                "record" | "error" | "enum" | "fixed" => self.named(kind, object, namespace, depth),
                "bytes" => Ok(decimal(object).map_or(Type::Bytes, Type::Decimal)),
                _ => self.schema(&Value::String(kind.clone()), namespace, depth + 1),
            },
            Some(inner) => self.schema(inner, namespace, depth + 1),
            None => Err("`type` is missing".into()),
        }
    }

    fn named(&mut self, kind: &str, object: &Map<String, Value>, namespace: &str, depth: u32) -> Result<Type, String> {
        let name = text(object, "name").ok_or("`name` is missing")?;
        let namespace = text(object, "namespace").unwrap_or(namespace);
        let full_name = full(name, namespace);
        let (own_namespace, short) = full_name.rsplit_once('.').unwrap_or(("", &full_name));
        let aliases = texts(object, "aliases").into_iter().map(|alias| full(&alias, own_namespace)).collect();
        let kind = match kind {
            "enum" => {
                let default = text(object, "default").map(str::to_owned);
                Kind::Enum { symbols: texts(object, "symbols"), default }
            }
            "fixed" => {
                let size = object.get("size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
                Kind::Fixed { size: size.ok_or("`size` is not a number")?, decimal: decimal(object) }
            }
            _ => {
                let fields = object.get("fields").and_then(Value::as_array).ok_or("`fields` is missing")?;
                let fields = fields.iter().map(|field| {
                    let field = field.as_object().ok_or("a field is an object")?;
                    Ok::<Field, String>(Field {
                        name: text(field, "name").ok_or("a field has no name")?.to_owned(),
                        aliases: texts(field, "aliases"),
                        schema: self.schema(
                            field.get("type").ok_or("a field has no type")?,
                            own_namespace,
                            depth + 1,
                        )?,
                        has_default: field.contains_key("default"),
                    })
                });
                Kind::Record(fields.collect::<Result<_, _>>()?)
            }
        };
        self.named.insert(full_name.clone(), Named { name: short.to_owned(), aliases, kind });
        Ok(Type::Named(full_name.clone()))
    }
}

fn primitive(name: &str) -> Option<Type> {
    Some(match name {
        "null" => Type::Null,
        "boolean" => Type::Boolean,
        "int" => Type::Int,
        "long" => Type::Long,
        "float" => Type::Float,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "string" => Type::String,
        _ => return None,
    })
}

fn full(name: &str, namespace: &str) -> String {
    match name.contains('.') || namespace.is_empty() {
        true => name.to_owned(),
        false => format!("{namespace}.{name}"),
    }
}

fn decimal(object: &Map<String, Value>) -> Option<Decimal> {
    (text(object, "logicalType") == Some("decimal")).then_some(())?;
    let number = |name: &str| object.get(name).and_then(Value::as_u64);
    Some(Decimal { precision: number("precision")?, scale: number("scale").unwrap_or(0) })
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

fn texts(object: &Map<String, Value>, name: &str) -> Vec<String> {
    let list = object.get(name).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|one| one.as_str().map(str::to_owned)).collect()
}
