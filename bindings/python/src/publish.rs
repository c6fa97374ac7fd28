//! Publishing: what Python gives becomes a message of the core, what the core answers becomes a `Published`.

use bytes::Bytes;
use nats_bridge::{BreakerConfig, Message, MessageId, PublishConfig};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBool, PyBytes, PyList, PyMapping, PyMemoryView, PyString, PyTuple};

use crate::errors;
use crate::options::{Given, text, wrong_type};

/// Where a published message is stored.
#[pyclass(frozen, eq, hash, get_all, module = "nats_bridge")]
#[derive(PartialEq, Eq, Hash)]
pub struct Published {
    /// The stream that holds it.
    stream: String,
    /// Its sequence in that stream; for a duplicate, the sequence of the first one.
    sequence: u64,
    /// Whether the id was already seen inside the stream's duplicate window.
    duplicate: bool,
    /// The id it carries, also when it was generated; `None` when it carries none.
    id: Option<String>,
}

impl From<nats_bridge::Published> for Published {
    fn from(core: nats_bridge::Published) -> Self {
        let nats_bridge::Published { stream, sequence, duplicate, id } = core;
        Published { stream: stream.to_string(), sequence, duplicate, id }
    }
}

#[pymethods]
impl Published {
    /// That it is stored: `yes`.
    #[getter]
    fn landed(&self) -> &'static str {
        "yes"
    }

    #[classattr]
    fn __match_args__() -> (&'static str, &'static str, &'static str, &'static str) {
        ("stream", "sequence", "duplicate", "id")
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let Published { stream, sequence, duplicate, id } = self;
        let (stream, id) = (PyString::new(py, stream).repr()?, id.into_pyobject(py)?.repr()?);
        let duplicate = if *duplicate { "True" } else { "False" };
        Ok(format!("Published(stream={stream}, sequence={sequence}, duplicate={duplicate}, id={id})"))
    }
}

/// The core's messages for what `publish_many` is given: tuples of subject, payload and, if they have them, id, headers and schema.
pub fn messages(given: &Bound<'_, PyAny>) -> PyResult<Vec<Message>> {
    let mut messages = Vec::with_capacity(given.len().unwrap_or(0));
    let all = given.try_iter().map_err(|_| wrong_type("messages", "an iterable of messages", given))?;
    for (index, one) in all.enumerate() {
        messages.push(of_tuple(&one?).map_err(|error| {
            let py = given.py();
            match error.is_instance_of::<PyTypeError>(py) {
                true => PyTypeError::new_err(format!("messages[{index}]: {}", error.value(py))),
                false => error,
            }
        })?);
    }
    Ok(messages)
}

fn of_tuple(one: &Bound<'_, PyAny>) -> PyResult<Message> {
    let wanted = "a Message, or a tuple of subject and payload";
    let fields = one.cast::<PyTuple>().map_err(|_| wrong_type("messages", wanted, one))?;
    if !(2..=5).contains(&fields.len()) {
        return Err(wrong_type("messages", wanted, one));
    }
    let given = |index: usize| fields.get_item(index).ok().filter(|value| !value.is_none());
    message(&fields.get_item(0)?, &fields.get_item(1)?, given(2).as_ref(), given(3).as_ref(), given(4).as_ref())
}

/// A list with the outcome of each: a `Published`, or the error.
pub fn outcomes(py: Python<'_>, outcomes: Vec<nats_bridge::Result<nats_bridge::Published>>) -> PyResult<Py<PyList>> {
    let each = outcomes.into_iter().enumerate().map(|(index, outcome)| match outcome {
        Ok(stored) => Ok(Py::new(py, Published::from(stored))?.into_any()),
        Err(error) => Ok(errors::of_message(index, &error).into_value(py).into_any()),
    });
    Ok(PyList::new(py, each.collect::<PyResult<Vec<Py<PyAny>>>>()?)?.unbind())
}

/// The core's message for the arguments of `publish`.
pub fn message(
    subject: &Bound<'_, PyAny>,
    payload: &Bound<'_, PyAny>,
    id: Option<&Bound<'_, PyAny>>,
    headers: Option<&Bound<'_, PyAny>>,
    schema: Option<&Bound<'_, PyAny>>,
) -> PyResult<Message> {
    let mut message = Message::new(text("subject", subject)?, bytes(payload)?);
    if let Some(schema) = schema {
        let schema: String = schema.extract().map_err(|_| wrong_type("schema", "str or None", schema))?;
        message = message.schema(schema);
    }
    if let Some(id) = id {
        message = message.message_id(message_id(id)?);
    }
    let Some(headers) = headers else { return Ok(message) };
    let headers = headers.cast::<PyMapping>().map_err(|_| wrong_type("headers", "a mapping", headers))?;
    for header in headers.items()? {
        let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = header.extract()?;
        let name: String = name.extract().map_err(|_| wrong_type("headers", "a name that is str", &name))?;
        if let Ok(value) = value.extract::<String>() {
            message = message.header(name, value);
        } else if let Ok(values) = value.cast::<PyList>() {
            for value in values {
                let value: String =
                    value.extract().map_err(|_| wrong_type("headers", "a value that is str", &value))?;
                message = message.header(name.as_str(), value);
            }
        } else {
            return Err(wrong_type("headers", "a value that is str or list[str]", &value));
        }
    }
    Ok(message)
}

fn message_id(id: &Bound<'_, PyAny>) -> PyResult<MessageId> {
    match id.cast::<PyBool>() {
        Ok(wanted) if !wanted.is_true() => Ok(MessageId::None),
        _ => id.extract().map(MessageId::Given).map_err(|_| wrong_type("id", "str, None or False", id)),
    }
}

// Up to here a copy costs less than giving a reference back to the interpreter later.
const COPY: usize = 4096;

/// A buffer of Python as the core's payload, without a copy where it is large and never changes.
pub fn bytes(payload: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if let Ok(bytes) = payload.cast::<PyBytes>() {
        return Ok(match bytes.as_bytes() {
            small if small.len() <= COPY => Bytes::copy_from_slice(small),
            // `bytes` never changes, so the core may read it in place.
            _ => Bytes::from_owner(PyBackedBytes::from(bytes.clone())),
        });
    }
    let buffer = PyBuffer::<u8>::get(payload)
        .map_err(|_| wrong_type("payload", "bytes, bytearray, memoryview or another buffer of bytes", payload))?;
    match of_a_view(payload, &buffer) {
        Some(bytes) => Ok(bytes),
        None => Ok(buffer.to_vec(payload.py())?.into()),
    }
}

// A view of `bytes` is read in place, as they are: what else has a buffer may change.
fn of_a_view(payload: &Bound<'_, PyAny>, buffer: &PyBuffer<u8>) -> Option<Bytes> {
    if buffer.item_count() <= COPY || !buffer.is_c_contiguous() {
        return None;
    }
    let whole = payload.cast::<PyMemoryView>().ok()?.getattr("obj").ok()?.cast_into::<PyBytes>().ok()?;
    let offset = (buffer.buf_ptr() as usize).checked_sub(whole.as_bytes().as_ptr() as usize)?;
    let end = offset.checked_add(buffer.item_count()).filter(|end| *end <= whole.as_bytes().len())?;
    Some(Bytes::from_owner(PyBackedBytes::from(whole)).slice(offset..end))
}

/// The core's bounds for what an option says.
pub fn config(options: &Given<'_>) -> PyResult<PublishConfig> {
    let mut config = PublishConfig::default();
    options.each(|name, given| {
        match name {
            "max_in_flight" => config.max_in_flight = given.count("it is 1 to 32768")?,
            "max_in_flight_bytes" => config.max_in_flight_bytes = given.count("it is 1 to 2 GiB")?,
            "ack_wait_ms" => config.ack_wait = given.millis()?,
            "attempts" => config.attempts = given.count("it is 1 to 4294967295")?,
            "deadline_ms" => config.deadline = given.millis()?,
            "breaker" => config.breaker = Some(breaker(given)?),
            "no_stream_wait_ms" => config.no_stream_wait = given.millis()?,
            "encrypt" => config.encrypt = Some(given.keys()?),
            "schemas" => config.schemas = Some(given.read()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(config)
}

fn breaker(options: &Given<'_>) -> PyResult<BreakerConfig> {
    let mut config = BreakerConfig::default();
    options.each(|name, given| {
        match name {
            "trip_after_ms" => config.trip_after = given.millis()?,
            "probe_every_ms" => config.probe_every = given.millis()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(config)
}
